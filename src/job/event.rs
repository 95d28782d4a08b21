//! What a job's followers are told while it lives (version 1): transient, never waited for.

use serde::{Deserialize, Serialize};

use super::{JobId, result::Status};

/// One event of one job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobEvent {
    /// 1.
    pub version: u32,
    /// The job.
    pub id: JobId,
    /// Rises by one with each event of an attempt.
    pub seq: u64,
    /// Unix time in milliseconds.
    pub at: u64,
    /// Which attempt, from 1.
    pub attempt: u32,
    /// Who runs it.
    pub worker: String,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// A worker has taken the job.
    Accepted,
    /// All inputs are in place.
    Staged {
        /// How many files.
        files: usize,
        /// How many bytes.
        bytes: u64,
    },
    /// The prompt is ready.
    Converted {
        /// How many nodes it has.
        nodes: usize,
    },
    /// ComfyUI has it in its queue.
    Queued {
        /// ComfyUI's id for it.
        prompt_id: String,
    },
    /// ComfyUI runs it.
    Started,
    /// A node makes progress.
    Progress {
        /// The node.
        node: String,
        /// Its title, else its class.
        title: String,
        /// Steps done.
        value: f64,
        /// Steps in all.
        max: f64,
        /// Of the whole job, from 0 to 1.
        fraction: f64,
    },
    /// The execution is over.
    Executed,
    /// A file is in the store.
    Uploaded {
        /// Its name.
        filename: String,
        /// Bytes.
        bytes: u64,
        /// How many files are done.
        done: usize,
        /// How many there are.
        of: usize,
    },
    /// The result is durable.
    Finished {
        /// How the job ended.
        status: Status,
    },
}

impl EventKind {
    /// The last part of the routing key, and the `event` field.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Staged { .. } => "staged",
            Self::Converted { .. } => "converted",
            Self::Queued { .. } => "queued",
            Self::Started => "started",
            Self::Progress { .. } => "progress",
            Self::Executed => "executed",
            Self::Uploaded { .. } => "uploaded",
            Self::Finished { .. } => "finished",
        }
    }
}
