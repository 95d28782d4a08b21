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
    execution::{Done, Executor},
    heartbeat::{close, kept_alive},
    in_flight::Cancellation,
    incoming::Incoming,
    report::Reporter,
    retries::{Holding, Retries, Stopped},
    runner::{Answer, Runner, ms},
    scheduler::JobPermit,
    stage_failure::StageFailure,
};
use crate::{
    events::EventSink,
    telemetry::{JobSpan, StageName, StageSpan},
};

/// From asking ComfyUI to free memory to the next prompt. It tells nobody when it has.
const FREE_PAUSE: Duration = Duration::from_secs(1);

/// One accepted message's way.
pub(super) struct JobRun<'a> {
    pub(super) runner: &'a Runner,
    pub(super) incoming: &'a Incoming,
    pub(super) permit: &'a JobPermit,
    pub(super) end: &'a Cancellation,
    pub(super) retries: &'a Retries<'a>,
    pub(super) span: &'a JobSpan,
    pub(super) accepted_at: Instant,
    pub(super) timings: Timings,
}

impl JobRun<'_> {
    /// The answer; an error says what becomes of the message instead.
    pub(super) async fn live(
        mut self,
        job: &JobRequest,
        accept: StageSpan,
        sink: Arc<dyn EventSink>,
    ) -> Result<Answer, Stopped> {
        let (runner, span) = (self.runner, self.span);
        let records =
            Records::new(&*runner.store, &runner.base, job.id.as_str()).map_err(Stopped::unanswered)?;
        let records = records.traced(span.traceparent()).monitored(runner.store_monitor.dependency());
        let most = runner.limits.max_attempts;
        let incoming = self.incoming;
        let opening = || records.open(&job.digest, &runner.worker_id, most, incoming);
        let attempt = match accept.run(self.retries.persist(Holding::Inputs, opening)).await {
            Ok(Opened::Attempt(attempt)) => attempt,
            Ok(Opened::Finished { body, former }) => {
                span.follows(former.as_deref());
                span.had_ended(&body);
                return Ok(Answer { body, stored: true });
            }
            Ok(Opened::Conflict) => {
                // The manifest of this id is another job's: this answer is told and not kept.
                let mut result = self.refused(job, 1, Failure::IdConflict(job.id.to_string()));
                span.ended(&result);
                return runner.tell(&mut result).await;
            }
            Ok(Opened::Poison { attempt, crashes }) => {
                let mut result = self.refused(job, attempt.number, Failure::Poison { crashes });
                span.tries(attempt.number, attempt.former.as_deref());
                span.ended(&result);
                return runner.record(&records, self.retries, &mut result).await;
            }
            Err(Stopped { failure, decision: Decision::Answer }) => {
                let mut result = self.refused(job, 1, failure);
                span.ended(&result);
                return runner.record(&records, self.retries, &mut result).await;
            }
            Err(stopped) => return Err(stopped),
        };
        span.tries(attempt.number, attempt.former.as_deref());
        let reporter = Reporter::new(job.id.clone(), runner.worker_id.clone(), attempt.number, sink);
        reporter.tell(EventKind::Accepted);
        crate::phases::reached("accepted").await;
        let lost = &self.incoming.lost;
        let work = async {
            let mut result = Box::pin(self.attempts(job, &attempt, &reporter)).await?;
            let recording = runner.record(&records, self.retries, &mut result);
            let answer = span.stage(StageName::Record).run(recording).await?;
            Ok::<_, Stopped>((result, answer))
        };
        match kept_alive(&records, &attempt, lost, work).await {
            Ok((result, answer)) => {
                span.ended(&result);
                crate::phases::reached("result-stored").await;
                reporter.ended(&result);
                Ok(answer)
            }
            Err(stopped) => {
                close(&records, &attempt, &stopped.failure.to_string()).await;
                Err(stopped)
            }
        }
    }

    /// The result of a job that was not run.
    fn refused(&self, job: &JobRequest, attempt: u32, failure: Failure) -> JobResult {
        let met = StageFailure { stage: Stage::Accept, failure };
        failed(&self.runner.worker_id, &job.id, attempt, self.timings, job.metadata.clone(), &met)
    }

    /// Tries until there is a result.
    async fn attempts(
        &mut self,
        job: &JobRequest,
        attempt: &OpenAttempt,
        reporter: &Reporter,
    ) -> Result<JobResult, Stopped> {
        if attempt.crashes > 0 {
            self.retries.unless_interrupted(self.permit.alone(), Holding::Inputs).await?;
        }
        let mut executor = Executor::new(
            self.runner,
            self.permit,
            job,
            attempt.number,
            reporter,
            self.end,
            self.retries,
            self.span,
        );
        loop {
            let met = match Box::pin(executor.execute(&mut self.timings)).await {
                Ok(done) => return Ok(self.succeeded(job, attempt.number, done, &executor)),
                Err(met) => met,
            };
            let stage = StageName::from(met.stage);
            // What was executed is not given back for want of a place for its outputs.
            let in_hand = if met.stage == Stage::Upload { Holding::Outputs } else { Holding::Inputs };
            match self.retries.decide(&met.failure, in_hand).await {
                Decision::Answer => {
                    tracing::info!(%stage, error = %met.failure, "job failed");
                    return Ok(self.failed(job, attempt.number, &met, &executor).await);
                }
                Decision::RetryHere(recovery) => {
                    tracing::warn!(%stage, error = %met.failure, "job tried again here");
                    if let Failure::OutputMissing { nodes, .. } = met.failure {
                        executor.rerun = nodes;
                    }
                    self.retries.unless_interrupted(self.recover(recovery), Holding::Inputs).await?;
                }
                Decision::WaitFor(need) => {
                    self.retries.wait_for(need, met.failure, Holding::Inputs).await?;
                }
                decision => {
                    tracing::warn!(%stage, error = %met.failure, "job not finished here");
                    return Err(Stopped { failure: met.failure, decision });
                }
            }
        }
    }

    async fn recover(&self, recovery: Recovery) {
        match recovery {
            Recovery::Nothing | Recovery::RunAgain => {}
            Recovery::Pause(pause) => sleep(pause).await,
            Recovery::FreeMemory => {
                // One that is started again has nothing to free.
                let Some(engine) = self.runner.connector.running() else { return };
                match engine.server().client().free().await {
                    // A prompt that is there when the prompt thread wakes up goes first.
                    Ok(()) => sleep(FREE_PAUSE).await,
                    Err(error) => tracing::warn!(%error, "ComfyUI did not free its memory"),
                }
            }
        }
    }

    fn total(&mut self) -> Timings {
        self.timings.total_ms = self.timings.queued_ms + ms(self.accepted_at.elapsed());
        self.timings
    }

    fn succeeded(
        &mut self,
        job: &JobRequest,
        attempt: u32,
        done: Done,
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
            timings: self.total(),
            nodes: done.nodes,
            attempt,
            worker: WorkerInfo {
                id: self.runner.worker_id.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                comfyui_version: executor.comfyui_version(),
            },
            metadata: job.metadata.clone(),
        }
    }

    async fn failed(
        &mut self,
        job: &JobRequest,
        attempt: u32,
        met: &StageFailure,
        executor: &Executor<'_>,
    ) -> JobResult {
        let records = executor.left_records().await;
        let timings = self.total();
        let mut result = failed(&self.runner.worker_id, &job.id, attempt, timings, job.metadata.clone(), met);
        result.worker.comfyui_version = executor.comfyui_version();
        if let Some(records) = records {
            result.history = Some(records.history.to_string());
            result.prompt = Some(records.prompt.to_string());
        }
        result
    }
}
