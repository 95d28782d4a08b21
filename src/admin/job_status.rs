//! What is known of one job: all that `/status` and the page say of it.

use contract::{
    event::{EventKind, JobEvent},
    result::JobResult,
    text::one_line,
};
use serde::Serialize;

use super::{
    nodes::{self, Nodes},
    outcome::{JobEnding, Outcome, StoredPicture},
    stages::{CurrentStage, PastStage, Stages},
};
use crate::events::Preview;
use connector::comfy::events::Image;

/// Largest preview that is kept: ComfyUI's are tens of kilobytes.
const LARGEST_PREVIEW: usize = 4 << 20;
/// Characters of a node's id in the last event: it stands in the job.
const NODE_ID: usize = 200;

/// One job.
#[derive(Clone, Debug)]
pub(super) struct JobStatus {
    /// When it was taken in hand, in the order of all.
    key: u64,
    /// The board's at the last change.
    revision: u64,
    /// Its last event but those of single uploads, which go on side by side.
    event: JobEvent,
    accepted: u64,
    ended: Option<u64>,
    stages: Stages,
    nodes: Nodes,
    /// Nodes of its prompt.
    node_count: Option<usize>,
    /// Of the whole prompt, from 0 to 1.
    fraction: f64,
    uploads: Option<Uploads>,
    preview: Option<(u64, Image)>,
    outcome: Option<Outcome>,
}

/// How many files are in the store, of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Uploads {
    done: usize,
    of: usize,
}

/// A job as `/status` and the page get it: its last event, and what all of them came to.
#[derive(Debug, Serialize)]
pub(super) struct JobView {
    #[serde(flatten)]
    event: JobEvent,
    key: u64,
    accepted_at: u64,
    ended_at: Option<u64>,
    stages: Vec<PastStage>,
    stage: Option<CurrentStage>,
    progress: f64,
    node_count: Option<usize>,
    nodes_begun: u64,
    nodes_cached: usize,
    /// The number of the first one in `node_list`; those before it are no longer told of.
    first_node: u64,
    node_list: Vec<nodes::NodeStatus>,
    uploads: Option<Uploads>,
    /// The preview's number: another one, another picture.
    preview: Option<u64>,
    outcome: Option<Outcome>,
}

impl JobStatus {
    /// A job that this is the first event of.
    pub(super) fn new(key: u64, event: &JobEvent, revision: u64) -> Self {
        let mut card = Self {
            key,
            revision,
            event: event.clone(),
            accepted: event.at,
            ended: None,
            stages: Stages::default(),
            nodes: Nodes::default(),
            node_count: None,
            fraction: 0.0,
            uploads: None,
            preview: None,
            outcome: None,
        };
        card.event(event, revision);
        card
    }

    /// A job that was answered without an event.
    pub(super) fn unrun(key: u64, result: &JobResult, at: u64, revision: u64) -> Self {
        let event = JobEvent {
            version: 1,
            id: result.id.clone(),
            seq: 0,
            at,
            attempt: result.attempt,
            worker: result.worker.id.clone(),
            kind: EventKind::Finished { status: result.status },
        };
        let mut card = Self::new(key, &event, revision);
        card.stages.settle(&result.timings, None);
        card.outcome = Some(Outcome::unrun(result));
        card
    }

    /// Something happened.
    pub(super) fn event(&mut self, event: &JobEvent, revision: u64) {
        self.revision = revision;
        self.stages.event(event);
        match &event.kind {
            EventKind::Converted { nodes } => self.node_count = Some(*nodes),
            EventKind::Queued { .. } => {
                self.nodes.clear();
                self.fraction = 0.0;
            }
            EventKind::Progress { node, title, value, max, fraction } => {
                self.nodes.progress(event.at, (node, title), (*value, *max), revision);
                self.fraction = *fraction;
            }
            EventKind::Executed => {
                self.nodes.end(event.at, revision);
                self.fraction = 1.0;
            }
            EventKind::Uploaded { done, of, .. } => {
                self.uploads = Some(Uploads { done: *done, of: *of });
                // The last stage stands, not its last file.
                return;
            }
            EventKind::Finished { .. } => self.end(event.at),
            EventKind::Accepted | EventKind::Staged { .. } | EventKind::Started => {}
        }
        self.event = event.clone();
        if let EventKind::Progress { node, .. } = &mut self.event.kind {
            *node = one_line(node, NODE_ID);
        }
    }

    pub(super) fn preview(&mut self, preview: &Preview<'_>, revision: u64) {
        if preview.image.bytes.len() <= LARGEST_PREVIEW {
            self.preview = Some((preview.seq, preview.image.clone()));
            self.revision = revision;
        }
    }

    /// It has this result.
    pub(super) fn settle(&mut self, result: &JobResult, revision: u64) {
        self.stages.settle(&result.timings, result.error.as_ref().map(|error| error.stage));
        self.nodes.settle(&result.nodes, revision);
        self.outcome = Some(Outcome::of(result));
        self.revision = revision;
    }

    /// It goes back to the queue.
    pub(super) fn hand_back(&mut self, reason: &str, revision: u64) {
        self.outcome = Some(Outcome::handed_back(reason));
        self.revision = revision;
    }

    /// It is in hand no longer, whatever it came to.
    pub(super) fn leave(mut self, at: u64, revision: u64) -> Self {
        self.end(self.ended.unwrap_or(at));
        if self.outcome.is_none() {
            self.hand_back("given up", revision);
        }
        self.nodes.keep_longest();
        self.preview = None;
        self.revision = revision;
        self
    }

    fn end(&mut self, at: u64) {
        self.ended = Some(at);
        self.stages.end(at);
        self.nodes.end(at, self.revision);
    }

    pub(super) fn id(&self) -> &str {
        self.event.id.as_str()
    }

    pub(super) fn key(&self) -> u64 {
        self.key
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn has_outcome(&self) -> bool {
        self.outcome.is_some()
    }

    pub(super) fn left(&self) -> Option<JobEnding> {
        self.outcome.as_ref().map(Outcome::status)
    }

    pub(super) fn picture(&self, index: usize) -> Option<&StoredPicture> {
        self.outcome.as_ref()?.picture(index)
    }

    pub(super) fn last_preview(&self) -> Option<&Image> {
        self.preview.as_ref().map(|(_, image)| image)
    }

    /// All of it, but for nodes that have not changed since `revision`.
    pub(super) fn view(&self, revision: u64) -> JobView {
        JobView {
            event: self.event.clone(),
            key: self.key,
            accepted_at: self.accepted,
            ended_at: self.ended,
            stages: self.stages.spent(),
            stage: self.stages.now(),
            progress: self.fraction,
            node_count: self.node_count,
            nodes_begun: self.nodes.begun(),
            nodes_cached: self.nodes.cached(),
            first_node: self.nodes.first(),
            node_list: self.nodes.since(revision),
            uploads: self.uploads,
            preview: self.preview.as_ref().map(|(seq, _)| *seq),
            outcome: self.outcome.clone(),
        }
    }
}
