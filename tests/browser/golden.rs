//! Templates of ComfyUI's library against golden prompts: what frontend 1.27.10 made of them in
//! people's hands, with ComfyUI 0.3.64 that lacked torchaudio and so the audio nodes.

use std::{collections::BTreeSet, fs, path::Path, time::Instant};

use connector::browser::ConvertError;
use serde_json::{Map, Value};
use testbed::RunningEngine;

use crate::{
    frontends::{self, fixture, get, unpacked},
    started::Started,
};

const COMFYUI: &str = "0.3.64";
const FRONTEND: &str = "1.27.10";

/// A template, and the prompt that it became.
struct Golden {
    name: String,
    workflow: Value,
    prompt: Map<String, Value>,
}

impl Golden {
    fn all() -> Vec<Self> {
        let templates = unpacked("templates").join("comfyui_workflow_templates/templates");
        let mut all: Vec<_> = fs::read_dir(fixture("golden"))
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap();
                let Value::Object(prompt) = read(&path) else { panic!("{name}: no prompt") };
                Self { name: name.into(), workflow: read(&templates.join(name)), prompt }
            })
            .collect();
        assert!(!all.is_empty());
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all
    }

    /// A node's type. Where the server knew none, the prompt has none, but the template does.
    fn kind(&self, id: &str) -> &str {
        let in_template = || {
            let nodes = self.workflow["nodes"].as_array().unwrap();
            nodes.iter().find(|node| node["id"].as_u64() == id.parse().ok()).unwrap()["type"]
                .as_str()
                .unwrap()
        };
        self.prompt[id]["class_type"].as_str().unwrap_or_else(in_template)
    }

    /// The types that `known` lacks, as the refusal names them.
    fn missing(&self, known: &Map<String, Value>) -> Vec<String> {
        let kinds: BTreeSet<_> = self.prompt.keys().map(|id| self.kind(id)).collect();
        kinds.into_iter().filter(|kind| !known.contains_key(*kind)).map(str::to_owned).collect()
    }

    /// What `converted` has otherwise. A node whose type the server did not know then is no example.
    fn differences(&self, converted: &Map<String, Value>, exact: bool) -> Vec<String> {
        let ids: BTreeSet<_> = self.prompt.keys().chain(converted.keys()).collect();
        let differs = |id: &&String| match (self.prompt.get(*id), converted.get(*id)) {
            (Some(golden), Some(_)) if golden["class_type"].is_null() => false,
            (Some(golden), Some(node)) if exact => golden != node,
            (Some(golden), Some(node)) => golden["class_type"] != node["class_type"],
            _ => true,
        };
        let describe = |id: &String| {
            let [golden, converted] = [&self.prompt, converted]
                .map(|prompt| prompt.get(id).map_or("nothing".into(), Value::to_string));
            format!("{}, node {id}:\n  golden {golden}\n  became {converted}", self.name)
        };
        ids.into_iter().filter(differs).map(describe).collect()
    }
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap_or_else(|error| panic!("{path:?}: {error}"))).unwrap()
}

/// Converts every template; gives those that were refused, each with the types that the server lacks.
async fn compare(engine: &RunningEngine) -> Vec<(String, Vec<String>)> {
    let known: Map<String, Value> = get(engine, "/object_info").await;
    let started = Started::on(engine).await;
    let system: Value = get(engine, "/system_stats").await;
    let comfyui = &system["system"]["comfyui_version"];
    let frontend = started.browser.frontend_version().unwrap();
    let exact = *comfyui == COMFYUI && frontend == FRONTEND;
    if !exact {
        println!("ComfyUI {comfyui} with frontend {frontend}: inputs may differ, node ids and types may not");
    }

    let (mut refused, mut wrong, mut times) = (Vec::new(), Vec::new(), Vec::new());
    for golden in Golden::all() {
        let missing = golden.missing(&known);
        let clock = Instant::now();
        match started.browser.convert(&golden.workflow).await {
            Err(ConvertError::MissingNodes(types)) if !missing.is_empty() && types == missing => {
                refused.push((golden.name, types));
            }
            Ok(conversion) if missing.is_empty() => {
                times.push(clock.elapsed());
                wrong.extend(golden.differences(&conversion.prompt, exact));
            }
            Ok(_) => wrong.push(format!("{}: converted, but the server lacks {missing:?}", golden.name)),
            Err(error) => wrong.push(format!("{}: {error}, the server lacks {missing:?}", golden.name)),
        }
    }
    started.browser.shutdown().await;
    times.sort();
    println!("{} converted, median {:?}, most {:?}", times.len(), times[times.len() / 2], times.last());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    refused
}

#[tokio::test(flavor = "multi_thread")]
async fn templates_convert_to_their_golden_prompts() {
    let server = frontends::pinned().await;
    let refused = compare(server).await;
    if server.is_real() {
        println!("refused: {refused:?}");
    } else {
        assert_eq!(refused, [("api_wan_image_to_video.json".to_owned(), vec!["LoadAudio".to_owned()])]);
    }
}
