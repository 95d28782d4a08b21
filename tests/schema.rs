//! `docs/schema` is what the types make, and judges as the worker does. `UPDATE=1` writes it again.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{env, fs};

use contract::{request::JobRequest, schema};
use proptest::{prelude::*, sample};
use serde_json::{Map, Value, json};
use testbed::{
    checkout,
    contract::{must_be_event, must_be_job, must_be_result},
};

#[test]
fn the_schemas_are_what_the_types_make() {
    for (name, made) in [("job", schema::job()), ("result", schema::result()), ("event", schema::event())] {
        let file = checkout().join(format!("docs/schema/{name}-v1.json"));
        let made = serde_json::to_string_pretty(&made).unwrap() + "\n";
        if env::var_os("UPDATE").is_some() {
            fs::write(&file, &made).unwrap();
        }
        let found = fs::read_to_string(&file).unwrap_or_default();
        assert!(
            found == made,
            "{} is not what the types make: UPDATE=1 cargo test --test schema writes it again",
            file.display()
        );
    }
}

/// Whether the worker takes the body as a job, once it is known that the schema says the same.
fn verdict(body: &Value) -> bool {
    let worker = JobRequest::parse(body.to_string().as_bytes(), None);
    let schema = must_be_job(body);
    assert_eq!(
        worker.is_ok(),
        schema.is_ok(),
        "{body:#}\nthe worker: {:?}\nthe schema: {schema:?}",
        worker.map(drop).map_err(|refused| refused.failure.to_string())
    );
    worker.is_ok()
}

fn sum() -> Value {
    json!("0123456789abcdefABCDEF0123456789abcdefABCDEF01234567890123456789")
}

/// A job with every field.
fn whole() -> Value {
    json!({
        "version": 1,
        "id": "portrait-42",
        "workflow": {"nodes": []},
        "inputs": {
            "10.image": "s3://inputs/cat.png", "6.text": "a red fox", "12:3.seed": 7, "7.on": true, "9.x": null,
            "11.image": {"source": "https://host/m.png", "sha256": sum(), "name": "mask.png"},
            "8.text": {"value": {"source": 1}}, "13.list": ["1", 0], "14.lora.strength": 0.5,
        },
        "files": [
            {"source": "s3://inputs/x.safetensors", "folder": "models", "subfolder": "loras", "name": "y.safetensors",
             "overwrite": true, "ephemeral": true, "sha256": sum()},
            {"source": "s3://inputs/x.png", "folder": "input"},
        ],
        "output": {"uri": "s3://outputs/renders", "include_temp": true, "presign_seconds": 3600},
        "timeout_seconds": 900.5, "allow_partial": true,
        "api_key_comfy_org": "comfy-key",
        "metadata": {"any": ["thing", 1.5]},
    })
}

/// A job in RunPod's form, with every field.
fn runpod() -> Value {
    json!({
        "id": "portrait-42", "webhook": "https://host/", "policy": {}, "s3Config": {},
        "input": {
            "workflow": {"nodes": []},
            "images": [{"name": "a.png", "image": "AAAA"}, {"name": "b.png", "image": "data:;base64,AA==", "more": 1}],
            "comfy_org_api_key": "comfy-key",
        },
        "metadata": 5, "inputs": {"1.x": 2}, "output": {}, "timeout_seconds": 5,
    })
}

#[test]
fn jobs_are_taken_by_both() {
    for body in [
        whole(),
        runpod(),
        json!({"workflow": {}}),
        json!({"workflow_uri": "s3://inputs/workflow.json"}),
        json!({"workflow": {}, "workflow_uri": null, "version": null, "id": null, "timeout_seconds": null,
               "api_key_comfy_org": null, "metadata": null, "output": {"uri": null, "presign_seconds": null},
               "files": [{"source": "", "folder": "temp", "subfolder": null, "name": null, "sha256": null}]}),
        json!({"input": {"workflow": {}, "images": null, "comfy_org_api_key": null}}),
        json!({"input": {"workflow": {}}, "api_key_comfy_org": "x"}),
    ] {
        assert!(verdict(&body), "{body}");
    }
}

