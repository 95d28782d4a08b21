//! What runs before the first job: conversion, execution on the device, result.

use std::fs;

use serde_json::{Map, Value, json};

use super::ConnectorError;
use crate::config::ConnectorConfig;

/// The built-in [`SelfTest::workflow`].
const SELF_TEST: &str = include_str!("selftest.json");

/// What must run before anybody is served.
pub(super) struct SelfTest {
    /// A UI workflow; one of the operator's may be a prompt.
    pub(super) workflow: Value,
    /// The prompt that it becomes, where that is known.
    pub(super) becomes: Option<Value>,
}

/// As the expected prompt is written: titles are for people.
pub(super) fn without_titles(mut prompt: Map<String, Value>) -> Value {
    for node in prompt.values_mut().filter_map(Value::as_object_mut) {
        node.remove("_meta");
    }
    Value::Object(prompt)
}

/// The operator's, or the built-in one.
pub(super) fn self_test(config: &ConnectorConfig) -> Result<SelfTest, ConnectorError> {
    let problem = ConnectorError::TestWorkflow;
    let parse = |text: &str| {
        serde_json::from_str(text).map_err(|error| problem(format!("the test workflow is no JSON: {error}")))
    };
    match &config.comfyui.test_workflow {
        Some(path) if path.exists() => {
            let text = fs::read_to_string(path);
            let text = text.map_err(|error| problem(format!("{}: {error}", path.display())))?;
            return Ok(SelfTest { workflow: parse(&text)?, becomes: None });
        }
        // The original's file names a test workflow by default; without that file ours is as good.
        Some(path) => {
            tracing::warn!(path = %path.display(), "no such test workflow, using the built-in one");
        }
        None => {}
    }
    Ok(SelfTest { workflow: parse(SELF_TEST)?, becomes: Some(on_device()) })
}

/// The prompt that the built-in workflow becomes.
pub(super) fn on_device() -> Value {
    json!({
        "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 0}},
        // Computes on the device: a card that fell off the bus is found before a job is.
        "2": {"class_type": "ImageBlur", "inputs": {"image": ["1", 0], "blur_radius": 1, "sigma": 1.5}},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
    })
}
