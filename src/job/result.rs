//! The result (version 1): what `result.json` holds and the publisher gets, byte for byte.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::JobId;

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobResult {
    /// 1.
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
    pub attempt: u32,
    /// Who ran it.
    pub worker: WorkerInfo,
    /// The job's own, untouched.
    pub metadata: Option<Value>,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    pub sha256: String,
    /// Whether it came from ComfyUI's temp folder.
    pub temp: bool,
}

/// What an output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Code {
    MalformedJob,
    InvalidJob,
    IdConflict,
    InputNotFound,
    InputForbidden,
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
    EngineCrashed,
    Poison,
    Cancelled,
    Internal,
}

/// The parts of a job's life, in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[allow(missing_docs)]
pub struct Timings {
    pub queued_ms: u64,
    pub staged_ms: u64,
    pub converted_ms: u64,
    pub waited_ms: u64,
    pub executed_ms: u64,
    pub uploaded_ms: u64,
    pub total_ms: u64,
}

/// One node's part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeTiming {
    /// Milliseconds it ran.
    pub ms: f64,
    /// Whether ComfyUI took its outputs from the execution cache.
    pub cached: bool,
}

/// Who ran a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerInfo {
    /// `worker.id`.
    pub id: String,
    /// comfy-worker's version.
    pub version: String,
    /// ComfyUI's version.
    pub comfyui_version: String,
}
