//! What the worker is doing, for `/readyz`, `/status` and the page: written from events, read at any time.
//!
//! Invariant: whatever jobs bring, this is small: fifty ended jobs, texts and lists of bounded length.
//! Readers copy under the lock and write to the network without it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use contract::{JobId, event::JobEvent, result::JobResult, text::one_line};
use serde::Serialize;
use tokio::sync::watch;

use super::{
    job_status::JobStatus,
    outcome::{JobEnding, StoredPicture},
    resources::Resources,
    views::{JobCounts, Status, StatusDelta, Versions, WorkerView},
};
use crate::{
    dependency::Dependency,
    events::{EventSink, Preview},
    queue::Health,
};
use connector::comfy::events::Image;

/// How many ended jobs are kept.
const LAST_JOBS: usize = 50;
/// Characters of a version, and of why no job is taken: that may be the broker's own words.
const VERSION: usize = 60;
const REASON: usize = 400;

/// Where the worker is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// ComfyUI, browser, broker and store are not all there yet.
    Booting,
    /// Takes jobs.
    Ready,
    /// Takes none until the store is back.
    StoreAway,
    /// Takes none until there is room on the disk.
    DiskFull,
    /// Takes no more.
    Draining,
}

/// The worker's state, shared. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StatusBoard(Arc<Mutex<Contents>>);

#[derive(Debug)]
struct Contents {
    since: Instant,
    started: u64,
    phase: Phase,
    worker: String,
    versions: Versions,
    broker: Option<watch::Receiver<Health>>,
    /// What else no job can do without, and the phase while it is away.
    needs: Vec<Dependency>,
    /// The jobs in hand in the order in which they came; none until something is known of it.
    jobs: BTreeMap<u64, Option<JobStatus>>,
    taken: u64,
    /// The newest first.
    last: VecDeque<Arc<JobStatus>>,
    counts: JobCounts,
    resources: Option<Resources>,
    /// Rises with each change, which it tells everybody who looks.
    revision: watch::Sender<u64>,
}

impl StatusBoard {
    /// The board of a worker that boots.
    #[must_use]
    pub fn new(worker: String) -> Self {
        Self(Arc::new(Mutex::new(Contents {
            since: Instant::now(),
            started: now_ms(),
            phase: Phase::Booting,
            worker,
            versions: Versions { worker: env!("CARGO_PKG_VERSION"), ..Versions::default() },
            broker: None,
            needs: Vec::new(),
            jobs: BTreeMap::new(),
            taken: 0,
            last: VecDeque::new(),
            counts: JobCounts::default(),
            resources: None,
            revision: watch::Sender::new(0),
        })))
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The worker has come to `phase`.
    pub fn enter(&self, phase: Phase) {
        self.change(|contents, _| contents.phase = phase);
    }

    /// Notes how the broker is, now and from now on.
    pub fn connected(&self, broker: watch::Receiver<Health>) {
        self.change(|contents, _| contents.broker = Some(broker));
    }

    /// From now on, no job can be taken while this is away.
    pub fn depends_on(&self, need: &Dependency) {
        self.change(|contents, _| contents.needs.push(need.clone()));
    }

    /// Takes jobs, with a ComfyUI of that version.
    pub fn ready(&self, comfyui_version: &str) {
        self.change(|contents, _| {
            contents.versions.comfyui = Some(one_line(comfyui_version, VERSION));
            contents.phase = Phase::Ready;
        });
    }

    /// What converts: the frontend's version, and Chromium's (`Chrome/156.0.8078.79`).
    pub fn converts_with(&self, frontend: Option<&str>, chromium: &str) {
        self.change(|contents, _| {
            contents.versions.frontend = frontend.map(|version| one_line(version, VERSION));
            contents.versions.chromium =
                Some(one_line(chromium, VERSION)).filter(|version| !version.is_empty());
        });
    }

    /// What is used of the machine now.
    pub fn resources(&self, resources: Resources) {
        let resources = Some(resources.bounded());
        self.change(|contents, _| contents.resources = resources);
    }

    /// Changes something, with the number of the change, and tells anyone who looks.
    fn change<T>(&self, change: impl FnOnce(&mut Contents, u64) -> T) -> T {
        let mut contents = self.contents();
        let revision = *contents.revision.borrow() + 1;
        let changed = change(&mut contents, revision);
        contents.revision.send_replace(revision);
        changed
    }

    /// Why no job can be taken now; `None`: ready.
    #[must_use]
    pub fn unready_reason(&self) -> Option<String> {
        self.contents().unready_reason()
    }

    /// Everything.
    #[must_use]
    pub fn status(&self) -> Status {
        let (status, last) = {
            let contents = self.contents();
            let mut jobs = contents.jobs.values().flatten().map(|card| card.view(0));
            let status = Status {
                state: contents.phase(),
                unready: contents.unready_reason(),
                uptime_seconds: contents.since.elapsed().as_secs(),
                worker: contents.worker.clone(),
                version: contents.versions.worker,
                comfyui_version: contents.versions.comfyui.clone(),
                frontend_version: contents.versions.frontend.clone(),
                chromium_version: contents.versions.chromium.clone(),
                jobs: contents.counts,
                resources: contents.resources.clone(),
                job: jobs.next(),
                next_jobs: jobs.collect(),
                last_jobs: Vec::new(),
            };
            (status, contents.last.clone())
        };
        Status { last_jobs: last.iter().map(|card| card.view(0)).collect(), ..status }
    }

    /// Follows the number of the last change.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.contents().revision.subscribe()
    }

