//! What is shown of the board: `/status` gets everything, a page what has changed.

use serde::Serialize;

use super::{board::Phase, job_status::JobView, resources::Resources};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Versions {
    pub(super) worker: &'static str,
    pub(super) comfyui: Option<String>,
    pub(super) frontend: Option<String>,
    pub(super) chromium: Option<String>,
}

/// Jobs that have left this worker since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct JobCounts {
    pub(super) succeeded: u64,
    pub(super) failed: u64,
    pub(super) cancelled: u64,
    pub(super) handed_back: u64,
}

/// What `/status` answers.
#[derive(Debug, Serialize)]
pub struct Status {
    pub(super) state: Phase,
    pub(super) unready: Option<String>,
    pub(super) uptime_seconds: u64,
    pub(super) worker: String,
    pub(super) version: &'static str,
    pub(super) comfyui_version: Option<String>,
    pub(super) frontend_version: Option<String>,
    pub(super) chromium_version: Option<String>,
    pub(super) jobs: JobCounts,
    pub(super) resources: Option<Resources>,
    /// The job in hand, of several the one that came first: its last event and what is known beside it.
    pub(super) job: Option<JobView>,
    /// Each job that came after it.
    pub(super) next_jobs: Vec<JobView>,
    /// Each job that has ended here, the newest first.
    pub(super) last_jobs: Vec<JobView>,
}

/// What the page shows of the worker itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct WorkerView {
    pub(super) id: String,
    pub(super) state: Phase,
    pub(super) unready: Option<String>,
    /// Unix time in milliseconds.
    pub(super) started_at: u64,
    pub(super) versions: Versions,
    pub(super) jobs: JobCounts,
    pub(super) resources: Option<Resources>,
}

/// What has changed since a revision.
#[derive(Debug, Serialize)]
pub(super) struct StatusDelta {
    /// The worker's clock: Unix time in milliseconds.
    pub(super) now: u64,
    #[serde(skip)]
    pub(super) revision: u64,
    #[serde(skip)]
    pub(super) worker: WorkerView,
    /// The jobs in hand, by their keys, in their order.
    pub(super) in_hand: Vec<u64>,
    /// Those of them that have changed.
    pub(super) jobs: Vec<JobView>,
    /// Jobs that have ended meanwhile, the oldest first.
    pub(super) ended: Vec<JobView>,
}
