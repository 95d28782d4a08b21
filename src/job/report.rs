//! Events of one attempt, numbered, dated and rate-limited, to anyone who listens.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use contract::{
    JobId,
    event::{EventKind, JobEvent},
    result::JobResult,
};

use crate::events::{EventSink, Preview};
use connector::comfy::{PromptId, events::Image, tracker::Progress};

/// Progress is told at most this often.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// Previews are shown at most this often.
const PREVIEW_EVERY: Duration = Duration::from_millis(500);

/// Tells of one attempt.
pub(super) struct Reporter {
    id: JobId,
    worker: String,
    attempt: u32,
    seq: AtomicU64,
    sink: Arc<dyn EventSink>,
    limits: Mutex<Limits>,
}

#[derive(Default)]
struct Limits {
    progress: Option<(Instant, String)>,
    preview: Option<Instant>,
}

impl Reporter {
    /// For this attempt of this job.
    pub(super) fn new(id: JobId, worker: String, attempt: u32, sink: Arc<dyn EventSink>) -> Self {
        Self { id, worker, attempt, seq: AtomicU64::default(), sink, limits: Mutex::default() }
    }

    /// Tells of an event.
    pub(super) fn tell(&self, kind: EventKind) {
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

    /// Tells that the result is durable.
    pub(super) fn ended(&self, result: &JobResult) {
        self.tell(EventKind::Finished { status: result.status });
        self.sink.ended(result);
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

/// As an [`Observer`](connector::comfy::Observer) is told.
impl Reporter {
    pub(super) fn queued(&self, prompt_id: PromptId) {
        self.tell(EventKind::Queued { prompt_id: prompt_id.to_string() });
    }

    pub(super) fn started(&self) {
        self.tell(EventKind::Started);
    }

    pub(super) fn progress(&self, progress: &Progress) {
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
        let Progress { node, title, value, max, fraction, .. } = progress.clone();
        self.tell(EventKind::Progress { node, title, value, max, fraction });
    }

    pub(super) fn preview(&self, image: &Image) {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[derive(Default)]
    struct Heard {
        events: Mutex<Vec<JobEvent>>,
        previews: Mutex<Vec<u64>>,
    }

    impl EventSink for Heard {
        fn event(&self, event: &JobEvent) {
            self.events.lock().unwrap().push(event.clone());
        }

        fn preview(&self, preview: &Preview<'_>) {
            assert_eq!((preview.id.as_str(), preview.attempt, preview.worker), ("job", 2, "w"));
            self.previews.lock().unwrap().push(preview.seq);
        }

        fn ended(&self, _: &JobResult) {}
    }

    fn reporter() -> (Reporter, Arc<Heard>) {
        let heard = Arc::new(Heard::default());
        (Reporter::new("job".parse().unwrap(), "w".into(), 2, heard.clone()), heard)
    }

    fn step(node: &str, value: f64) -> Progress {
        Progress {
            node: node.into(),
            title: "T".into(),
            value,
            max: 20.0,
            fraction: value / 20.0,
            left: None,
        }
    }

    #[test]
    fn events_are_numbered_dated_and_signed() {
        let (reporter, heard) = reporter();
        reporter.tell(EventKind::Accepted);
        reporter.started();
        let events = heard.events.lock().unwrap();
        let seqs: Vec<u64> = events.iter().map(|event| event.seq).collect();
        assert_eq!(seqs, [0, 1]);
        for event in events.iter() {
            assert_eq!((event.version, event.attempt, event.worker.as_str()), (1, 2, "w"));
            assert!(event.at > 1_600_000_000_000 && event.at <= now_ms());
        }
    }

    #[test]
    fn steps_are_told_now_and_then_and_new_nodes_always() {
        let (reporter, heard) = reporter();
        let begin = Instant::now();
        let mut told = 0;
        for value in 0..20_000 {
            reporter.progress(&step("3", f64::from(value % 20)));
            told += 1;
        }
        let limit = begin.elapsed().as_millis() / PROGRESS_EVERY.as_millis() + 1;
        let first = heard.events.lock().unwrap().len();
        assert!(u128::try_from(first).unwrap() <= limit, "{first} of {told} in {:?}", begin.elapsed());
        reporter.progress(&step("4", 1.0));
        reporter.progress(&step("5", 1.0));
        assert_eq!(heard.events.lock().unwrap().len(), first + 2);
        // What was not told uses up no number.
        let last = heard.events.lock().unwrap().last().unwrap().seq;
        assert_eq!(last, u64::try_from(first).unwrap() + 1);
    }

    #[test]
    fn previews_are_shown_now_and_then() {
        let (reporter, heard) = reporter();
        let image = Image { node: None, content_type: "image/png", bytes: bytes::Bytes::new() };
        let begin = Instant::now();
        for _ in 0..5_000 {
            reporter.preview(&image);
        }
        let limit = begin.elapsed().as_millis() / PREVIEW_EVERY.as_millis() + 1;
        let shown = heard.previews.lock().unwrap().len();
        assert!(shown >= 1 && u128::try_from(shown).unwrap() <= limit, "{shown} in {:?}", begin.elapsed());
        // Neither limit uses up the other's.
        reporter.progress(&step("3", 1.0));
        assert_eq!(heard.events.lock().unwrap().len(), 1);
    }
}
