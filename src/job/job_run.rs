//! The run of one accepted message: its attempt opened, tries until there is a result, the result made durable.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use contract::{
    event::EventKind,
    failure::Failure,
    request::JobRequest,
    result::{JobResult, Stage, Status, Timings, WorkerInfo},
};
use tokio::time::sleep;

use super::{
    answer::failed,
    attempt::{OpenAttempt, Opened, Records},
    decision::{Decision, Recovery},
    execution::{ExecutedJob, Executor},
    heartbeat::{close, kept_alive},
    in_flight::Cancellation,
    message::JobMessage,
    progress::{JobProgress, ms},
    report::Reporter,
    retries::{CompletedWork, Retries, StepFailure},
    runner::{Answer, Runner},
    scheduler::JobPermit,
    stage_failure::StageFailure,
};
use crate::{
    events::EventSink,
    telemetry::{JobSpan, StageName, StageSpan},
};

/// From asking ComfyUI to free memory to the next prompt. It tells nobody when it has.
const FREE_PAUSE: Duration = Duration::from_secs(1);

/// What every step of an accepted message's run knows.
#[derive(Clone, Copy)]
pub(super) struct JobContext<'a> {
    pub(super) runner: &'a Runner,
    pub(super) incoming: &'a JobMessage,
    pub(super) permit: &'a JobPermit,
    /// Cancelled when the job must end, at any stage.
    pub(super) cancellation: &'a Cancellation,
    pub(super) retries: &'a Retries<'a>,
    pub(super) span: &'a JobSpan,
}

impl JobContext<'_> {
    /// `work`, unless a drain begins or the job must end: for steps whose work another worker does as well.
    pub(super) async fn unless_interrupted<T>(&self, work: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::select! {
            // First: work that needs no wait would be done at once.
            biased;
            () = self.runner.shutdown.stop.cancelled() => Err(Failure::Draining),
            why = self.cancellation.called() => Err(why),
            done = work => Ok(done),
        }
    }
}

/// The run of one accepted message.
pub(super) struct JobRun<'a> {
    context: JobContext<'a>,
    accepted_at: Instant,
    timings: Timings,
}

impl<'a> JobRun<'a> {
    pub(super) fn new(context: JobContext<'a>, accepted_at: Instant, timings: Timings) -> Self {
        Self { context, accepted_at, timings }
    }

    /// The answer; an error says what becomes of the message instead.
    pub(super) async fn run(
        self,
        job: &JobRequest,
        accept: StageSpan,
        sink: Arc<dyn EventSink>,
    ) -> Result<Answer, StepFailure> {
        let JobContext { runner, incoming, permit, retries, span, .. } = self.context;
        let records =
            Records::new(&*runner.store, &runner.base, job.id.as_str()).map_err(StepFailure::unanswered)?;
        let records = records.traced(span.traceparent()).monitored(runner.store_monitor.dependency());
        let attempt = match self.open(job, accept, &records).await? {
            AttemptStart::Attempt(attempt) => attempt,
            AttemptStart::Answered(answer) => return Ok(answer),
        };
        let reporter = Reporter::new(job.id.clone(), runner.worker_id.clone(), attempt.number, sink);
        let progress = JobProgress::new(permit, span, reporter, self.timings);
        progress.reached(EventKind::Accepted).await;
        let work = async {
            if attempt.crashes > 0 {
                retries.unless_interrupted(permit.alone(), CompletedWork::None).await?;
            }
            let mut executor = Executor::new(self.context, job, attempt.number, &progress);
            let mut result = loop {
                match Box::pin(executor.execute()).await {
                    Ok(done) => break self.succeeded(job, attempt.number, done, &executor),
                    Err(failure) => {
                        if let Some(result) = self.after(failure, job, attempt.number, &mut executor).await? {
                            break result;
                        }
                    }
                }
            };
            let recording = runner.record(&records, retries, &mut result);
            let answer = progress.stage(StageName::Record, recording).await?;
            Ok::<_, StepFailure>((result, answer))
        };
        match kept_alive(&records, &attempt, &incoming.lost, work).await {
            Ok((result, answer)) => {
                progress.ended(&result).await;
                Ok(answer)
            }
            Err(stopped) => {
                close(&records, &attempt, &stopped.failure.to_string()).await;
                Err(stopped)
            }
        }
    }

