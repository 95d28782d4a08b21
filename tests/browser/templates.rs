//! Every template of ComfyUI's library: the worker's prompt is the one that a person's browser would
//! queue, on the pinned frontend and on the newest one.

use std::{collections::BTreeSet, fs, time::Instant};

use connector::browser::{Conversion, ConvertError};
use serde_json::{Map, Value};
use testbed::RunningEngine;

use crate::{
    bare::Bare,
    frontends::{self, get, unpacked},
    started::Started,
};

fn templates() -> Vec<(String, Value)> {
    let folder = unpacked("templates").join("comfyui_workflow_templates/templates");
    let mut all: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| {
            let workflow: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            (path.file_name().unwrap().to_str().unwrap().to_owned(), workflow)
        })
        // The rest are indexes of the library.
        .filter(|(_, workflow)| workflow["nodes"].is_array())
        .collect();
    all.sort_by(|one, other| one.0.cmp(&other.0));
    all
}

/// A fifth of the templates, or all where `ALL_TEMPLATES` is set: minutes for each frontend.
fn chosen() -> Vec<(String, Value)> {
    let step = if std::env::var_os("ALL_TEMPLATES").is_some_and(|all| !all.is_empty()) { 1 } else { 5 };
    templates().into_iter().step_by(step).collect()
}

async fn compare(server: &RunningEngine) {
    let clock = Instant::now();
    let started = Started::on(server).await;
    let bare = Bare::open(&started.program(), server).await;
    let known: Map<String, Value> = get(server, "/object_info").await;

    let chosen = chosen();
    let (mut times, mut refused, mut wrong) = (Vec::new(), 0, Vec::new());
    for (name, workflow) in &chosen {
        let begun = Instant::now();
        let timed = async { (started.browser.convert(workflow).await, begun.elapsed()) };
        let (theirs, (ours, taken)) = tokio::join!(bare.answer(workflow), timed);
        let missing = missing(workflow, &theirs["output"], &known);
        match ours {
            Ok(conversion) if missing.is_empty() => {
                times.push(taken);
                wrong
                    .extend(differences(workflow, &theirs, conversion).map(|text| format!("{name}: {text}")));
            }
            Err(ConvertError::MissingNodes(types)) if !missing.is_empty() && missing.iter().eq(&types) => {
                refused += 1;
            }
            Ok(_) => wrong.push(format!("{name}: converted, but the server lacks {missing:?}")),
            Err(error) => {
                wrong.push(format!("{name}: {error}; the server lacks {missing:?}; {}", theirs["error"]))
            }
        }
    }
    started.browser.shutdown().await;
    times.sort();
    println!(
        "frontend {}: {} templates, {} converted, {refused} refused, {} wrong; median {:?}, most {:?}, all {:?}",
        started.browser.frontend_version().unwrap(),
        chosen.len(),
        times.len(),
        wrong.len(),
        times[times.len() / 2],
        times.last().unwrap(),
        clock.elapsed()
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(refused > 0, "none was refused, although the server lacks the audio nodes");
}

/// Types of nodes that the page emitted and that the server lacks.
fn missing(workflow: &Value, prompt: &Value, known: &Map<String, Value>) -> BTreeSet<String> {
    let emitted = prompt.as_object().into_iter().flatten();
    let kinds = emitted.map(|(id, node)| match node["class_type"].as_str() {
        Some(kind) => kind.to_owned(),
        None => {
            let nodes = workflow["nodes"].as_array().unwrap();
            let node = nodes.iter().find(|node| node["id"].as_u64() == id.parse().ok()).unwrap();
            node["type"].as_str().unwrap().to_owned()
        }
    });
    kinds.filter(|kind| !known.contains_key(kind)).collect()
}

/// What a page shows in a list that the server fills, until it has: it may save that.
const PLACEHOLDER: &str = "Loading...";

/// Where the prompt or the saved workflow is another one than theirs.
fn differences(source: &Value, theirs: &Value, ours: Conversion) -> Option<String> {
    let prompt = Value::Object(ours.prompt);
    let nodes = theirs["output"].as_object().unwrap();
    if let Some((id, node)) = nodes.iter().find(|(id, node)| prompt[id.as_str()] != **node) {
        return Some(format!("node {id}\n  ours   {}\n  theirs {node}", prompt[id.as_str()]));
    }
    let plain = |workflow: &Value| {
        let mut workflow = workflow.clone();
        // A workflow without a fit id gets a random one, and theirs has the view that the page shows.
        if workflow["id"] != source["id"] {
            workflow["id"].take();
        }
        workflow["extra"]["ds"].take();
        for node in workflow["nodes"].as_array_mut().unwrap() {
            let original =
                source["nodes"].as_array().unwrap().iter().find(|original| original["id"] == node["id"]);
            for (at, value) in node["widgets_values"].as_array_mut().into_iter().flatten().enumerate() {
                if *value == PLACEHOLDER {
                    *value = original.unwrap()["widgets_values"][at].clone();
                }
            }
        }
        workflow
    };
    let (one, other) = (plain(&ours.workflow), plain(&theirs["workflow"]));
    let fields = other.as_object().unwrap().iter().filter(|(key, value)| one[key.as_str()] != **value);
    let fields: Vec<_> = fields
        .map(|(key, value)| format!("{key}\n  ours   {}\n  theirs {value}", one[key.as_str()]))
        .collect();
    let same = prompt.as_object().map(Map::len) == Some(nodes.len()) && fields.is_empty();
    (!same).then(|| {
        format!("{} nodes, theirs {}; {}", prompt.as_object().unwrap().len(), nodes.len(), fields.join("\n"))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_template_on_the_pinned_frontend() {
    compare(frontends::pinned().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_template_on_the_newest_frontend() {
    compare(frontends::newest().await).await;
}
