//! The configuration file of the Python ComfyConnector, accepted as it is.

use serde_json::{Map, Value};

use super::reader::Mistake;

const ATTEMPTS: &str = "MAX_COMFY_START_ATTEMPTS";
const ATTEMPT_SECONDS: &str = "COMFY_START_ATTEMPTS_SLEEP";

/// The original's keys, what they are called here, and an example.
const KEYS: &[(&str, Option<&str>, &str)] = &[
    ("API_COMMAND_LINE", Some("comfyui.command"), "\"python3 main.py\""),
    ("API_WORKING_DIRECTORY", Some("comfyui.workdir"), "\"./\""),
    ("API_URL", Some("comfyui.host"), "\"127.0.0.1\""),
    ("INITIAL_PORT", Some("comfyui.port"), "8188"),
    ("TEST_PAYLOAD_FILE", Some("comfyui.test_workflow"), "\"test_server.json\""),
    ("COMFYUI_PATH", Some("comfyui.path"), "\"./\""),
    // Their product is the original's boot time limit.
    (ATTEMPTS, None, "10"),
    (ATTEMPT_SECONDS, None, "1.0"),
];

pub(super) fn is_legacy(file: &Map<String, Value>) -> bool {
    KEYS.iter().any(|(key, ..)| file.contains_key(*key))
}

type Translated = (Vec<(&'static str, String, String)>, Vec<Mistake>);

/// `(key here, value, key there)` for each value, and what is wrong with the file called `name`.
pub(super) fn translate(file: &Map<String, Value>, name: &str) -> Translated {
    let mut values = Vec::new();
    let mut mistakes = Vec::new();
    for (key, value) in file {
        let mut mistake = |problem: String| mistakes.push(Mistake::new(key, problem));
        match (KEYS.iter().find(|(known, ..)| known == key), value) {
            (Some((_, Some(ours), _)), Value::String(text)) => {
                values.push((*ours, text.clone(), key.clone()))
            }
            (Some((_, Some(ours), _)), Value::Number(number)) => {
                values.push((*ours, number.to_string(), key.clone()));
            }
            (Some((_, Some(_), example)), _) => {
                mistake(format!("must be a text or a number ({name}); for example: {example}"));
            }
            (Some((_, None, _)), value) if value.as_f64().is_some_and(|number| number > 0.0) => {}
            (Some((_, None, example)), _) => {
                mistake(format!("must be a positive number ({name}); for example: {example}"));
            }
            (None, _) => {
                let near = contract::text::nearest(key, KEYS.iter().map(|(known, ..)| (*known).to_owned()));
                mistake(format!("no such setting ({name}){near}"));
            }
        }
    }
    let number = |key: &str, default: f64| file.get(key).and_then(Value::as_f64).unwrap_or(default);
    if let Some(given) = [ATTEMPTS, ATTEMPT_SECONDS].into_iter().find(|key| file.contains_key(*key)) {
        let seconds = number(ATTEMPTS, 10.0) * number(ATTEMPT_SECONDS, 1.0);
        if seconds > 0.0 {
            let limit = format!("{}ms", (seconds * 1000.0).ceil());
            values.push(("comfyui.boot_timeout", limit, given.to_owned()));
        }
    }
    (values, mistakes)
}
