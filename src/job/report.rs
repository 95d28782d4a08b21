//! Events of one attempt, numbered, dated and rate-limited, to whoever listens.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{
    JobId,
    event::{EventKind, JobEvent},
};
use crate::comfy::{Observer, PromptId, events::Image, tracker::Progress};

/// Progress is told at most this often.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// Previews are shown at most this often.
const PREVIEW_EVERY: Duration = Duration::from_millis(500);

/// Takes events; must neither block nor fail.
pub trait EventSink: Send + Sync {
    /// Something happened.
    fn event(&self, event: &JobEvent);

    /// A picture of the work in progress.
    fn preview(&self, preview: &Preview<'_>);
}

/// A preview and where it belongs.
#[derive(Debug)]
pub struct Preview<'a> {
    /// The job.
    pub id: &'a JobId,
    /// Its place among the attempt's events.
    pub seq: u64,
    /// Unix time in milliseconds.
    pub at: u64,
    /// Which attempt.
    pub attempt: u32,
    /// Who runs it.
    pub worker: &'a str,
    /// The picture.
    pub image: &'a Image,
}

/// Tells of one attempt.
#[derive(Clone)]
pub struct Reporter {
    id: JobId,
    worker: String,
    attempt: u32,
    seq: Arc<AtomicU64>,
    sink: Arc<dyn EventSink>,
    limits: Arc<Mutex<Limits>>,
}

#[derive(Default)]
struct Limits {
    progress: Option<(Instant, String)>,
    preview: Option<Instant>,
}

impl Reporter {
    /// For this attempt of this job.
    #[must_use]
    pub fn new(id: JobId, worker: String, attempt: u32, sink: Arc<dyn EventSink>) -> Self {
        Self { id, worker, attempt, seq: Arc::default(), sink, limits: Arc::default() }
    }

    /// Tells of an event.
    pub fn tell(&self, kind: EventKind) {
        self.sink.event(&JobEvent {
            version: 1,
            id: self.id.clone(),
            seq: self.next(),
            at: now_ms(),
            attempt: self.attempt,
            worker: self.worker.clone(),
            kind,
        });
    }

    fn next(&self) -> u64 {
        self.seq.fetch_add(1, Ordering::Relaxed)
    }
}

/// Unix time in milliseconds.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Observer for Reporter {
    fn queued(&mut self, prompt_id: PromptId) {
        self.tell(EventKind::Queued { prompt_id: prompt_id.to_string() });
    }

    fn started(&mut self) {
        self.tell(EventKind::Started);
    }

    fn progress(&mut self, progress: &Progress) {
        {
            let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
            // A new node is always told, its steps now and then.
            if let Some((last, node)) = &limits.progress
                && last.elapsed() < PROGRESS_EVERY
                && *node == progress.node
            {
                return;
            }
            limits.progress = Some((Instant::now(), progress.node.clone()));
        }
        let Progress { node, title, value, max, fraction } = progress.clone();
        self.tell(EventKind::Progress { node, title, value, max, fraction });
    }

    fn preview(&mut self, image: &Image) {
        {
            let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
            if limits.preview.is_some_and(|last| last.elapsed() < PREVIEW_EVERY) {
                return;
            }
            limits.preview = Some(Instant::now());
        }
        self.sink.preview(&Preview {
            id: &self.id,
            seq: self.next(),
            at: now_ms(),
            attempt: self.attempt,
            worker: &self.worker,
            image,
        });
    }
}
