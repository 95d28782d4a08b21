//! The result (version 1): what `result.json` holds and the publisher gets, byte for byte.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::JobId;

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct JobResult {
    /// The version of this contract: 1.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 1)))]
    pub version: u32,
    /// The job.
    pub id: JobId,
    /// How it ended.
    pub status: Status,
    /// Every file and text it made.
    pub outputs: Vec<Output>,
    /// Address of ComfyUI's history entry.
    pub history: Option<String>,
    /// Address of the prompt as it was posted.
    pub prompt: Option<String>,
    /// Why it failed.
    pub error: Option<JobError>,
    /// What the publisher should know all the same.
    pub warnings: Vec<String>,
    /// How long each stage took.
    pub timings: Timings,
    /// Node id to its time and whether its outputs came from the execution cache.
    pub nodes: BTreeMap<String, NodeTiming>,
    /// Which attempt this is, from 1.
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub attempt: u32,
    /// Who ran it.
    pub worker: WorkerInfo,
    /// The job's own, untouched.
    pub metadata: Option<Value>,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// All outputs are there.
    Succeeded,
    /// See `error`.
    Failed,
    /// Cancelled by its publisher.
    Cancelled,
}

/// One output: a file in the store, or a text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(transform = super::schema::a_text_or_a_whole_file)
)]
pub struct Output {
    /// The node that made it.
    pub node: String,
    /// ComfyUI's key: `images`, `gifs`, `text` …
    pub key: String,
    /// Position under that key.
    pub index: usize,
    /// What it is.
    pub kind: Kind,
    /// The text, when it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The file, when it is one.
    #[serde(flatten)]
    pub file: Option<OutputFile>,
}

/// A file in the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct OutputFile {
    /// Its name, without folders.
    pub filename: String,
    /// Its address.
    pub uri: String,
    /// A presigned link, when the job asked for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Its media type.
    pub content_type: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256 in hexadecimal digits.
    #[cfg_attr(feature = "schema", schemars(regex(pattern = "^[0-9a-f]{64}$")))]
    pub sha256: String,
    /// Whether it came from ComfyUI's temp folder.
    pub temp: bool,
}

/// What an output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A picture, animated ones too.
    Image,
    /// A video.
    Video,
    /// Sound.
    Audio,
    /// A 3D model.
    Model,
    /// A text in the result itself.
    Text,
    /// A latent.
    Latent,
    /// Anything else.
    File,
}

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct JobError {
    /// For programs.
    pub code: Code,
    /// Where in its life.
    pub stage: Stage,
    /// For people, with ComfyUI's own words where it had some.
    pub message: String,
    /// ComfyUI's `node_errors`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_errors: Option<Value>,
    /// The node that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Python's traceback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceback: Option<Vec<String>>,
}

/// The contract's error codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Code {
    MalformedJob,
    InvalidJob,
    IdConflict,
    InputNotFound,
    InputForbidden,
    InputUnavailable,
    InputTooLarge,
    ChecksumMismatch,
    UnsupportedUri,
    MissingNodes,
    ConversionFailed,
    InvalidPrompt,
    ExecutionError,
    OutOfMemory,
    Timeout,
    Interrupted,
    OutputMissing,
    OutputForbidden,
    OutputNotFound,
    EngineCrashed,
    Poison,
    Cancelled,
    Internal,
}

/// The parts of a job's life, in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Reading the message, looking for an earlier result.
    #[default]
    Accept,
    /// Fetching inputs.
    Stage,
    /// UI workflow to prompt, inputs applied.
    Convert,
    /// Handing the prompt to ComfyUI.
    Post,
    /// ComfyUI runs it.
    Run,
    /// Looking for its files.
    Collect,
    /// Files to the store.
    Upload,
}

/// Milliseconds spent in each stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[allow(missing_docs)]
pub struct Timings {
    pub queued_ms: u64,
    pub staged_ms: u64,
    pub converted_ms: u64,
    pub waited_ms: u64,
    pub executed_ms: u64,
    pub uploaded_ms: u64,
    pub total_ms: u64,
    /// Where the job names models: part of `staged_ms`.
    #[serde(flatten)]
    pub models: Option<ModelTimings>,
}

/// What a job's models took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ModelTimings {
    /// Milliseconds until all were there.
    pub models_ms: u64,
    /// Those that had to be fetched.
    pub models_cold: ModelCount,
    /// Those that were there.
    pub models_warm: ModelCount,
}

/// How many models, and how large.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ModelCount {
    /// How many.
    pub files: u64,
    /// Bytes of all of them.
    pub bytes: u64,
}

/// One node's part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeTiming {
    /// Milliseconds it ran.
    pub ms: f64,
    /// Whether ComfyUI took its outputs from the execution cache.
    pub cached: bool,
}

