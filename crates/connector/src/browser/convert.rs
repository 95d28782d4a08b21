//! What goes into the page and what comes out of it; no browser in here.

use contract::text::one_line;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Conversion, ConvertError, hostile};

/// Longest word of the frontend that goes into an error.
const MESSAGE_CHARS: usize = 500;

/// What the page made of a workflow.
#[derive(Debug)]
pub(super) enum Answer {
    Converted {
        prompt: Map<String, Value>,
        workflow: Value,
        /// The answer as text, when the next conversion of the workflow would give the same.
        lasting: Option<String>,
        /// What it left behind in the page, which is then of no use any more.
        worn: Option<String>,
    },
    /// Not converted: what earlier workflows left behind in the page.
    Worn(String),
    /// Sorted, each once.
    Missing(Vec<String>),
    Refused(String),
}

#[derive(Deserialize)]
struct Reply {
    output: Option<Map<String, Value>>,
    #[serde(default)]
    workflow: Value,
    missing: Option<Vec<String>>,
    refused: Option<String>,
    #[serde(default)]
    varies: bool,
    worn: Option<String>,
}

impl Answer {
    /// Reads what `convert.js` returned.
    ///
    /// # Errors
    /// The text is none of its forms.
    pub(super) fn parse(text: String) -> Result<Self, String> {
        let reply: Reply = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        match reply {
            Reply { missing: Some(mut types), .. } => {
                for name in &mut types {
                    *name = one_line(name, 200);
                }
                types.sort_unstable();
                types.dedup();
                Ok(Self::Missing(types))
            }
            Reply { refused: Some(text), .. } => Ok(Self::Refused(one_line(text.trim(), MESSAGE_CHARS))),
            Reply { output: Some(prompt), workflow, varies, worn, .. } => {
                let worn = worn.map(|reason| one_line(&reason, 200));
                Ok(Self::Converted { prompt, workflow, lasting: (!varies).then_some(text), worn })
            }
            Reply { worn: Some(reason), .. } => Ok(Self::Worn(one_line(&reason, 200))),
            _ => Err("it is empty".into()),
        }
    }
}

impl Conversion {
    pub(super) fn new(prompt: Map<String, Value>, workflow: Value, source: &Value) -> Self {
        let warnings = rounded_numbers(source, &prompt);
        Self { prompt, workflow, warnings }
    }
}

/// The workflow as text, when it has the shape of one.
///
/// # Errors
/// [`ConvertError::Refused`]: for anything but an object the frontend would load its default
/// workflow, and convert that; and what is hostile to other workflows.
pub(super) fn text_of(workflow: &Value) -> Result<String, ConvertError> {
    if !workflow.get("nodes").is_some_and(Value::is_array) {
        return Err(ConvertError::Refused("a UI workflow is an object with a list of nodes".into()));
    }
    hostile::check(workflow).map_err(ConvertError::Refused)?;
    serde_json::to_string(workflow)
        .map_err(|error| ConvertError::Refused(one_line(&error.to_string(), MESSAGE_CHARS)))
}

/// Whether the frontend may make another prompt of this workflow each time: a text offers a choice
/// (`{red|blue}`) or names the date (`%date:yyyy-MM-dd%`). Any text but a note's counts. Escapes and
/// comments are not looked at: a comment can take an escape with it.
pub(super) fn is_dynamic(workflow: &Value) -> bool {
    match workflow {
        Value::String(text) => {
            text.contains("%date:") || text.split_once('{').is_some_and(|(_, rest)| rest.contains('|'))
        }
        Value::Array(items) => items.iter().any(is_dynamic),
        Value::Object(fields) => {
            let is_note = matches!(fields.get("type").and_then(Value::as_str), Some("Note" | "MarkdownNote"));
            !is_note && fields.values().any(is_dynamic)
        }
        _ => false,
    }
}

/// A warning for each integer that JavaScript cannot hold exactly, in nodes that run.
fn rounded_numbers(source: &Value, prompt: &Map<String, Value>) -> Vec<String> {
    let mut warnings = Vec::new();
    for node in source["nodes"].as_array().into_iter().flatten() {
        // A muted node's number goes nowhere; a virtual one's (a primitive's) goes elsewhere.
        let muted = matches!(node["mode"].as_u64(), Some(2 | 4));
        if !muted || prompt.contains_key(&plain(&node["id"])) {
            warn_of(node, "", &mut warnings);
        }
    }
    let mut pending = vec![source];
    while let Some(within) = pending.pop() {
        for subgraph in within["definitions"]["subgraphs"].as_array().into_iter().flatten() {
            let place = format!(" in subgraph {}", one_line(subgraph["name"].as_str().unwrap_or("?"), 60));
            for node in subgraph["nodes"].as_array().into_iter().flatten() {
                warn_of(node, &place, &mut warnings);
            }
            pending.push(subgraph);
        }
    }
    for (name, group) in source["extra"]["groupNodes"].as_object().into_iter().flatten() {
        let place = format!(" in group node {}", one_line(name, 60));
        for node in group["nodes"].as_array().into_iter().flatten() {
            warn_of(node, &place, &mut warnings);
        }
    }
    warnings
}

