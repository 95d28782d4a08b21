//! How far an attempt is: the one place that knows (with its [`ExecutionObserver`] while ComfyUI executes), and that tells
//! the others. The trace and the logs get stages, followers and the status page get events, the scheduler and the result
//! get times.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use contract::{
    event::EventKind,
    result::{JobResult, Timings},
};

use super::{
    observer::ExecutionObserver,
    report::Reporter,
    scheduler::{JobPermit, PromptPermit},
};
use crate::{
    metrics,
    telemetry::{JobSpan, SpanError, StageName, StageSpan},
};
use connector::{comfy::Executed, deliver::EagerUploads, phases, stage::Staged};

/// Follows one attempt.
pub(super) struct JobProgress<'a> {
    permit: &'a JobPermit,
    span: &'a JobSpan,
    reporter: Reporter,
    timings: Mutex<Timings>,
}

impl<'a> JobProgress<'a> {
    pub(super) fn new(
        permit: &'a JobPermit,
        span: &'a JobSpan,
        reporter: Reporter,
        timings: Timings,
    ) -> Self {
        Self { permit, span, reporter, timings: Mutex::new(timings) }
    }

    /// What the stages have taken until now, those of the last try.
    pub(super) fn timings(&self) -> Timings {
        *self.timings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn time(&self, note: impl FnOnce(&mut Timings)) {
        note(&mut self.timings.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// A step is done.
    pub(super) async fn reached(&self, step: EventKind) {
        let name = step.name();
        self.reporter.tell(step);
        phases::reached(name).await;
    }

    /// A try begins.
    pub(super) fn prepares(&self) {
        self.permit.prepare();
    }

    /// `work`, which is all of that stage.
    pub(super) async fn stage<T, E: SpanError>(
        &self,
        name: StageName,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let begun = Instant::now();
        let done = self.span.stage(name).run(work).await?;
        let took = ms(begun.elapsed());
        self.time(|timings| match name {
            StageName::Stage => timings.staged_ms = took,
            StageName::Convert => timings.converted_ms = took,
            StageName::Upload => timings.uploaded_ms = took,
            _ => {}
        });
        Ok(done)
    }

    /// The inputs are in their places.
    pub(super) async fn staged(&self, staged: &Staged) {
        let models = staged.models.unwrap_or_default().models_cold.bytes;
        metrics::received(models, staged.bytes.saturating_sub(models));
        self.time(|timings| timings.models = staged.models);
        self.reached(EventKind::Staged { files: staged.files, bytes: staged.bytes }).await;
    }

    /// The prompt is ready, after so long.
    pub(super) async fn prepared(&self, nodes: usize, took: Duration) {
        self.reached(EventKind::Converted { nodes }).await;
        self.permit.scheduler().prepared_in(took);
    }

    /// The wait for the execution begins.
    pub(super) fn waits(&self) -> StageSpan {
        self.span.stage(StageName::Wait)
    }

    /// Follows the execution of a prompt that is about to be posted, in the stage `wait`.
    pub(super) fn observe<'b>(
        &'b self,
        place: &'b PromptPermit<'b>,
        early: &'b mut EagerUploads,
        wait: StageSpan,
    ) -> ExecutionObserver<'b> {
        ExecutionObserver::new(&self.reporter, place, early, wait)
    }

    /// ComfyUI is done with the prompt.
    pub(super) async fn executed(&self, executed: &Executed) {
        self.time(|timings| {
            timings.waited_ms = ms(executed.waited);
            timings.executed_ms = ms(executed.executed);
        });
        self.reached(EventKind::Executed).await;
    }

    /// An output is in its place: `done` of so many.
    pub(super) fn uploaded(&self, filename: &str, bytes: u64, done: usize, of: usize) {
        self.reporter.tell(EventKind::Uploaded { filename: filename.to_owned(), bytes, done, of });
    }

    /// The result is durable.
    pub(super) async fn ended(&self, result: &JobResult) {
        self.span.ended(result);
        phases::reached("result-stored").await;
        self.reporter.ended(result);
    }
}

pub(super) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