    /// Opens an attempt, unless there is an answer without one.
    async fn open(
        &self,
        job: &JobRequest,
        accept: StageSpan,
        records: &Records<'_>,
    ) -> Result<AttemptStart, StepFailure> {
        let JobContext { runner, incoming, retries, span, .. } = self.context;
        let most = runner.limits.max_attempts;
        let opening = || records.open(&job.digest, &runner.worker_id, most, incoming);
        let (mut result, kept) = match accept.run(retries.persist(CompletedWork::None, opening)).await {
            Ok(Opened::Attempt(attempt)) => {
                span.tries(attempt.number, attempt.former.as_deref());
                return Ok(AttemptStart::Attempt(attempt));
            }
            Ok(Opened::Finished { body, former }) => {
                span.follows(former.as_deref());
                span.had_ended(&body);
                return Ok(AttemptStart::Answered(Answer { body, stored: true }));
            }
            // The result of this id is another job's: this answer is told and not kept.
            Ok(Opened::Conflict) => (self.refused(job, 1, Failure::IdConflict(job.id.to_string())), false),
            Ok(Opened::Poison { attempt, crashes }) => {
                span.tries(attempt.number, attempt.former.as_deref());
                (self.refused(job, attempt.number, Failure::Poison { crashes }), true)
            }
            Err(StepFailure { failure, decision: Decision::Answer }) => (self.refused(job, 1, failure), true),
            Err(stopped) => return Err(stopped),
        };
        span.ended(&result);
        let answer = if kept {
            runner.record(records, retries, &mut result).await
        } else {
            runner.tell(&mut result).await
        };
        answer.map(AttemptStart::Answered)
    }

    /// The result of a job that was not run.
    fn refused(&self, job: &JobRequest, attempt: u32, failure: Failure) -> JobResult {
        let met = StageFailure { stage: Stage::Accept, failure };
        failed(&self.context.runner.worker_id, &job.id, attempt, self.timings, job.metadata.clone(), &met)
    }

    /// What follows from a try that failed: the result, or another try.
    async fn after(
        &self,
        met: StageFailure,
        job: &JobRequest,
        attempt: u32,
        executor: &mut Executor<'_>,
    ) -> Result<Option<JobResult>, StepFailure> {
        let retries = self.context.retries;
        let stage = StageName::from(met.stage);
        // What was executed is not given back for want of a place for its outputs.
        let holding = if met.stage == Stage::Upload { CompletedWork::Outputs } else { CompletedWork::None };
        match retries.decide(&met.failure, holding).await {
            Decision::Answer => {
                tracing::info!(%stage, error = %met.failure, "job failed");
                return Ok(Some(self.failed(job, attempt, &met, executor).await));
            }
            Decision::RetryHere(recovery) => {
                tracing::warn!(%stage, error = %met.failure, "job tried again here");
                if let Failure::OutputMissing { nodes, .. } = met.failure {
                    executor.rerun = nodes;
                }
                retries.unless_interrupted(self.recover(recovery), CompletedWork::None).await?;
            }
            Decision::WaitFor(need) => retries.wait_for(need, met.failure, CompletedWork::None).await?,
            decision => {
                tracing::warn!(%stage, error = %met.failure, "job not finished here");
                return Err(StepFailure { failure: met.failure, decision });
            }
        }
        Ok(None)
    }

    async fn recover(&self, recovery: Recovery) {
        match recovery {
            Recovery::Nothing | Recovery::RunAgain => {}
            Recovery::Pause(pause) => sleep(pause).await,
            Recovery::FreeMemory => {
                // One that is started again has nothing to free.
                let Some(engine) = self.context.runner.connector.running() else { return };
                match engine.server().client().free().await {
                    // A prompt that is there when the prompt thread wakes up goes first.
                    Ok(()) => sleep(FREE_PAUSE).await,
                    Err(error) => tracing::warn!(%error, "ComfyUI did not free its memory"),
                }
            }
        }
    }

    fn total(&self, progress: &JobProgress<'_>) -> Timings {
        let timings = progress.timings();
        Timings { total_ms: timings.queued_ms + ms(self.accepted_at.elapsed()), ..timings }
    }

    fn succeeded(
        &self,
        job: &JobRequest,
        attempt: u32,
        done: ExecutedJob,
        executor: &Executor<'_>,
    ) -> JobResult {
        JobResult {
            version: 1,
            id: job.id.clone(),
            status: Status::Succeeded,
            outputs: done.outputs,
            history: Some(done.records.history.to_string()),
            prompt: Some(done.records.prompt.to_string()),
            error: None,
            warnings: done.warnings,
            timings: self.total(executor.progress),
            nodes: done.nodes,
            attempt,
            worker: WorkerInfo {
                id: self.context.runner.worker_id.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                comfyui_version: executor.comfyui_version(),
            },
            metadata: job.metadata.clone(),
        }
    }

    async fn failed(
        &self,
        job: &JobRequest,
        attempt: u32,
        met: &StageFailure,
        executor: &Executor<'_>,
    ) -> JobResult {
        let records = executor.store_failed_records().await;
        let timings = self.total(executor.progress);
        let mut result =
            failed(&self.context.runner.worker_id, &job.id, attempt, timings, job.metadata.clone(), met);
        result.worker.comfyui_version = executor.comfyui_version();
        if let Some(records) = records {
            result.history = Some(records.history.to_string());
            result.prompt = Some(records.prompt.to_string());
        }
        result
    }
}

/// How a run begins.
enum AttemptStart {
    Attempt(OpenAttempt),
    Answered(Answer),
}
