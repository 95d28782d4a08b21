//! Prompts and workflows.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use testbed::checkout;

/// A node of a prompt.
pub(crate) fn node(class: &str, inputs: Value) -> Value {
    json!({"class_type": class, "inputs": inputs})
}

/// 1 loads a picture, 2 inverts it, 3 saves it.
pub(crate) fn invert(image: &str) -> Value {
    json!({
        "1": node("LoadImage", json!({"image": image})),
        "2": node("ImageInvert", json!({"image": ["1", 0]})),
        "3": node("SaveImage", json!({"images": ["2", 0], "filename_prefix": "inverted"})),
    })
}

/// 1 makes small pictures of one color.
pub(crate) fn color(color: u32, count: u32) -> Value {
    node("EmptyImage", json!({"width": 16, "height": 16, "batch_size": count, "color": color}))
}

/// 1 makes pictures of one color, 2 saves them.
pub(crate) fn save(of_color: u32, prefix: &str) -> Value {
    json!({
        "1": color(of_color, 1),
        "2": node("SaveImage", json!({"images": ["1", 0], "filename_prefix": prefix})),
    })
}

/// A single node of the stand-in's.
pub(crate) fn alone(class: &str, inputs: Value) -> Value {
    json!({"1": node(class, inputs)})
}

/// [`invert`] as a UI workflow: node 1 loads `example.png`.
pub(crate) fn invert_workflow() -> Result<Value> {
    let file = invert_workflow_file();
    let text = std::fs::read(&file).with_context(|| format!("cannot read {file}"))?;
    serde_json::from_slice(&text).with_context(|| format!("{file}: no JSON"))
}

/// Where that one lies.
pub(crate) fn invert_workflow_file() -> String {
    checkout().join("tests/fixtures/workflows/invert-ui.json").display().to_string()
}
