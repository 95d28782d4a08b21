//! The jobs of a run: what is published, and how each must end. All bear `@their id@` in their
//! prompt, for the stand-in's ledger.

use std::fs;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use testbed::{S3Server, checkout};

use super::{bed::sha256, journal::Expected};

/// What a job is like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    /// An API prompt that takes so long, with an input of its own.
    Plain { seconds: f64 },
    /// The same with an output that is uploaded in parts.
    Large,
    /// A UI workflow, converted in Chromium.
    Ui,
    /// Refused or failed: the publisher's mistake.
    Invalid(Mistake),
    /// No JSON.
    Malformed,
    /// No JSON, and nobody to tell.
    Unanswerable,
    /// Names that lead out, and bodies that are too deep.
    Hostile(Trick),
    /// Kills its worker.
    Poison,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Mistake {
    UnknownField,
    UnknownNode,
    MissingInput,
    NodeFails,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Trick {
    InputName,
    Prefix,
    Depth,
}

pub(super) const MISTAKES: [Mistake; 4] =
    [Mistake::UnknownField, Mistake::UnknownNode, Mistake::MissingInput, Mistake::NodeFails];
pub(super) const TRICKS: [Trick; 3] = [Trick::InputName, Trick::Prefix, Trick::Depth];

/// The body of a job of that kind, and how it must end. Its inputs are stored.
pub(super) fn body(kind: Kind, id: &str, s3: &S3Server) -> Result<(Vec<u8>, Expected)> {
    let failure = |code: &str| Expected::Failure { code: code.to_owned() };
    let (job, expected) = match kind {
        Kind::Plain { seconds } => plain(id, seconds, s3)?,
        Kind::Large => {
            let (mut job, expected) = plain(id, 0.02, s3)?;
            let inputs = json!({"megabytes": 65.0, "filename_prefix": "large", "seed": seed(id)});
            job["workflow"]["5"] = json!({"class_type": "StandinWriteLarge", "inputs": inputs});
            (job, expected)
        }
        Kind::Ui => (ui_job(id)?, Expected::Success { says: String::new() }),
        Kind::Invalid(mistake) => {
            let (mut job, _) = plain(id, 0.02, s3)?;
            let code = match mistake {
                Mistake::UnknownField => {
                    job["worklfow"] = json!({});
                    "invalid_job"
                }
                Mistake::UnknownNode => {
                    job["workflow"]["9"] = json!({"class_type": "NoSuchNode", "inputs": {}});
                    "invalid_prompt"
                }
                Mistake::MissingInput => {
                    job["inputs"]["4.file"] = json!("s3://inputs/no-such-object.bin");
                    "input_not_found"
                }
                Mistake::NodeFails => {
                    let inputs =
                        json!({"message": "told to", "exception_type": "ValueError", "seed": seed(id)});
                    job["workflow"]["9"] = json!({"class_type": "StandinFail", "inputs": inputs});
                    "execution_error"
                }
            };
            (job, failure(code))
        }
        Kind::Malformed => {
            return Ok((br#"{"version": 1, "workflow": {"#.to_vec(), failure("malformed_job")));
        }
        Kind::Unanswerable => return Ok((b"\xff no JSON".to_vec(), Expected::DeadLetter)),
        Kind::Hostile(trick) => {
            let (mut job, _) = plain(id, 0.02, s3)?;
            match trick {
                Trick::InputName => job["inputs"]["4.file"]["name"] = json!("../../theirs/cat.png"),
                Trick::Prefix => job["workflow"]["3"]["inputs"]["filename_prefix"] = json!("../../../old"),
                Trick::Depth => {
                    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
                    let body = format!(r#"{{"version": 1, "id": "{id}", "workflow": {deep}}}"#);
                    return Ok((body.into_bytes(), Expected::Answer));
                }
            }
            (job, Expected::Answer)
        }
        Kind::Poison => {
            let workflow = json!({
                "1": {"class_type": "StandinKillParent", "inputs": {"seed": seed(id)}},
                "2": {"class_type": "StandinText", "inputs": {"text": format!("@{id}@"), "seed": 1}},
            });
            (json!({"version": 1, "id": id, "workflow": workflow}), Expected::Poison)
        }
    };
    Ok((serde_json::to_vec(&job)?, expected))
}

/// Reads an input of its own and says its sum, waits, and saves a picture.
fn plain(id: &str, seconds: f64, s3: &S3Server) -> Result<(Value, Expected)> {
    let content = format!("the input of {id}, and of nobody else\n").repeat(50);
    let sum = sha256(content.as_bytes());
    fs::write(s3.path("inputs", &format!("{id}.bin")), content)?;
    let workflow = json!({
        "1": {"class_type": "EmptyImage",
              "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": seed(id) & 0x00ff_ffff}},
        "2": {"class_type": "StandinSleep", "inputs": {"seconds": seconds, "image": ["1", 0], "seed": seed(id)}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": format!("out@{id}@")}},
        "4": {"class_type": "StandinInputRead", "inputs": {"file": "none.bin", "seed": seed(id)}},
    });
    let input = json!({"source": format!("s3://inputs/{id}.bin"), "sha256": sum});
    let job = json!({"version": 1, "id": id, "workflow": workflow, "inputs": {"4.file": input}});
    Ok((job, Expected::Success { says: sum }))
}

/// Staged, converted, run, uploaded: a job that goes through every phase.
pub(super) fn ui_job(id: &str) -> Result<Value> {
    let workflow = checkout().join("tests/fixtures/workflows/invert-ui.json");
    let mut workflow: Value = serde_json::from_slice(&fs::read(workflow)?)?;
    let prefix = &mut workflow["nodes"][2]["widgets_values"][0];
    ensure!(*prefix == "inverted", "another fixture: {prefix}");
    *prefix = json!(format!("inverted@{id}@"));
    Ok(json!({"version": 1, "id": id, "workflow": workflow, "inputs": {"1.image": "s3://inputs/cat.png"}}))
}

/// A number of the job's own: no two jobs share what ComfyUI remembers.
fn seed(id: &str) -> u32 {
    u32::from_str_radix(&sha256(id.as_bytes())[..7], 16).unwrap_or(0)
}