    /// What has changed after `revision`; after 0: everything.
    pub(super) fn news(&self, revision: u64) -> StatusDelta {
        let (mut news, last) = {
            let contents = self.contents();
            let cards = || contents.jobs.values().flatten();
            let news = StatusDelta {
                now: now_ms(),
                revision: *contents.revision.borrow(),
                worker: contents.worker(),
                in_hand: cards().map(JobStatus::key).collect(),
                jobs: cards()
                    .filter(|card| card.revision() > revision)
                    .map(|card| card.view(revision))
                    .collect(),
                ended: Vec::new(),
            };
            let last = contents.last.iter().take_while(|card| card.revision() > revision);
            (news, last.cloned().collect::<Vec<_>>())
        };
        news.ended = last.iter().rev().map(|card| card.view(0)).collect();
        news
    }

    /// The last preview of a job in hand.
    pub(super) fn preview(&self, id: &JobId) -> Option<(&'static str, Bytes)> {
        let contents = self.contents();
        let mut cards = contents.jobs.values().rev().flatten().filter(|card| card.id() == id.as_str());
        let Image { content_type, bytes, .. } = cards.find_map(JobStatus::last_preview)?;
        Some((content_type, bytes.clone()))
    }

    /// Where the `index`th output of one of the last jobs is, if it is a picture to be looked at.
    pub(super) fn picture(&self, id: &JobId, index: usize) -> Option<StoredPicture> {
        let contents = self.contents();
        let mut cards = contents.last.iter().filter(|card| card.id() == id.as_str());
        cards.find_map(|card| card.picture(index)).cloned()
    }

    /// A place for a job in hand.
    #[must_use]
    pub fn take_job(&self) -> JobHandle {
        let mut contents = self.contents();
        contents.taken += 1;
        let number = contents.taken;
        contents.jobs.insert(number, None);
        JobHandle { board: self.clone(), number }
    }
}

/// Where a job in hand is told of; dropped, the job is in hand no longer.
#[derive(Debug)]
pub struct JobHandle {
    board: StatusBoard,
    number: u64,
}

impl JobHandle {
    /// The job is answered so: told before the message is settled, and of a job that never ran, too.
    pub fn answered(&self, body: &[u8]) {
        // Read before the lock is taken: a result can hold megabytes.
        let is_told = self
            .board
            .contents()
            .jobs
            .get(&self.number)
            .is_some_and(|job| job.as_ref().is_some_and(JobStatus::has_outcome));
        if is_told {
            return;
        }
        let Ok(result) = serde_json::from_slice::<JobResult>(body) else { return };
        self.board.change(|contents, revision| {
            let card = JobStatus::unrun(self.number, &result, now_ms(), revision);
            contents.jobs.insert(self.number, Some(card));
        });
    }

    /// The job goes back to the queue for this reason.
    pub fn handed_back(&self, reason: &str) {
        self.change_card(|card, revision| card.hand_back(reason, revision));
    }

    fn change_card(&self, change: impl FnOnce(&mut JobStatus, u64)) {
        self.board.change(|contents, revision| {
            if let Some(Some(card)) = contents.jobs.get_mut(&self.number) {
                change(card, revision);
            }
        });
    }
}

impl Drop for JobHandle {
    fn drop(&mut self) {
        self.board.change(|contents, revision| {
            let Some(card) = contents.jobs.remove(&self.number).flatten() else { return };
            let card = card.leave(now_ms(), revision);
            let JobCounts { succeeded, failed, cancelled, handed_back } = &mut contents.counts;
            *match card.left() {
                Some(JobEnding::Succeeded) => succeeded,
                Some(JobEnding::Failed) => failed,
                Some(JobEnding::Cancelled) => cancelled,
                Some(JobEnding::HandedBack) | None => handed_back,
            } += 1;
            contents.last.push_front(Arc::new(card));
            contents.last.truncate(LAST_JOBS);
        });
    }
}

impl Contents {
    fn unready_reason(&self) -> Option<String> {
        match self.phase {
            Phase::Booting => Some("booting".to_owned()),
            Phase::Draining => Some("draining".to_owned()),
            Phase::Ready | Phase::StoreAway | Phase::DiskFull => {
                let need = self.needs.iter().find_map(Dependency::trouble);
                need.or_else(|| self.broker.as_ref()?.borrow().trouble().map(str::to_owned))
            }
        }
    }

    /// Where the worker is, with what is away.
    fn phase(&self) -> Phase {
        let away = self.needs.iter().find(|need| need.is_away()).map(Dependency::name);
        match (self.phase, away) {
            (Phase::Ready, Some("disk")) => Phase::DiskFull,
            (Phase::Ready, Some(_)) => Phase::StoreAway,
            (phase, _) => phase,
        }
    }

    fn worker(&self) -> WorkerView {
        WorkerView {
            id: self.worker.clone(),
            state: self.phase(),
            unready: self.unready_reason().map(|reason| one_line(&reason, REASON)),
            started_at: self.started,
            versions: self.versions.clone(),
            jobs: self.counts,
            resources: self.resources.clone(),
        }
    }
}

impl EventSink for JobHandle {
    fn event(&self, event: &JobEvent) {
        self.board.change(|contents, revision| {
            if let Some(job) = contents.jobs.get_mut(&self.number) {
                match job {
                    Some(card) => card.event(event, revision),
                    None => *job = Some(JobStatus::new(self.number, event, revision)),
                }
            }
        });
    }

    fn preview(&self, preview: &Preview<'_>) {
        self.change_card(|card, revision| card.preview(preview, revision));
    }

    fn ended(&self, result: &JobResult) {
        self.change_card(|card, revision| card.settle(result, revision));
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "board_tests.rs"]
mod tests;
