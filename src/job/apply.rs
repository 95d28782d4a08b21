//! Changes to a prompt before it is posted: the job's inputs, its own output folder, a forced re-run.

use std::collections::BTreeMap;

use contract::{
    failure::Failure,
    prompt::Prompt,
    request::NodeInput,
    text::{nearest, one_line, quoted},
};
use serde_json::{Map, Value, json};

use super::prompt_check::unwrapped;

/// Sets inputs of nodes.
///
/// # Errors
/// [`Failure::Invalid`] for an unknown node or input, naming the near misses.
pub fn set_inputs(prompt: &mut Prompt, values: &BTreeMap<NodeInput, Value>) -> Result<(), Failure> {
    for (address, value) in values {
        let NodeInput { node, input } = address;
        let invalid = |problem: String| {
            Failure::Invalid(format!(
                "inputs.{}: {}",
                one_line(&address.to_string(), 120),
                one_line(&problem, 400)
            ))
        };
        let Some(entry) = prompt.get_mut(node) else {
            let hint = if prompt.len() <= 12 { all(prompt) } else { nearest(node, prompt.keys().cloned()) };
            return Err(invalid(format!("the prompt has no node {}{hint}", one_line(node, 40))));
        };
        let class = entry.get("class_type").and_then(Value::as_str).unwrap_or_default();
        let title = format!("node {} ({})", one_line(node, 40), one_line(class, 80));
        let Some(inputs) = entry.get_mut("inputs").and_then(Value::as_object_mut) else {
            return Err(invalid(format!("{title} has no inputs")));
        };
        if !inputs.contains_key(input) {
            let near = nearest(input, inputs.keys().cloned());
            let hint = if near.is_empty() { all(inputs) } else { near };
            return Err(invalid(format!("{title} has no input {}{hint}", one_line(input, 40))));
        }
        inputs.insert(input.clone(), value.clone());
    }
    Ok(())
}

fn all(known: &Map<String, Value>) -> String {
    if known.is_empty() {
        "; it has none".to_owned()
    } else {
        format!("; it has {}", known.keys().map(String::as_str).collect::<Vec<_>>().join(", "))
    }
}

/// Replaces every input that is exactly a bare name by the staged name.
pub fn rename_files(prompt: &mut Prompt, staged: &BTreeMap<String, String>) {
    let inputs = prompt.values_mut().filter_map(|node| node.get_mut("inputs")?.as_object_mut());
    for value in inputs.flat_map(|inputs| inputs.values_mut().collect::<Vec<_>>()) {
        if let Some(name) = value.as_str().and_then(|name| staged.get(name)) {
            *value = Value::String(name.clone());
        }
    }
}

/// Puts `folder/` in front of every `filename_prefix`, or of the `folder_name` beside it.
///
/// A repeated prompt would otherwise be answered from ComfyUI's execution cache with the file names
/// of the first run, whose files are gone (COMFYUI, "the execution cache"); this way the saving
/// nodes, and only they, run again. It also keeps the files of two jobs apart.
///
/// # Errors
/// [`Failure::Invalid`] for a prefix that would leave `folder`.
pub fn set_output_folder(prompt: &mut Prompt, folder: &str) -> Result<(), Failure> {
    for (id, node) in prompt.iter_mut() {
        let Some(inputs) = node.get_mut("inputs").and_then(Value::as_object_mut) else { continue };
        if !inputs.contains_key("filename_prefix") {
            continue;
        }
        // Nodes that save data sets name the folder apart from the files in it.
        let input = if inputs.contains_key("folder_name") { "folder_name" } else { "filename_prefix" };
        let Some(prefix) = inputs.get_mut(input) else { continue };
        // A prefix that comes from another node stays: its files are found by the history alone.
        let Some(text) = unwrapped(prefix).as_str() else { continue };
        let leaves = text.starts_with(['/', '\\']) || text.split(['/', '\\']).any(|part| part == "..");
        if leaves || text.contains('\0') {
            return Err(Failure::Invalid(format!(
                "node {}: {input} {} leaves the output folder",
                one_line(id, 40),
                quoted(text, 80)
            )));
        }
        *prefix = Value::String(format!("{folder}/{text}"));
    }
    Ok(())
}

