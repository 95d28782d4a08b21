//! What the worker is doing, for `/readyz` and `/status`: written from events, read at any time.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use serde::Serialize;
use tokio::sync::watch;

use crate::{
    job::{
        event::{EventKind, JobEvent},
        report::{EventSink, Preview},
        result::JobResult,
    },
    queue::Health,
};

/// How many ended jobs `/status` lists.
const LAST_JOBS: usize = 50;

/// Where the worker is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// ComfyUI, browser, broker and store are not all there yet.
    Booting,
    /// Takes jobs.
    Ready,
    /// Takes none for a while, for want of disk space.
    DiskFull,
    /// Takes no more.
    Draining,
}

/// The worker's state, shared. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Board(Arc<Mutex<Contents>>);

#[derive(Debug)]
struct Contents {
    since: Instant,
    phase: Phase,
    worker: String,
    comfyui_version: Option<String>,
    broker: Option<watch::Receiver<Health>>,
    /// The jobs in hand in the order in which they came; none until something is known of it.
    jobs: BTreeMap<u64, Option<JobEvent>>,
    taken: u64,
    last: VecDeque<JobEvent>,
}

/// What `/status` answers.
#[derive(Debug, Serialize)]
pub struct Status {
    state: Phase,
    unready: Option<String>,
    uptime_seconds: u64,
    worker: String,
    version: &'static str,
    comfyui_version: Option<String>,
    /// The last event of the job in hand, of several the one that came first.
    job: Option<JobEvent>,
    /// The last event of each job that came after it.
    next_jobs: Vec<JobEvent>,
    /// The last event of each job that has ended here, the newest first.
    last_jobs: Vec<JobEvent>,
}

impl Board {
    /// The board of a worker that boots.
    #[must_use]
    pub fn new(worker: String) -> Self {
        Self(Arc::new(Mutex::new(Contents {
            since: Instant::now(),
            phase: Phase::Booting,
            worker,
            comfyui_version: None,
            broker: None,
            jobs: BTreeMap::new(),
            taken: 0,
            last: VecDeque::new(),
        })))
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The worker has come to `phase`.
    pub fn enter(&self, phase: Phase) {
        self.contents().phase = phase;
    }

    /// Notes how the broker is, now and from now on.
    pub fn connected(&self, broker: watch::Receiver<Health>) {
        self.contents().broker = Some(broker);
    }

    /// Takes jobs, with a ComfyUI of that version.
    pub fn ready(&self, comfyui_version: &str) {
        let mut contents = self.contents();
        contents.comfyui_version = Some(comfyui_version.to_owned());
        contents.phase = Phase::Ready;
    }

    /// Why no job can be taken now; `None`: ready.
    #[must_use]
    pub fn unready_reason(&self) -> Option<String> {
        self.contents().unready_reason()
    }

    /// Everything.
    #[must_use]
    pub fn status(&self) -> Status {
        let contents = self.contents();
        let mut jobs = contents.jobs.values().flatten().cloned();
        Status {
            state: contents.phase,
            unready: contents.unready_reason(),
            uptime_seconds: contents.since.elapsed().as_secs(),
            worker: contents.worker.clone(),
            version: env!("CARGO_PKG_VERSION"),
            comfyui_version: contents.comfyui_version.clone(),
            job: jobs.next(),
            next_jobs: jobs.collect(),
            last_jobs: contents.last.iter().cloned().collect(),
        }
    }

    /// A place for a job in hand.
    #[must_use]
    pub fn take_job(&self) -> JobPlace {
        let mut contents = self.contents();
        contents.taken += 1;
        let number = contents.taken;
        contents.jobs.insert(number, None);
        JobPlace { board: self.clone(), number }
    }
}

/// Where a job in hand is told of; dropped, the job is in hand no longer.
#[derive(Debug)]
pub struct JobPlace {
    board: Board,
    number: u64,
}

impl Drop for JobPlace {
    fn drop(&mut self) {
        let mut contents = self.board.contents();
        if let Some(job) = contents.jobs.remove(&self.number).flatten() {
            contents.last.push_front(job);
            contents.last.truncate(LAST_JOBS);
        }
    }
}

impl Contents {
    fn unready_reason(&self) -> Option<String> {
        match self.phase {
            Phase::Booting => Some("booting".to_owned()),
            Phase::DiskFull => Some("the disk is full".to_owned()),
            Phase::Draining => Some("draining".to_owned()),
            Phase::Ready => {
                self.broker.as_ref().and_then(|health| health.borrow().trouble().map(str::to_owned))
            }
        }
    }
}

impl EventSink for JobPlace {
    fn event(&self, event: &JobEvent) {
        let mut contents = self.board.contents();
        // Uploads go on side by side: the last stage stands, not its last file.
        if !matches!(event.kind, EventKind::Uploaded { .. }) {
            contents.jobs.insert(self.number, Some(event.clone()));
        }
    }

    fn preview(&self, _: &Preview<'_>) {}

    fn ended(&self, _: &JobResult) {}
}