fn warn_of(node: &Value, place: &str, warnings: &mut Vec<String>) {
    let mut visit = |position: String, value: &Value| {
        if let Some(rounded) = rounded(value) {
            let id = one_line(&plain(if node["id"].is_null() { &node["index"] } else { &node["id"] }), 40);
            warnings.push(format!(
                "node {id}{place}: {value} (widgets_values {position}) is no number that the frontend can \
                 hold, it became {rounded}; give it through inputs to keep it exact"
            ));
        }
    };
    match &node["widgets_values"] {
        Value::Array(values) => {
            for (position, value) in values.iter().enumerate() {
                visit(position.to_string(), value);
            }
        }
        Value::Object(values) => {
            for (name, value) in values {
                visit(one_line(name, 60), value);
            }
        }
        _ => {}
    }
}

/// What JavaScript makes of this integer, when that is another one.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
fn rounded(value: &Value) -> Option<i128> {
    let exact = value.as_u64().map(i128::from).or_else(|| value.as_i64().map(i128::from))?;
    // To i128 and back: a cast to u64 would saturate and hide the difference at its maximum.
    let held = exact as f64 as i128;
    (held != exact).then_some(held)
}

fn plain(id: &Value) -> String {
    id.as_str().map_or_else(|| id.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_looks_like_a_workflow_goes_in() {
        for garbage in [json!(null), json!(7), json!("{}"), json!([]), json!({}), json!({"nodes": {}})] {
            assert!(matches!(text_of(&garbage), Err(ConvertError::Refused(_))), "{garbage}");
        }
        assert!(text_of(&json!({"nodes": []})).is_ok());
    }

    #[test]
    fn answers_are_told_apart() {
        let converted = Answer::parse(r#"{"output": {}, "workflow": {"nodes": []}}"#.into()).unwrap();
        assert!(matches!(converted, Answer::Converted { prompt, lasting: Some(_), .. } if prompt.is_empty()));
        let drawn = Answer::parse(r#"{"output": {}, "varies": true}"#.into()).unwrap();
        assert!(matches!(drawn, Answer::Converted { lasting: None, .. }));
        let Answer::Missing(types) = Answer::parse(r#"{"missing": ["b", "a", "b"]}"#.into()).unwrap() else {
            panic!()
        };
        assert_eq!(types, ["a", "b"]);
        let Answer::Refused(text) = Answer::parse(r#"{"refused": "one\ntwo"}"#.into()).unwrap() else {
            panic!()
        };
        assert_eq!(text, r"one\ntwo");
        let Answer::Worn(text) = Answer::parse(r#"{"worn": "node type.SaveImage"}"#.into()).unwrap() else {
            panic!()
        };
        assert_eq!(text, "node type.SaveImage");
        let last = Answer::parse(r#"{"output": {}, "worn": "a class"}"#.into()).unwrap();
        assert!(matches!(last, Answer::Converted { worn: Some(_), .. }));
        assert!(Answer::parse(String::new()).is_err());
        assert!(Answer::parse("{}".into()).is_err());
    }

    #[test]
    fn dynamic_texts_are_found_wherever_they_are() {
        let text =
            |text: &str| json!({"nodes": [{"id": 1, "type": "CLIPTextEncode", "widgets_values": [text]}]});
        for dynamic in
            ["a {red|blue} fox", "{a|b", "{{a|b}|c}", r"\{a|b}", r"\/* */\{a|b}", "x/%date:yyyy-MM-dd%"]
        {
            assert!(is_dynamic(&text(dynamic)), "{dynamic}");
        }
        for fixed in ["", "a fox", "{red}", "a | b", "a | {b}", r#"{"a": 1}"#, "%KSampler.seed%", "/* {a */"]
        {
            assert!(!is_dynamic(&text(fixed)), "{fixed}");
        }
        let node = |kind: &str| json!({"type": kind, "widgets_values": {"deep": [["{a|b}"]]}});
        for workflow in [
            json!({"nodes": [], "definitions": {"subgraphs": [{"nodes": [node("Any")]}]}}),
            json!({"nodes": [], "extra": {"groupNodes": {"g": {"nodes": [node("Any")]}}}}),
        ] {
            assert!(is_dynamic(&workflow), "{workflow}");
        }
        assert!(!is_dynamic(&json!({"nodes": [node("Note"), node("MarkdownNote")]})));
    }

    #[test]
    fn rounded_numbers_are_named() {
        let source = json!({
            "nodes": [
                {"id": 3, "widgets_values": [u64::MAX, "fixed", 9_007_199_254_740_993_u64, 1.5, 9_007_199_254_740_992_u64]},
                {"id": 4, "widgets_values": {"seed": -9_007_199_254_740_993_i64}},
                {"id": 5, "mode": 2, "widgets_values": [u64::MAX]},
            ],
            "definitions": {"subgraphs": [{"name": "inner", "nodes": [{"id": 8, "widgets_values": [u64::MAX - 1]}]}]},
        });
        let prompt = json!({"3": {}, "4": {}});
        let warnings = rounded_numbers(&source, prompt.as_object().unwrap());
        assert_eq!(warnings.len(), 4, "{warnings:#?}");
        assert!(warnings[0].contains("node 3: 18446744073709551615 (widgets_values 0)"));
        assert!(warnings[0].contains("18446744073709551616"));
        assert!(warnings[1].contains("9007199254740993 (widgets_values 2)"));
        assert!(warnings[2].contains("node 4: -9007199254740993 (widgets_values seed)"));
        assert!(warnings[3].contains("node 8 in subgraph inner"));
    }
}
