//! Job bodies: a job that is accepted is within the contract, a refusal is one line for people.

use contract::request::JobRequest;

use proptest::{collection, prelude::*};
use serde_json::json;

use super::{fuzz, json};

const WORDS: &[&str] = &[
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
    "input",
    "images",
    "image",
    "models",
    "class_type",
    "nodes",
    "10.image",
    "s3://in/cat.png",
    "data:;base64,AAAA",
    "../other",
    "__proto__",
];

#[test]
fn job_bodies() {
    let job = json!({
        "version": 1, "id": "portrait-42", "workflow": {"1": {"class_type": "A", "inputs": {"b": [1, 0]}}},
        "inputs": {"10.image": "s3://in/cat.png", "8.text": {"value": "s3://no-file"},
                   "11.image": {"source": "https://x/m.png", "sha256": "00".repeat(32), "name": "mask.png"}},
        "files": [{"source": "s3://in/x", "folder": "models", "subfolder": "loras", "name": "x", "overwrite": false,
                   "ephemeral": false, "sha256": "11".repeat(32)}],
        "output": {"uri": "s3://out/renders", "include_temp": false, "presign_seconds": 3600},
        "timeout_seconds": 900, "allow_partial": false, "api_key_comfy_org": "k", "metadata": {"any": "thing"},
    });
    let runpod = json!({"input": {"workflow": {"1": {"class_type": "A"}}, "images": [{"name": "a.png", "image": "AAAA"}]}});
    let body = prop_oneof![
        4 => json::near(job, WORDS).prop_map(|job| job.to_string().into_bytes()),
        2 => json::near(runpod, WORDS).prop_map(|job| job.to_string().into_bytes()),
        1 => json::value(WORDS).prop_map(|job| job.to_string().into_bytes()),
        1 => collection::vec(any::<u8>(), 0..200),
    ];
    let message = (body, proptest::option::of(prop_oneof!["[a-z0-9.-]{0,8}", any::<String>()]));
    fuzz("job bodies", &message, |(body, message_id)| {
        match JobRequest::parse(&body, message_id.as_deref()) {
            Ok(job) => {
                let id = job.id.as_str();
                prop_assert!((1..=128).contains(&id.len()) && !id.starts_with('.') && !id.contains('/'));
                prop_assert_eq!(job.digest.len(), 64);
                if let Some(timeout) = job.timeout {
                    prop_assert!(timeout.as_secs_f64() > 0.0 && timeout.as_secs() <= 7 * 24 * 3600);
                }
                let sums = job.files.iter().filter_map(|file| file.sha256.as_ref());
                prop_assert!(sums.into_iter().all(|sum| sum.len() == 64));
                prop_assert!(job.inputs.keys().all(|at| !at.node.is_empty() && !at.node.contains('.')));
            }
            Err(refused) => {
                let said = refused.failure.to_string();
                prop_assert!(!said.is_empty() && said.chars().count() < 2000, "{said}");
                prop_assert!(!said.chars().any(char::is_control), "{said:?}");
                prop_assert!(refused.id.is_some(), "the digest is an id at least");
            }
        }
        Ok(())
    });
}
