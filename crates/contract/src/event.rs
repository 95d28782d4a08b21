//! What a job's followers are told while it lives (version 1): transient, never waited for.

use serde::{Deserialize, Serialize};

use crate::{JobId, result::Status};

/// One event of one job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct JobEvent {
    /// The version of this contract: 1.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 1)))]
    pub version: u32,
    /// The job.
    pub id: JobId,
    /// Rises by one with each event of an attempt.
    pub seq: u64,
    /// Unix time in milliseconds.
    pub at: u64,
    /// Which attempt, from 1.
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub attempt: u32,
    /// Who runs it.
    pub worker: String,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn every_event_is_the_contracts_json() {
        let kinds: [(EventKind, Value); 9] = [
            (EventKind::Accepted, json!({"event": "accepted"})),
            (EventKind::Staged { files: 2, bytes: 9 }, json!({"event": "staged", "files": 2, "bytes": 9})),
            (EventKind::Converted { nodes: 3 }, json!({"event": "converted", "nodes": 3})),
            (EventKind::Queued { prompt_id: "p".into() }, json!({"event": "queued", "prompt_id": "p"})),
            (EventKind::Started, json!({"event": "started"})),
            (
                EventKind::Progress {
                    node: "3".into(),
                    title: "KSampler".into(),
                    value: 4.0,
                    max: 20.0,
                    fraction: 0.25,
                },
                json!({"event": "progress", "node": "3", "title": "KSampler", "value": 4.0, "max": 20.0, "fraction": 0.25}),
            ),
            (EventKind::Executed, json!({"event": "executed"})),
            (
                EventKind::Uploaded { filename: "x.png".into(), bytes: 5, done: 1, of: 2 },
                json!({"event": "uploaded", "filename": "x.png", "bytes": 5, "done": 1, "of": 2}),
            ),
            (
                EventKind::Finished { status: Status::Failed },
                json!({"event": "finished", "status": "failed"}),
            ),
        ];
        for (kind, fields) in kinds {
            assert_eq!(fields["event"], kind.name());
            let event = JobEvent {
                version: 1,
                id: "job".parse().unwrap(),
                seq: 7,
                at: 1_700_000_000_000,
                attempt: 2,
                worker: "w".into(),
                kind,
            };
            let mut golden = json!({"version": 1, "id": "job", "seq": 7, "at": 1_700_000_000_000_u64, "attempt": 2, "worker": "w"});
            golden.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            assert_eq!(serde_json::to_value(&event).unwrap(), golden);
            assert_eq!(serde_json::from_value::<JobEvent>(golden).unwrap(), event);
        }
    }
}