/// Who ran a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct WorkerInfo {
    /// `worker.id`.
    pub id: String,
    /// comfy-worker's version.
    pub version: String,
    /// ComfyUI's version.
    pub comfyui_version: String,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use serde_json::json;

    use super::*;
    use crate::failure::{Failure, NodeFailure};

    /// The contract's example, with every field present.
    fn example() -> (JobResult, Value) {
        let result = JobResult {
            version: 1,
            id: "portrait-42".parse().unwrap(),
            status: Status::Succeeded,
            outputs: vec![
                Output {
                    node: "9".into(),
                    key: "images".into(),
                    index: 0,
                    kind: Kind::Image,
                    text: None,
                    file: Some(OutputFile {
                        filename: "x_00001_.png".into(),
                        uri: "s3://b/x".into(),
                        url: Some("https://b/x?sig".into()),
                        content_type: "image/png".into(),
                        size: 1234,
                        sha256: "00ff".into(),
                        temp: false,
                    }),
                },
                Output {
                    node: "4".into(),
                    key: "text".into(),
                    index: 0,
                    kind: Kind::Text,
                    text: Some("…".into()),
                    file: None,
                },
            ],
            history: Some("s3://b/history.json".into()),
            prompt: Some("s3://b/prompt.json".into()),
            error: None,
            warnings: Vec::new(),
            timings: Timings {
                queued_ms: 3,
                staged_ms: 12,
                converted_ms: 0,
                waited_ms: 1,
                executed_ms: 2500,
                uploaded_ms: 40,
                total_ms: 2560,
                models: Some(ModelTimings {
                    models_ms: 11,
                    models_cold: ModelCount { files: 1, bytes: 6 << 30 },
                    models_warm: ModelCount { files: 2, bytes: 512 },
                }),
            },
            nodes: BTreeMap::from([("9".into(), NodeTiming { ms: 31.2, cached: false })]),
            attempt: 1,
            worker: WorkerInfo { id: "w".into(), version: "0.1.0".into(), comfyui_version: "0.3.64".into() },
            metadata: Some(json!({"any": "thing"})),
        };
        let golden = json!({
            "version": 1, "id": "portrait-42", "status": "succeeded",
            "outputs": [
                {"node": "9", "key": "images", "index": 0, "kind": "image", "filename": "x_00001_.png",
                 "uri": "s3://b/x", "url": "https://b/x?sig", "content_type": "image/png", "size": 1234,
                 "sha256": "00ff", "temp": false},
                {"node": "4", "key": "text", "index": 0, "kind": "text", "text": "…"},
            ],
            "history": "s3://b/history.json", "prompt": "s3://b/prompt.json",
            "error": null, "warnings": [],
            "timings": {"queued_ms": 3, "staged_ms": 12, "converted_ms": 0, "waited_ms": 1, "executed_ms": 2500,
                        "uploaded_ms": 40, "total_ms": 2560,
                        "models_ms": 11, "models_cold": {"files": 1, "bytes": 6_442_450_944_u64},
                        "models_warm": {"files": 2, "bytes": 512}},
            "nodes": {"9": {"ms": 31.2, "cached": false}},
            "attempt": 1, "worker": {"id": "w", "version": "0.1.0", "comfyui_version": "0.3.64"},
            "metadata": {"any": "thing"},
        });
        (result, golden)
    }

    #[test]
    fn a_result_is_the_contracts_json_in_its_order() {
        let (result, golden) = example();
        // As text: field order is part of what people read.
        assert_eq!(serde_json::to_string(&result).unwrap(), golden.to_string());
        assert_eq!(serde_json::from_value::<JobResult>(golden).unwrap(), result);
    }

    #[test]
    fn absent_and_null() {
        let (mut result, _) = example();
        (result.history, result.prompt, result.metadata) = (None, None, None);
        if let Some(file) = &mut result.outputs[0].file {
            file.url = None;
        }
        result.status = Status::Failed;
        result.error = Some(Failure::Invalid("no".into()).to_error(Stage::Accept));
        let value = serde_json::to_value(&result).unwrap();
        // Top-level fields are always there; a link, a text and an error's details only when there is one.
        for null in ["history", "prompt", "metadata"] {
            assert_eq!(value.get(null), Some(&Value::Null), "{null}");
        }
        assert!(value["outputs"][0].get("url").is_none() && value["outputs"][0].get("text").is_none());
        assert_eq!(value["error"], json!({"code": "invalid_job", "stage": "accept", "message": "no"}));
        assert_eq!(serde_json::from_value::<JobResult>(value).unwrap(), result);
    }

    #[test]
    fn errors_carry_comfyuis_own_words() {
        let refused =
            Failure::PromptRefused { message: "no outputs".into(), node_errors: Some(json!({"3": {}})) };
        assert_eq!(
            serde_json::to_value(refused.to_error(Stage::Post)).unwrap(),
            json!({"code": "invalid_prompt", "stage": "post", "message": "no outputs", "node_errors": {"3": {}}})
        );
        let node = NodeFailure {
            node_id: "3".into(),
            node_type: "KSampler".into(),
            exception_type: "ValueError".into(),
            exception_message: "bad\n".into(),
            traceback: vec!["line".into()],
        };
        assert_eq!(
            serde_json::to_value(Failure::NodeFailed(Box::new(node)).to_error(Stage::Run)).unwrap(),
            json!({"code": "execution_error", "stage": "run", "message": "node 3 (KSampler): ValueError: bad",
                   "node": "3", "traceback": ["line"]})
        );
    }

    #[test]
    fn words_of_the_contract() {
        let word = |value: Value| value.as_str().unwrap().to_owned();
        let kinds =
            [Kind::Image, Kind::Video, Kind::Audio, Kind::Model, Kind::Text, Kind::Latent, Kind::File];
        let kinds = kinds.map(|kind| word(json!(kind)));
        assert_eq!(kinds, ["image", "video", "audio", "model", "text", "latent", "file"]);
        let statuses =
            [Status::Succeeded, Status::Failed, Status::Cancelled].map(|status| word(json!(status)));
        assert_eq!(statuses, ["succeeded", "failed", "cancelled"]);
        let codes = "malformed_job invalid_job id_conflict input_not_found input_forbidden input_too_large \
            checksum_mismatch unsupported_uri missing_nodes conversion_failed invalid_prompt execution_error \
            out_of_memory timeout interrupted output_missing engine_crashed poison cancelled internal";
        for code in codes.split_whitespace() {
            let parsed: Code = serde_json::from_value(json!(code)).unwrap();
            assert_eq!(word(json!(parsed)), code);
        }
    }
}