#[test]
fn what_is_no_job_is_refused_by_both() {
    let in_file = |key: &str, value: Value| {
        let mut file = json!({"source": "s3://b/x", "folder": "input"});
        file[key] = value;
        json!({"files": [file]})
    };
    let in_input = |value: Value| json!({"inputs": {"1.image": value}});
    let refused = [
        json!({"timeout_second": 1}),
        json!({"__proto__": {}}),
        json!({"input": {"workflow": {}}}),
        json!({"workflow": null}),
        json!({"workflow": []}),
        json!({"workflow": "x"}),
        json!({"workflow_uri": "s3://inputs/w.json"}),
        json!({"workflow": null, "workflow_uri": 1}),
        json!({"version": 2}),
        json!({"version": 0}),
        json!({"version": "1"}),
        json!({"id": ""}),
        json!({"id": "../other"}),
        json!({"id": "_x"}),
        json!({"id": "a\n"}),
        json!({"id": "ä"}),
        json!({"id": "x".repeat(129)}),
        json!({"id": 7}),
        json!({"inputs": []}),
        json!({"inputs": null}),
        json!({"inputs": {"image": 1}}),
        json!({"inputs": {".image": 1}}),
        json!({"inputs": {"10.": 1}}),
        in_input(json!({})),
        in_input(json!({"source": 5})),
        in_input(json!({"source": "s3://b", "md5": ""})),
        in_input(json!({"source": "s3://b", "value": 1})),
        in_input(json!({"value": 1, "source_": ""})),
        in_input(json!({"source": "s3://b", "sha256": "a".repeat(63)})),
        json!({"files": {}}),
        json!({"files": [7]}),
        json!({"files": [{"folder": "input"}]}),
        json!({"files": [{"source": "s3://b"}]}),
        in_file("folder", json!("custom_nodes")),
        in_file("folder", json!("models")),
        in_file("sha256", json!("g".repeat(64))),
        in_file("overwrite", json!(null)),
        in_file("x", json!(1)),
        json!({"files": [{"source": "s3://b", "folder": "models", "subfolder": ""}]}),
        json!({"files": [{"source": "s3://b", "folder": "models", "subfolder": null}]}),
        json!({"output": null}),
        json!({"output": {"url": "x"}}),
        json!({"output": {"include_temp": "yes"}}),
        json!({"output": {"presign_seconds": 0}}),
        json!({"output": {"presign_seconds": -1}}),
        json!({"output": {"presign_seconds": 604_801}}),
        json!({"output": {"presign_seconds": 1.5}}),
        json!({"timeout_seconds": 0}),
        json!({"timeout_seconds": -5}),
        json!({"timeout_seconds": 1e-300}),
        json!({"timeout_seconds": 604_801}),
        json!({"timeout_seconds": "900"}),
        json!({"allow_partial": 1}),
        json!({"api_key_comfy_org": 1}),
    ];
    for fields in refused {
        let mut body = json!({"workflow": {"nodes": []}});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        assert!(!verdict(&body), "{body}");
    }
    for input in [
        json!(null),
        json!([]),
        json!({}),
        json!({"workflow": null}),
        json!({"workflow": []}),
        json!({"workflow": {}, "image": []}),
        json!({"workflow": {}, "images": {}}),
        json!({"workflow": {}, "images": [{"name": "a.png"}]}),
        json!({"workflow": {}, "images": [{"name": 1, "image": ""}]}),
        json!({"workflow": {}, "images": ["a"]}),
        json!({"workflow": {}, "comfy_org_api_key": 1}),
    ] {
        let body = json!({"input": input});
        assert!(!verdict(&body), "{body}");
    }
    let two_keys = json!({"input": {"workflow": {}, "comfy_org_api_key": "x"}, "api_key_comfy_org": "x"});
    assert!(!verdict(&two_keys));
    for body in [json!(null), json!([]), json!("text"), json!({}), json!({"workflow_uri": null, "input": {}})]
    {
        assert!(!verdict(&body), "{body}");
    }
}

/// What a schema cannot say; the worker refuses it alone.
#[test]
fn a_schema_says_less_than_the_worker() {
    let twice = json!({"input": {"workflow": {}, "images": [
        {"name": "a.png", "image": "AAAA"}, {"name": "a.png", "image": "BBBB"},
    ]}});
    let whole_number = json!({"workflow": {}, "output": {"presign_seconds": 60.0}});
    for body in [twice, whole_number] {
        assert!(must_be_job(&body).is_ok(), "{body}");
        assert!(JobRequest::parse(body.to_string().as_bytes(), None).is_err(), "{body}");
    }
}

/// Values that stand in jobs, and others that must not stand where they come.
fn values() -> impl Strategy<Value = Value> {
    sample::select(vec![
        json!(null),
        json!(true),
        json!(0),
        json!(1),
        json!(2),
        json!(-1),
        json!(0.5),
        json!(3600),
        json!(1e9),
        json!(""),
        json!("a"),
        json!("models"),
        json!("input"),
        json!("s3://b/x"),
        json!("data:,"),
        json!(".x"),
        json!("1.x"),
        sum(),
        json!([]),
        json!([1]),
        json!({}),
        json!({"value": 1}),
        json!({"source": "s3://b/x"}),
        json!({"1.x": 1}),
        json!({"x": 1}),
        json!({"workflow": {}}),
        json!([{"source": "s3://b/x", "folder": "models"}]),
        json!({"presign_seconds": 7}),
    ])
}

