//! What ComfyUI runs: a prompt in its API format, told apart from a UI workflow.

use serde_json::{Map, Value};

use crate::{
    failure::Failure,
    text::{one_line, quoted},
};

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

/// How the names of models end, in folders of their own too; other names with a slash are a job's files,
/// `.bin` among them.
const MODELS: [&str; 5] = [".safetensors", ".gguf", ".ckpt", ".pth", ".pt"];

/// Whether that text names a model.
#[must_use]
pub fn is_model_name(text: &str) -> bool {
    MODELS.iter().any(|extension| text.ends_with(extension))
}

/// The models that a prompt names, as its nodes name them: under the folder of their kind.
pub fn models_named(prompt: &Prompt) -> impl Iterator<Item = &str> {
    let inputs = prompt.values().filter_map(|node| node.get("inputs")?.as_object()).flatten();
    inputs.filter_map(|(_, value)| value.as_str()).filter(|text| is_model_name(text))
}

/// The title that a person gave the node, else its class.
#[must_use]
pub fn node_title(prompt: &Prompt, id: &str) -> String {
    let node = prompt.get(id);
    let text = |path: &str| node.and_then(|node| node.pointer(path)).and_then(Value::as_str);
    one_line(text("/_meta/title").or_else(|| text("/class_type")).unwrap_or(id), 120)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use serde_json::json;

    use super::*;

    #[test]
    fn workflows_are_told_apart_by_their_shape() {
        assert!(is_ui_workflow(&json!({"nodes": []})));
        assert!(!is_ui_workflow(&json!({"nodes": {"class_type": "X"}})));
        assert!(prompt_from_value(json!({"3": {"class_type": "KSampler"}})).is_ok());
        for (value, expected) in [
            (json!([]), "workflow: must be an object"),
            (json!({"a": 1}), "(node \"a\" has no class_type)"),
            (json!({"1": {"class_type": "X"}, "b": {"class_type": 3}}), "(node \"b\" has no class_type)"),
        ] {
            assert!(prompt_from_value(value).unwrap_err().to_string().contains(expected), "{expected}");
        }
    }

    #[test]
    fn a_nodes_title_is_fit_for_a_line() {
        let prompt = json!({
            "12:3": {"class_type": "LoadImage", "_meta": {"title": "My\ncat"}}, "3": {"class_type": "KSampler"}});
        let prompt = prompt.as_object().unwrap();
        assert_eq!(node_title(prompt, "12:3"), "My\\ncat");
        assert_eq!(node_title(prompt, "3"), "KSampler");
        assert_eq!(node_title(prompt, "none"), "none");
    }
}
