//! What no frontend writes into a workflow, and what would outlive it in the page: refused before the
//! page sees it.

use contract::text::one_line;
use serde_json::Value;
use uuid::Uuid;

/// Names under which JavaScript keeps what objects have in common.
const SHARED: [&str; 3] = ["__proto__", "constructor", "prototype"];

/// # Errors
/// What is wrong with the workflow.
pub(super) fn check(workflow: &Value) -> Result<(), String> {
    if let Some(place) = shared_name(workflow) {
        return Err(format!("no field may be called so: {}", one_line(&place, 200)));
    }
    let mut pending = vec![workflow];
    while let Some(within) = pending.pop() {
        let groups = within["extra"]["groupNodes"].as_object().into_iter().flatten();
        let lists = groups.map(|(_, group)| &group["nodes"]).chain([&within["nodes"]]);
        for node in lists.filter_map(Value::as_array).flatten() {
            // The page asks what a type is called, and an object's answer can be an exception.
            if matches!(node["type"], Value::Object(_) | Value::Array(_)) {
                return Err(format!(
                    "a node's type is a text, not {}",
                    one_line(&node["type"].to_string(), 100)
                ));
            }
        }
        for subgraph in within["definitions"]["subgraphs"].as_array().into_iter().flatten() {
            // An id is a node type in the page: another one would take the place of a class.
            let id = subgraph["id"].as_str().unwrap_or_default();
            if subgraph.is_object() && !is_uuid(id) {
                return Err(format!(
                    "a subgraph's id is a UUID, not {}",
                    one_line(&subgraph["id"].to_string(), 100)
                ));
            }
            pending.push(subgraph);
        }
    }
    Ok(())
}

/// Where a field has one of the names.
fn shared_name(value: &Value) -> Option<String> {
    match value {
        Value::Array(items) => items
            .iter()
            .enumerate()
            .find_map(|(position, item)| shared_name(item).map(|place| format!("{position}.{place}"))),
        Value::Object(fields) => fields.iter().find_map(|(name, value)| {
            if SHARED.contains(&name.as_str()) {
                return Some(name.clone());
            }
            shared_name(value).map(|place| format!("{name}.{place}"))
        }),
        _ => None,
    }
}

/// As frontends write them: with hyphens.
fn is_uuid(id: &str) -> bool {
    id.len() == 36 && Uuid::try_parse(id).is_ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn names_that_all_objects_share_are_refused_wherever_they_are() {
        for name in SHARED {
            for workflow in [
                json!({"nodes": [], name: {}}),
                json!({"nodes": [{"id": 1, "mode": 2, name: {"nodeData": {}}}]}),
                json!({"nodes": [{"properties": {"deep": [[{name: 1}]]}}]}),
                json!({"nodes": [], "extra": {"groupNodes": {name: {"nodes": []}}}}),
            ] {
                let refused = check(&workflow).unwrap_err();
                assert!(refused.ends_with(name), "{refused}");
            }
        }
        let place = check(&json!({"nodes": [{}, {"flags": {"constructor": 1}}]})).unwrap_err();
        assert!(place.ends_with(": nodes.1.flags.constructor"), "{place}");
        check(&json!({"nodes": [{"type": "constructor", "title": "__proto__"}]})).unwrap();
    }

    #[test]
    fn types_are_texts() {
        let odd = json!({"id": 1, "type": {"toString": 1, "valueOf": 1}});
        for workflow in [
            json!({"nodes": [{"type": "SaveImage"}, odd]}),
            json!({"nodes": [], "extra": {"groupNodes": {"pair": {"nodes": [odd]}}}}),
            json!({"nodes": [], "definitions": {"subgraphs": [
                {"id": "0aa8cf42-9e4d-4e2f-8d5a-000000000001", "nodes": [odd]}]}}),
        ] {
            assert!(check(&workflow).unwrap_err().starts_with("a node's type is a text"), "{workflow}");
        }
        check(&json!({"nodes": [{"type": null}, {}, 3, {"type": 7}], "extra": 3})).unwrap();
    }

    #[test]
    fn subgraphs_have_uuids_also_within_each_other() {
        let with = |id: Value| json!({"nodes": [], "definitions": {"subgraphs": [{"id": id}]}});
        check(&with(json!("0aa8cf42-9e4d-4e2f-8d5a-000000000001"))).unwrap();
        check(&with(json!("0AA8CF42-9E4D-4E2F-8D5A-000000000001"))).unwrap();
        for id in [
            json!("SaveImage"),
            json!(""),
            json!(7),
            json!(null),
            json!("0aa8cf429e4d4e2f8d5a000000000001"),
            json!("{0aa8cf42-9e4d-4e2f-8d5a-00000000001}"),
            json!("workflow>pair"),
        ] {
            assert!(check(&with(id.clone())).is_err(), "{id}");
        }
        let mut nested = with(json!("0aa8cf42-9e4d-4e2f-8d5a-000000000001"));
        nested["definitions"]["subgraphs"][0]["definitions"] = json!({"subgraphs": [{"id": "KSampler"}]});
        assert_eq!(check(&nested).unwrap_err(), r#"a subgraph's id is a UUID, not "KSampler""#);
        // What the page says of these is as clear.
        check(&json!({"nodes": [], "definitions": {"subgraphs": [3]}})).unwrap();
        check(&json!({"nodes": [], "definitions": 3})).unwrap();
    }
}
