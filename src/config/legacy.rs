//! The configuration file of the Python ComfyConnector, accepted as it is.

use serde_json::{Map, Value};

use super::reader::Mistake;

/// The original's keys and what they are called here.
const KEYS: &[(&str, Option<&str>)] = &[
    ("API_COMMAND_LINE", Some("comfyui.command")),
    ("API_WORKING_DIRECTORY", Some("comfyui.workdir")),
    ("API_URL", Some("comfyui.host")),
    ("INITIAL_PORT", Some("comfyui.port")),
    ("TEST_PAYLOAD_FILE", Some("comfyui.test_workflow")),
    ("COMFYUI_PATH", Some("comfyui.path")),
    // Their product is the original's boot time limit.
    ("MAX_COMFY_START_ATTEMPTS", None),
    ("COMFY_START_ATTEMPTS_SLEEP", None),
];

pub(super) fn is_legacy(file: &Map<String, Value>) -> bool {
    KEYS.iter().any(|(key, _)| file.contains_key(*key))
}

type Translated = (Vec<(&'static str, String, String)>, Vec<Mistake>);

/// `(key here, value, key there)` for each value, and what is wrong with the file.
pub(super) fn translate(file: &Map<String, Value>) -> Translated {
    let mut values = Vec::new();
    let mut mistakes = Vec::new();
    for (key, value) in file {
        match KEYS.iter().find(|(known, _)| known == key) {
            Some((_, Some(ours))) => match value {
                Value::String(text) => values.push((*ours, text.clone(), key.clone())),
                Value::Number(number) => values.push((*ours, number.to_string(), key.clone())),
                _ => mistakes.push(Mistake::new(key, "must be a string or a number")),
            },
            Some((_, None)) if value.as_f64().is_some_and(|number| number > 0.0) => {}
            Some((_, None)) => mistakes.push(Mistake::new(key, "must be a positive number; for example: 10")),
            None => {
                let near = crate::text::nearest(key, KEYS.iter().map(|(known, _)| (*known).to_owned()));
                mistakes.push(Mistake::new(key, format!("no such setting{near}")));
            }
        }
    }
    let number = |key: &str, default: f64| file.get(key).and_then(Value::as_f64).unwrap_or(default);
    if file.contains_key("MAX_COMFY_START_ATTEMPTS") || file.contains_key("COMFY_START_ATTEMPTS_SLEEP") {
        let seconds = number("MAX_COMFY_START_ATTEMPTS", 10.0) * number("COMFY_START_ATTEMPTS_SLEEP", 1.0);
        let limit = format!("{}ms", (seconds * 1000.0).ceil());
        values.push(("comfyui.boot_timeout", limit, "MAX_COMFY_START_ATTEMPTS".to_owned()));
    }
    (values, mistakes)
}