/// Makes ComfyUI run these nodes again although their inputs are the same.
///
/// The execution cache's key holds every literal input, also those that the node does not know and
/// never sees (read in `comfy_execution/caching.py` of 0.3.64, measured).
pub fn force_rerun<'a>(prompt: &mut Prompt, nodes: impl IntoIterator<Item = &'a str>, nonce: &str) {
    for id in nodes {
        if let Some(inputs) = prompt.get_mut(id).and_then(|node| node.get_mut("inputs")?.as_object_mut()) {
            inputs.insert("_comfy_worker_rerun".into(), json!(nonce));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn prompt() -> Prompt {
        let prompt = json!({
            "3": {"class_type": "KSampler", "inputs": {"seed": 1, "steps": 20, "model": ["4", 0]}},
            "12:3": {"class_type": "LoadImage", "inputs": {"image": "cat.png"}, "_meta": {"title": "My\ncat"}},
            "9": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "out/x"}},
            "10": {"class_type": "Broken"},
        });
        prompt.as_object().unwrap().clone()
    }

    fn set(address: &str, value: Value) -> Result<Prompt, String> {
        let mut prompt = prompt();
        let values = BTreeMap::from([(address.parse().unwrap(), value)]);
        set_inputs(&mut prompt, &values).map(|()| prompt).map_err(|failure| failure.to_string())
    }

    #[test]
    fn inputs_are_set_also_in_subgraphs_and_over_links() {
        assert_eq!(set("3.seed", json!(7)).unwrap()["3"]["inputs"]["seed"], 7);
        assert_eq!(set("12:3.image", json!("a/b.png")).unwrap()["12:3"]["inputs"]["image"], "a/b.png");
        assert_eq!(set("3.model", json!(["5", 0])).unwrap()["3"]["inputs"]["model"], json!(["5", 0]));
    }

    #[test]
    fn unknown_nodes_and_inputs_are_named_with_their_near_misses() {
        for (address, expected) in [
            ("4.seed", "inputs.4.seed: the prompt has no node 4; it has 3, 12:3, 9, 10"),
            ("3.sed", "inputs.3.sed: node 3 (KSampler) has no input sed; did you mean seed?"),
            ("3.zzz", "inputs.3.zzz: node 3 (KSampler) has no input zzz; it has seed, steps, model"),
            ("10.x", "inputs.10.x: node 10 (Broken) has no inputs"),
        ] {
            assert_eq!(set(address, json!(1)), Err(expected.to_owned()));
        }
        let mut many: Prompt =
            (100..200).map(|id| (id.to_string(), json!({"class_type": "X", "inputs": {}}))).collect();
        let problem = |prompt: &mut Prompt, address: &str| {
            set_inputs(prompt, &BTreeMap::from([(address.parse().unwrap(), json!(1))]))
                .unwrap_err()
                .to_string()
        };
        assert!(problem(&mut many, "1001.x").contains("; did you mean 100"));
        assert_eq!(problem(&mut many, "100.x"), "inputs.100.x: node 100 (X) has no input x; it has none");
        let long = "n\n".repeat(100_000);
        assert!(problem(&mut many, &format!("{long}.{long}")).len() < 1000);
        assert!(!problem(&mut many, &format!("{long}.{long}")).contains('\n'));
    }

    #[test]
    fn every_prefix_gets_the_jobs_folder() {
        let mut prompt = prompt();
        set_output_folder(&mut prompt, "job").unwrap();
        assert_eq!(prompt["9"]["inputs"]["filename_prefix"], "job/out/x");
        assert_eq!(prompt["3"], self::prompt()["3"]);
        for prefix in ["", "x", "%date:yyyy%/x", "a/..b", "...", "."] {
            prompt["9"]["inputs"]["filename_prefix"] = json!(prefix);
            set_output_folder(&mut prompt, "job").unwrap();
            assert_eq!(prompt["9"]["inputs"]["filename_prefix"], format!("job/{prefix}"));
        }
        // From another node: the history tells where its files are.
        prompt["9"]["inputs"]["filename_prefix"] = json!({"__value__": "x"});
        set_output_folder(&mut prompt, "job").unwrap();
        assert_eq!(prompt["9"]["inputs"]["filename_prefix"], "job/x");
        prompt["9"]["inputs"]["folder_name"] = json!("mine");
        set_output_folder(&mut prompt, "job").unwrap();
        assert_eq!(
            (&prompt["9"]["inputs"]["folder_name"], &prompt["9"]["inputs"]["filename_prefix"]),
            (&json!("job/mine"), &json!("job/x"))
        );
        prompt["9"]["inputs"].as_object_mut().unwrap().remove("folder_name");
        prompt["9"]["inputs"]["filename_prefix"] = json!(["3", 0]);
        set_output_folder(&mut prompt, "job").unwrap();
        assert_eq!(prompt["9"]["inputs"]["filename_prefix"], json!(["3", 0]));
    }

    #[test]
    fn prefixes_that_leave_the_folder_are_refused() {
        for prefix in
            ["../x", "/etc/x", "\\x", "a/../../b", "a\\..\\..\\b", "..", "%date%/../../x", "a\0b", "x/.."]
        {
            let mut prompt = prompt();
            prompt["9"]["inputs"]["filename_prefix"] = json!(prefix);
            let problem = set_output_folder(&mut prompt, "job").unwrap_err().to_string();
            assert!(problem.starts_with("node 9: filename_prefix \""), "{problem}");
            assert!(problem.ends_with("leaves the output folder"), "{problem}");
        }
    }

    #[test]
    fn bare_names_are_replaced_and_nothing_else() {
        let mut prompt = prompt();
        prompt["3"]["inputs"]["text"] = json!("see cat.png");
        prompt["3"]["inputs"]["list"] = json!(["cat.png"]);
        rename_files(&mut prompt, &BTreeMap::from([("cat.png".to_owned(), "job/cat.png".to_owned())]));
        assert_eq!(prompt["12:3"]["inputs"]["image"], "job/cat.png");
        assert_eq!(prompt["3"]["inputs"]["text"], "see cat.png");
        assert_eq!(prompt["3"]["inputs"]["list"], json!(["cat.png"]));
    }

    #[test]
    fn a_rerun_changes_the_cache_key_of_the_named_nodes_only() {
        let mut prompt = prompt();
        force_rerun(&mut prompt, ["9", "10", "unknown"], "nonce");
        assert_eq!(prompt["9"]["inputs"]["_comfy_worker_rerun"], "nonce");
        assert_eq!(prompt["10"], self::prompt()["10"]);
        assert_eq!(prompt["3"], self::prompt()["3"]);
    }
}