/// A step of a path: a key that jobs have somewhere, or one that they have not.
fn keys() -> impl Strategy<Value = &'static str> {
    sample::select(vec![
        "version",
        "id",
        "workflow",
        "workflow_uri",
        "inputs",
        "files",
        "output",
        "timeout_seconds",
        "allow_partial",
        "api_key_comfy_org",
        "metadata",
        "input",
        "images",
        "comfy_org_api_key",
        "webhook",
        "source",
        "sha256",
        "name",
        "folder",
        "subfolder",
        "overwrite",
        "ephemeral",
        "uri",
        "include_temp",
        "presign_seconds",
        "value",
        "image",
        "typo",
        "1.x",
        "x.",
        "11.image",
    ])
}

/// Objects of a body: itself, and those in it.
fn places(body: &Value) -> Vec<String> {
    fn walk(value: &Value, path: &str, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                found.push(path.to_owned());
                fields.iter().for_each(|(key, value)| {
                    walk(value, &format!("{path}/{}", key.replace('/', "~1")), found)
                });
            }
            Value::Array(items) => {
                items
                    .iter()
                    .enumerate()
                    .for_each(|(index, item)| walk(item, &format!("{path}/{index}"), found));
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    walk(body, "", &mut found);
    found
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Two changes to a whole job at places chosen by chance: fields set to something else, or gone.
    #[test]
    fn worker_and_schema_agree(
        which in 0..2,
        changes in prop::collection::vec((any::<sample::Index>(), keys(), prop::option::of(values())), 1..4),
    ) {
        let mut body = if which == 0 { whole() } else { runpod() };
        for (place, key, value) in changes {
            let places = places(&body);
            let fields: &mut Map<String, Value> =
                body.pointer_mut(place.get(&places).as_str()).unwrap().as_object_mut().unwrap();
            match value {
                Some(value) => { fields.insert(key.to_owned(), value); }
                None => { fields.shift_remove(key); }
            }
        }
        verdict(&body);
    }
}

#[test]
fn results_and_events_are_told_from_what_is_none() {
    let event = json!({"version": 1, "id": "job", "seq": 7, "at": 1_700_000_000_000_u64, "attempt": 1, "worker": "w",
        "event": "progress", "node": "3", "title": "KSampler", "value": 4.0, "max": 20.0, "fraction": 0.25});
    must_be_event(&event).unwrap();
    let output = json!({"node": "4", "key": "text", "index": 0, "kind": "text", "text": "…"});
    let result = json!({
        "version": 1, "id": "job", "status": "succeeded", "outputs": [output], "history": null, "prompt": null,
        "error": {"code": "poison", "stage": "accept", "message": "no"}, "warnings": [],
        "timings": {"queued_ms": 3, "staged_ms": 12, "converted_ms": 0, "waited_ms": 1, "executed_ms": 2500,
                    "uploaded_ms": 40, "total_ms": 2560},
        "nodes": {"9": {"ms": 31.2, "cached": false}}, "attempt": 1,
        "worker": {"id": "w", "version": "0.1.0", "comfyui_version": ""}, "metadata": null,
    });
    must_be_result(&result).unwrap();
    let broken = |pointer: &str, value: Value| {
        let (mut event, mut result) = (event.clone(), result.clone());
        for document in [&mut event, &mut result] {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            if let Some(place) = document.pointer_mut(parent).and_then(Value::as_object_mut) {
                match &value {
                    Value::Null => {
                        place.shift_remove(key);
                    }
                    value => {
                        place.insert(key.to_owned(), value.clone());
                    }
                }
            }
        }
        (must_be_event(&event), must_be_result(&result))
    };
    for (pointer, value) in
        [("/version", json!(2)), ("/id", json!("../x")), ("/attempt", json!(0)), ("/new", json!(1))]
    {
        let (event, result) = broken(pointer, value);
        assert!(event.is_err() && result.is_err(), "{pointer}");
    }
    for (pointer, value) in [("/event", json!("preview")), ("/fraction", Value::Null), ("/seq", json!(-1))] {
        assert!(broken(pointer, value).0.is_err(), "{pointer}");
    }
    for (pointer, value) in [
        ("/status", json!("done")),
        ("/error/code", json!("new")),
        ("/outputs/0/text", Value::Null),
        ("/metadata", Value::Null),
        ("/timings/new_ms", json!(1)),
        ("/worker/id", json!(1)),
        ("/outputs", json!([{"node": "4"}])),
    ] {
        assert!(broken(pointer, value).1.is_err(), "{pointer}");
    }
}
