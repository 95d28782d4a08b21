#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use secrecy::ExposeSecret;
use serde_json::json;

use super::*;

fn parse(body: &Value) -> Result<JobRequest, Box<Refused>> {
    JobRequest::parse(body.to_string().as_bytes(), None)
}

/// A job with these fields beside a workflow.
fn with(fields: Value) -> Result<JobRequest, Box<Refused>> {
    let mut body = json!({"workflow": {"nodes": []}});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    parse(&body)
}

/// Why these fields make a job invalid.
fn refusal(fields: Value) -> String {
    let shown = fields.to_string();
    match with(fields).expect_err(&shown).failure {
        Failure::Invalid(problem) => problem,
        other => panic!("{shown}: {other:?}"),
    }
}

fn malformed(body: &[u8]) -> String {
    match JobRequest::parse(body, None).unwrap_err().failure {
        Failure::Malformed(problem) => problem,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_field_is_understood() {
    let sum = "0123456789abcdefABCDEF0123456789abcdefABCDEF01234567890123456789";
    let job = parse(&json!({
        "version": 1,
        "id": "portrait-42",
        "workflow": {"nodes": []},
        "inputs": {
            "10.image": "s3://inputs/cat.png", "6.text": "a red fox", "12:3.seed": 7, "7.on": true, "9.x": null,
            "11.image": {"source": "https://host/m.png", "sha256": sum, "name": "mask.png"},
            "8.text": {"value": "s3://not-a-file"}, "13.list": ["1", 0], "14.lora.strength": 0.5,
            "15.image": "data:image/png;base64,AA==", "16.url": "https://may.stay/text",
            "17.url": {"value": "https://stays.a/text"},
        },
        "files": [
            {"source": "s3://inputs/x.safetensors", "folder": "models", "subfolder": "loras", "name": "y.safetensors",
             "overwrite": true, "ephemeral": true, "sha256": sum},
            {"source": "s3://inputs/x.png", "folder": "input"},
        ],
        "output": {"uri": "s3://outputs/renders", "include_temp": true, "presign_seconds": 3600},
        "timeout_seconds": 900.5, "allow_partial": true,
        "api_key_comfy_org": "comfy-key",
        "metadata": {"any": ["thing", 1.5]},
    }))
    .unwrap();
    assert_eq!(job.id.as_str(), "portrait-42");
    assert_eq!(job.workflow, WorkflowSource::Inline(json!({"nodes": []})));
    let input = |address: &str| job.inputs[&address.parse::<NodeInput>().unwrap()].clone();
    let file = |source: &str| FileSource { source: source.into(), sha256: None, name: None };
    assert_eq!(input("10.image"), InputValue::File(file("s3://inputs/cat.png")));
    assert_eq!(input("15.image"), InputValue::File(file("data:image/png;base64,AA==")));
    let mask = FileSource {
        source: "https://host/m.png".into(),
        sha256: Some(sum.into()),
        name: Some("mask.png".into()),
    };
    assert_eq!(input("11.image"), InputValue::File(mask));
    for (address, literal) in [
        ("6.text", json!("a red fox")),
        ("12:3.seed", json!(7)),
        ("7.on", json!(true)),
        ("9.x", json!(null)),
        ("8.text", json!("s3://not-a-file")),
        ("13.list", json!(["1", 0])),
        ("14.lora.strength", json!(0.5)),
        ("17.url", json!("https://stays.a/text")),
    ] {
        assert_eq!(input(address), InputValue::Literal(literal), "{address}");
    }
    assert_eq!(input("16.url"), InputValue::Address("https://may.stay/text".into()));
    let model = &job.files[0];
    assert_eq!((model.folder, model.subfolder.as_deref()), (FolderType::Models, Some("loras")));
    assert!(model.overwrite && model.ephemeral && model.name.as_deref() == Some("y.safetensors"));
    let plain = &job.files[1];
    assert_eq!((plain.folder, plain.name.as_deref(), plain.overwrite), (FolderType::Input, None, false));
    let output = OutputRequest {
        uri: Some("s3://outputs/renders".into()),
        include_temp: true,
        presign_seconds: Some(3600),
    };
    assert_eq!(job.output, output);
    assert_eq!(job.timeout, Some(Duration::from_millis(900_500)));
    assert!(job.allow_partial);
    assert_eq!(job.api_key_comfy_org.as_ref().unwrap().expose_secret(), "comfy-key");
    assert_eq!(job.metadata, Some(json!({"any": ["thing", 1.5]})));
    assert!(!format!("{job:?}").contains("comfy-key"));
}

#[test]
fn a_job_is_a_workflow_and_nothing_more() {
    let body = br#"{"workflow_uri": "s3://inputs/workflow.json"}"#;
    let job = JobRequest::parse(body, None).unwrap();
    assert_eq!(job.workflow, WorkflowSource::At("s3://inputs/workflow.json".into()));
    assert_eq!((job.timeout, job.allow_partial, job.metadata), (None, false, None));
    assert!(job.inputs.is_empty() && job.files.is_empty() && job.named_files.is_empty());
    assert_eq!(job.output, OutputRequest::default());
    assert_eq!(job.digest, digest_of(body));
    assert_eq!(job.id.as_str(), job.digest);
}

#[test]
fn null_is_absent() {
    let job = with(json!({"version": null, "id": null, "timeout_seconds": null, "metadata": null,
        "output": {"uri": null, "presign_seconds": null}}));
    assert!(job.is_ok());
}

#[test]
fn the_id_is_the_bodys_else_the_messages_else_the_digest() {
    let id = |body: &str, message_id| JobRequest::parse(body.as_bytes(), message_id).unwrap().id.to_string();
    assert_eq!(id(r#"{"id": "own", "workflow": {}}"#, Some("message")), "own");
    assert_eq!(id(r#"{"workflow": {}}"#, Some("message")), "message");
    // A message id that cannot be a job's is nobody's mistake.
    let digest = id(r#"{"workflow": {}}"#, None);
    assert_eq!(id(r#"{"workflow": {}}"#, Some("../other")), digest);
    assert_eq!(digest.len(), 64);
}

#[test]
fn ids() {
    for id in ["a", "9", "portrait-42", "A.b_c-d", &"x".repeat(128), "a..", "a.json"] {
        assert_eq!(id.parse::<JobId>().unwrap().as_str(), id);
    }
    let hostile = [
        "",
        ".",
        "..",
        "../other",
        "a/b",
        "/etc/passwd",
        "a\\b",
        "a b",
        "-rf",
        "_x",
        ".hidden",
        "a\0",
        "a\n",
        "\u{1b}[31m",
        "a\u{202e}b",
        "ä",
        "a#",
        "a*",
        "%2e%2e%2f",
        &"x".repeat(129),
        "a,b",
    ];
    for id in hostile {
        let problem = id.parse::<JobId>().unwrap_err();
        assert!(problem.contains("must be 1-128 of A-Z a-z 0-9 . _ -"), "{problem}");
        assert!(!problem.contains(crate::text::is_treacherous), "{problem:?}");
        assert!(refusal(json!({"id": id})).starts_with("id: the job id "), "{id}");
    }
    assert!(refusal(json!({"id": 7})).starts_with("id: invalid type: integer `7`"));
    // Who published it can still be answered, with what he wants back.
    let body = json!({"id": "../other", "workflow": {}, "metadata": 5});
    let refused = JobRequest::parse(body.to_string().as_bytes(), Some("message")).unwrap_err();
    assert_eq!((refused.id.unwrap().as_str(), refused.metadata), ("message", Some(json!(5))));
    let refused = with(json!({"id": "good", "metadata": [1], "typo": 1})).unwrap_err();
    assert_eq!((refused.id.unwrap().as_str(), refused.metadata), ("good", Some(json!([1]))));
}

#[test]
fn unknown_fields_are_refused_with_their_path_at_every_level() {
    for (fields, expected) in [
        (
            json!({"timeout_second": 1}),
            "timeout_second: unknown field `timeout_second`, expected one of `version`",
        ),
        (json!({"output": {"url": "x"}}), "output.url: unknown field `url`, expected one of `uri`"),
        (
            json!({"files": [{"source": "s3://b", "folder": "input"}, {"source": "s3://b", "folder": "input", "x": 1}]}),
            "files[1].x: unknown field `x`, expected one of `source`",
        ),
        (
            json!({"inputs": {"1.image": {"source": "s3://b", "md5": ""}}}),
            "inputs.1.image: md5: unknown field `md5`",
        ),
        (
            json!({"inputs": {"1.image": {"value": 1, "source_": ""}}}),
            "inputs.1.image: unknown field `source_`",
        ),
        (json!({"__proto__": {}}), "__proto__: unknown field `__proto__`"),
        (json!({"input": {"workflow": {}}}), "input: unknown field `input`"),
    ] {
        let problem = refusal(fields);
        assert!(problem.starts_with(expected), "{problem}");
    }
}

#[test]
fn wrong_types_are_refused_with_their_path() {
    for (fields, expected) in [
        (json!({"workflow": "x"}), "workflow: invalid type: string"),
        (json!({"workflow": []}), "workflow: "),
        (json!({"inputs": []}), "inputs: "),
        (json!({"files": {}}), "files: "),
        (json!({"files": [7]}), "files[0]: invalid type: integer `7`"),
        (json!({"files": [{"folder": "input"}]}), "files[0]: missing field `source`"),
        (
            json!({"files": [{"source": "s3://b", "folder": "custom_nodes"}]}),
            "files[0].folder: unknown variant",
        ),
        (json!({"output": {"presign_seconds": -1}}), "output.presign_seconds: invalid value"),
        (json!({"output": {"include_temp": "yes"}}), "output.include_temp: invalid type"),
        (json!({"allow_partial": 1}), "allow_partial: invalid type"),
        (json!({"version": "1"}), "version: invalid type"),
        (json!({"timeout_seconds": "900"}), "timeout_seconds: invalid type"),
        (json!({"inputs": {"1.image": {"source": 5}}}), "inputs.1.image: source: invalid type"),
    ] {
        let problem = refusal(fields);
        assert!(problem.starts_with(expected), "{problem}");
    }
}

#[test]
fn values_out_of_range_are_refused() {
    let sum = |sum: &str| json!({"inputs": {"1.image": {"source": "s3://b", "sha256": sum}}});
    let file_sum = json!({"files": [{"source": "s3://b", "folder": "input", "sha256": "xyz"}]});
    let timeout = |seconds: f64| json!({"timeout_seconds": seconds});
    let presign = |seconds: u64| json!({"output": {"presign_seconds": seconds}});
    let model = |subfolder: &str| json!({"files": [{"source": "s3://b", "folder": "models", "subfolder": subfolder}]});
    for (fields, expected) in [
        (json!({"version": 2}), "version: 2 is unknown here; this worker speaks version 1"),
        (json!({"version": 0}), "version: 0 is unknown"),
        (
            json!({"workflow_uri": "s3://inputs/w.json"}),
            "workflow: give either workflow or workflow_uri, not both",
        ),
        (sum(&"g".repeat(64)), "inputs.1.image: sha256: must be 64 hexadecimal digits"),
        (sum(&"a".repeat(63)), "inputs.1.image: sha256: must be"),
        (sum(""), "inputs.1.image: sha256: must be"),
        (file_sum, "files[0].sha256: must be 64 hexadecimal digits"),
        (timeout(0.0), "timeout_seconds: 0 is not within a millisecond and a week"),
        (timeout(-5.0), "timeout_seconds: -5 is not"),
        (timeout(1e-300), "timeout_seconds: 0.0"),
        (timeout(604_801.0), "timeout_seconds: 604801 is not"),
        (timeout(1e300), "timeout_seconds: 1"),
        (presign(0), "output.presign_seconds: 0 is not within 1 second and a week"),
        (presign(604_801), "output.presign_seconds: 604801"),
        (model(""), "files[0].subfolder: models need one"),
        (json!({"files": [{"source": "s3://b", "folder": "models"}]}), "files[0].subfolder: models need one"),
        (json!({"inputs": {"image": 1}}), "inputs: \"image\" is no <node id>.<input name>"),
        (json!({"inputs": {".image": 1}}), "inputs: \".image\" is no"),
        (json!({"inputs": {"10.": 1}}), "inputs: \"10.\" is no"),
        (json!({"inputs": {"1.x": {}}}), "inputs.1.x: an object has `source` or `value`"),
    ] {
        let problem = refusal(fields);
        assert!(problem.starts_with(expected), "{problem}");
    }
    let missing = parse(&json!({})).unwrap_err().failure.to_string();
    assert_eq!(missing, "workflow: missing; give workflow or workflow_uri");
    assert!(with(timeout(604_800.0)).is_ok() && with(timeout(0.001)).is_ok());
    assert!(with(presign(604_800)).is_ok());
}

#[test]
fn bodies_that_are_no_json_object_are_malformed() {
    let deep = [b"{\"workflow\":".to_vec(), b"[".repeat(100_000)].concat();
    let closed = ["[".repeat(100_000), "]".repeat(100_000)].concat();
    let bodies: [&[u8]; 13] = [
        b"",
        b"{",
        b"{\"workflow\": {\"nodes\": [",
        b"[]",
        b"null",
        b"\"text\"",
        b"{\"workflow\": {}, \"timeout_seconds\": NaN}",
        b"{\"workflow\": {}, \"timeout_seconds\": 1e999}",
        br#"{"workflow": {"a": "\ud800"}}"#,
        b"\xff\xfe{}",
        b"\x1f\x8b\x08\x00gzip",
        &deep,
        closed.as_bytes(),
    ];
    for body in bodies {
        let problem = malformed(body);
        assert!(problem.starts_with("the body is no JSON") && problem.len() < 200, "{problem}");
    }
    let refused = JobRequest::parse(b"{", Some("message")).unwrap_err();
    assert_eq!(refused.id.unwrap().as_str(), "message");
}

#[test]
fn large_bodies_are_read_and_their_refusals_are_short() {
    let nodes: Map<String, Value> =
        (0..100_000).map(|id| (id.to_string(), json!({"class_type": "X", "inputs": {}}))).collect();
    assert!(with(json!({"workflow": nodes})).is_ok());
    let long = "x".repeat(1_000_000);
    for fields in [
        json!({"workflow": long}),
        json!({"id": long}),
        json!({long.as_str(): 1}),
        json!({"inputs": {long.as_str(): 1}}),
        json!({"files": [{"source": "s3://b", "folder": long}]}),
    ] {
        assert!(refusal(fields).len() < 2000);
    }
}

/// JSON leaves open which one counts; here it is the last, in the whole worker.
#[test]
fn of_a_key_given_twice_the_last_counts() {
    let job = JobRequest::parse(br#"{"id": "a", "workflow": {}, "id": "b"}"#, None).unwrap();
    assert_eq!(job.id.as_str(), "b");
}

#[test]
fn runpods_body_is_understood() {
    let job = parse(&json!({
        "id": "sync-1", "webhook": "https://w", "policy": {}, "s3Config": {},
        "input": {"workflow": {"3": {}}, "comfy_org_api_key": "key",
                  "images": [{"name": "a.png", "image": "AA=="}, {"name": "b.png", "image": "data:image/png;base64,AA=="}]},
    }))
    .unwrap();
    assert_eq!((job.id.as_str(), &job.workflow), ("sync-1", &WorkflowSource::Inline(json!({"3": {}}))));
    assert_eq!(job.api_key_comfy_org.unwrap().expose_secret(), "key");
    let sources: Vec<_> =
        job.named_files.iter().map(|file| (file.name.as_deref(), file.source.as_str())).collect();
    let (plain, uri) = ("data:application/octet-stream;base64,AA==", "data:image/png;base64,AA==");
    assert_eq!(sources, [(Some("a.png"), plain), (Some("b.png"), uri)]);
    assert!(parse(&json!({"input": {"workflow": {}, "images": null}})).unwrap().named_files.is_empty());
}

#[test]
fn runpods_mistakes_are_named() {
    let image = json!({"name": "a", "image": "AA=="});
    for (body, expected) in [
        (json!({"input": 5}), "input: must be an object with a workflow"),
        (json!({"input": {}}), "input.workflow: missing"),
        (
            json!({"input": {"workflow": {}, "seed": 1}}),
            "input.seed: unknown field; expected workflow, images",
        ),
        (json!({"input": {"workflow": {}, "images": {}}}), "input.images: must be a list of {name, image}"),
        (json!({"input": {"workflow": {}, "images": [7]}}), "input.images[0].name: must be a text"),
        (
            json!({"input": {"workflow": {}, "images": [{"name": "a"}]}}),
            "input.images[0].image: must be a text",
        ),
        (
            json!({"input": {"workflow": {}, "images": [image, image]}}),
            "input.images[1].name: another image has that name",
        ),
        (json!({"input": {"workflow": 5}}), "workflow: invalid type"),
        (json!({"input": {"workflow": {}}, "inptus": {}}), "inptus: unknown field"),
    ] {
        let problem = parse(&body).unwrap_err().failure.to_string();
        assert!(problem.starts_with(expected), "{problem}");
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        prop::sample::select(vec!["s3://b/x", "data:,x", "models", "../x", "1"]).prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        let keys = prop::sample::select(vec![
            "version",
            "id",
            "workflow",
            "workflow_uri",
            "inputs",
            "files",
            "output",
            "timeout_seconds",
            "input",
            "images",
            "metadata",
            "source",
            "value",
            "name",
            "folder",
            "subfolder",
            "sha256",
            "1.image",
            "uri",
            "nodes",
        ]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((keys, inner), 0..6)
                .prop_map(|pairs| pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
        ]
    })
}

proptest! {
    /// serde_json alone may read a number of 17 digits as its neighbour.
    #[test]
    fn numbers_stay_what_they_are(bits in any::<u64>()) {
        let number = f64::from_bits(bits);
        prop_assume!(number.is_finite());
        let body = format!(r#"{{"workflow": {{"1": {{"inputs": {{"cfg": {number:?}}}}}}}}}"#);
        let WorkflowSource::Inline(workflow) = JobRequest::parse(body.as_bytes(), None).unwrap().workflow else {
            panic!("{body}");
        };
        prop_assert_eq!(workflow["1"]["inputs"]["cfg"].as_f64().unwrap().to_bits(), bits);
    }

    #[test]
    fn any_json_is_a_job_or_a_refusal(body in any_json(), message_id in prop::option::of(".{0,20}")) {
        match JobRequest::parse(body.to_string().as_bytes(), message_id.as_deref()) {
            Ok(job) => prop_assert!(job.id.as_str().parse::<JobId>().is_ok()),
            Err(refused) => {
                prop_assert!(refused.id.is_some());
                prop_assert!(matches!(refused.failure, Failure::Invalid(_) | Failure::Malformed(_)));
                prop_assert!(!refused.failure.to_string().contains(crate::text::is_treacherous));
            }
        }
    }

    #[test]
    fn any_bytes_are_a_job_or_a_refusal(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = JobRequest::parse(&body, None);
    }

    #[test]
    fn ids_are_one_plain_path_component(text in ".{0,140}") {
        if let Ok(id) = text.parse::<JobId>() {
            prop_assert!(id.as_str() == text && !text.contains('/') && !text.starts_with('.'));
        }
    }
}

/// serde_json's feature `raw_value` gives that key a meaning: the text behind it would be parsed, nested without a limit.
#[test]
fn no_key_has_a_meaning_of_its_own() {
    let body = json!({"$serde_json::private::RawValue": "[1]", "b": {"$serde_json::private::Number": "1"}});
    let read: Value = serde_json::from_str(&body.to_string()).unwrap();
    assert_eq!(read, body);
    assert_eq!(with(json!({"metadata": body})).unwrap().metadata, Some(body));
}

/// It is hidden in all that is logged: a text of JSON's own would tear lines apart.
#[test]
fn a_key_is_written_as_keys_are() {
    assert!(with(json!({"api_key_comfy_org": "comfyui-0123456789abcdef._~+/=-"})).is_ok());
    for key in ["\"message\":\"", "two words", "\u{e9}", &"x".repeat(513)] {
        assert!(refusal(json!({"api_key_comfy_org": key})).contains("it is no key"), "{key}");
    }
}
