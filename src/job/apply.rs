//! Changes to a prompt before it is posted: the job's inputs, its own output folder, a forced re-run.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{failure::Failure, request::NodeInput};
use crate::text::{nearest, one_line, quoted};

/// A prompt in ComfyUI's API format: node id to `{class_type, inputs}`.
pub type Prompt = Map<String, Value>;

/// Tells a UI workflow (it has `nodes`) from an API prompt.
#[must_use]
pub fn is_ui_workflow(workflow: &Value) -> bool {
    workflow.get("nodes").is_some_and(Value::is_array)
}

/// A prompt by its shape: an object of objects with `class_type`.
///
/// # Errors
/// [`Failure::Invalid`] naming the first node that has none.
pub fn prompt_from_value(value: Value) -> Result<Prompt, Failure> {
    let Value::Object(prompt) = value else {
        return Err(Failure::Invalid("workflow: must be an object".into()));
    };
    match prompt.iter().find(|(_, node)| !node.get("class_type").is_some_and(Value::is_string)) {
        None => Ok(prompt),
        Some((id, _)) => Err(Failure::Invalid(format!(
            "workflow: neither a UI workflow (no `nodes`) nor a prompt (node {} has no class_type)",
            quoted(id, 40)
        ))),
    }
}

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

/// Puts `folder/` in front of every `filename_prefix`.
///
/// A repeated prompt would otherwise be answered from ComfyUI's execution cache with the file names
/// of the first run, whose files are gone (COMFYUI, "the execution cache"); this way the saving
/// nodes, and only they, run again. It also keeps the files of two jobs apart.
///
/// # Errors
/// [`Failure::Invalid`] for a prefix that would leave `folder`.
pub fn set_output_folder(prompt: &mut Prompt, folder: &str) -> Result<(), Failure> {
    for (id, node) in prompt.iter_mut() {
        let Some(prefix) = node.get_mut("inputs").and_then(|inputs| inputs.get_mut("filename_prefix")) else {
            continue;
        };
        // A prefix that comes from another node stays: its files are found by the history alone.
        let Some(text) = prefix.as_str() else { continue };
        let leaves = text.starts_with(['/', '\\']) || text.split(['/', '\\']).any(|part| part == "..");
        if leaves || text.contains('\0') {
            return Err(Failure::Invalid(format!(
                "node {}: filename_prefix {} leaves the output folder",
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

/// The title that a person gave the node, else its class.
#[must_use]
pub fn node_title(prompt: &Prompt, id: &str) -> String {
    let node = prompt.get(id);
    let text = |path: &str| node.and_then(|node| node.pointer(path)).and_then(Value::as_str);
    one_line(text("/_meta/title").or_else(|| text("/class_type")).unwrap_or(id), 120)
}
