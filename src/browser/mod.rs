//! Chromium: one warm page of ComfyUI's own frontend that turns UI workflows into prompts.

use serde_json::{Map, Value};

/// What the frontend's `graphToPrompt` made of a UI workflow.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversion {
    /// The prompt: node id to `{class_type, inputs, _meta}`.
    pub prompt: Map<String, Value>,
    /// The workflow as the frontend saved it: goes into `extra_pnginfo`, so that PNGs open again.
    pub workflow: Value,
    /// What the publisher should know, such as numbers that JavaScript rounded.
    pub warnings: Vec<String>,
}

/// Why a workflow could not be converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The workflow uses node types that this server lacks: the job's fault. The list is complete and sorted.
    #[error("this server lacks the node types {}", .0.join(", "))]
    MissingNodes(Vec<String>),
    /// The frontend refused the workflow, in its own words: the job's fault.
    #[error("the frontend cannot convert this workflow: {0}")]
    Refused(String),
    /// No answer within the limit, after retries in fresh pages.
    #[error("no conversion within {0:?}")]
    TimedOut(std::time::Duration),
    /// Chromium is missing, cannot start, or died and did not come back: the worker's fault.
    #[error("browser: {0}")]
    Browser(String),
}
