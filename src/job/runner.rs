//! A job's life: accept, stage ∥ convert, apply, run, collect, upload, result.
//!
//! Invariant: an [`Ending::Answered`] is durable before it is returned; the caller publishes it and
//! acks, in that order.

use std::{
    collections::HashMap,
    convert::Infallible,
    mem::discriminant,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    answer::{encode, failed},
    attempt::{OpenAttempt, Opened, Records},
    end::{End, InHand, Stops},
    event::EventKind,
    execution::{Done, Executor},
    failure::Failure,
    incoming::{Ending, Fault, Incoming},
    lane::{Lane, Turn},
    met::Met,
    report::{EventSink, Reporter},
    request::{JobRequest, Refused},
    result::{JobResult, Stage, Status, Timings, WorkerInfo},
    verdict::{Remedy, Verdict, verdict},
};
use crate::{
    comfy::forecast::Forecasts,
    config::{Config, JobConfig, OutputsConfig},
    connector::ComfyConnector,
    metrics,
    store::{ObjectStore, ObjectUri},
    telemetry::{JobSpan, StageName, StageSpan, keep_secret},
};

/// Longest closing of an attempt's marker: a store that is away must not hold up a hand-back.
const CLOSE_LIMIT: Duration = Duration::from_secs(3);

/// From asking ComfyUI to free memory to the next prompt. It tells nobody when it has.
const FREE_PAUSE: Duration = Duration::from_secs(1);

/// Runs jobs side by side, each in its turn; of past ones it knows how long they took.
pub struct Runner {
    /// ComfyUI and the browser.
    pub connector: ComfyConnector,
    /// Where objects are.
    pub store: Arc<dyn ObjectStore>,
    /// Where results go.
    pub base: ObjectUri,
    /// Where outputs may go beside that.
    pub outputs: OutputsConfig,
    /// Limits.
    pub limits: JobConfig,
    /// Longest staging of one job's inputs.
    pub staging_limit: Duration,
    /// This worker's name.
    pub worker_id: String,
    /// When to stop and when to let go.
    pub stops: Stops,
    /// The jobs in hand, for whoever cancels one.
    pub in_hand: InHand,
    /// Their order in ComfyUI.
    pub lane: Lane,
    /// How long prompts took.
    pub forecasts: Forecasts,
    /// The key of a job's metadata that says whom it is for.
    pub tenant_key: Option<String>,
}

impl Runner {
    /// With the limits, allowances and name of `config`.
    #[must_use]
    pub fn new(
        connector: ComfyConnector,
        store: Arc<dyn ObjectStore>,
        base: ObjectUri,
        config: &Config,
        stops: Stops,
    ) -> Self {
        Self {
            connector,
            store,
            base,
            outputs: config.outputs.clone(),
            limits: config.job.clone(),
            staging_limit: config.inputs.timeout,
            worker_id: config.worker.id.clone(),
            stops,
            in_hand: InHand::default(),
            lane: Lane::new(config.amqp.lookahead),
            forecasts: Forecasts::default(),
            tenant_key: config.metrics.tenant_key.clone(),
        }
    }

    /// Takes a message from acceptance to its durable result, or back to the queue; `turn`: its place
    /// among the others.
    pub async fn run(&self, incoming: Incoming, turn: &Turn, sink: Arc<dyn EventSink>) -> Ending {
        let span = incoming.span.clone();
        let ending = Box::pin(self.bring_to_its_end(incoming, turn, sink)).await;
        if let Ending::HandBack { reason, fault } = &ending {
            span.goes_back(reason, *fault != Fault::None);
        }
        ending
    }

    async fn bring_to_its_end(&self, incoming: Incoming, turn: &Turn, sink: Arc<dyn EventSink>) -> Ending {
        let (accepted_at, span) = (Instant::now(), &incoming.span);
        let accept = span.stage(StageName::Accept);
        let job = match self.accept(&incoming) {
            Ok(job) => job,
            Err(refused) => {
                refused.id.iter().for_each(|id| span.is_of(id));
                span.is_refused(&refused.failure);
                accept.fails(&refused.failure);
                return accept.within(self.refuse(*refused, incoming.answerable)).await;
            }
        };
        span.is_of(&job.id);
        // Nodes may print it, and errors hold it.
        let _kept = job.api_key_comfy_org.as_ref().map(keep_secret);
        // Clocks that disagree give zero.
        let queued = incoming.published_at.and_then(|then| then.elapsed().ok()).unwrap_or_default();
        if incoming.published_at.is_some() {
            metrics::job_waited(queued);
        }
        let timings = Timings { queued_ms: ms(queued), ..Timings::default() };
        let held = tokio::select! {
            biased;
            held = accept.within(self.in_hand.hold(&job.id)) => held,
            () = self.stops.stop.cancelled() => return Ending::hand_back(&Failure::Draining),
        };
        let _expiry = incoming.expiration.map(|whole| held.end.expire(whole, queued));
        let life =
            Life { runner: self, turn, end: &held.end, lost: &incoming.lost, span, accepted_at, timings };
        match life.live(&job, accept, sink).await {
            Ok(body) => Ending::Answered { id: job.id, body },
            Err(failure) => Ending::hand_back(&failure),
        }
    }

    /// Takes a message that the broker gave up to its durable result: one that is there already, else
    /// `failure`, or what is wrong with a body that is no job.
    pub async fn give_up(&self, incoming: &Incoming, failure: Failure) -> Ending {
        match self.accept(incoming) {
            // Kept even when nobody listens, as every job's result is.
            Ok(JobRequest { id, digest, metadata, .. }) => {
                self.refuse(Refused { id: Some(id), digest, metadata, failure }, true).await
            }
            Err(refused) => self.refuse(*refused, incoming.answerable).await,
        }
    }

    fn accept(&self, incoming: &Incoming) -> Result<JobRequest, Box<Refused>> {
        JobRequest::accept(&incoming.body, incoming.message_id.as_deref(), self.limits.max_message_bytes)
    }

    /// Answers a body that is no job, when somebody listens.
    async fn refuse(&self, refused: Refused, answerable: bool) -> Ending {
        let Refused { id, digest, metadata, failure } = refused;
        let (Some(id), true) = (id, answerable) else {
            return Ending::Reject { reason: failure.to_string() };
        };
        let met = Met { stage: Stage::Accept, failure };
        let answer =
            |attempt| failed(&self.worker_id, &id, attempt, Timings::default(), metadata.clone(), &met);
        let settled = async {
            let records = Records::new(&*self.store, &self.base, id.as_str())?;
            match records.open(&digest, &self.worker_id, self.limits.max_attempts).await? {
                Opened::Finished { body, .. } => Ok(body),
                Opened::Attempt(attempt) | Opened::Poison { attempt, .. } => {
                    self.settle(&records, &answer(attempt.number)).await
                }
                // The manifest beneath this id is another job's, and not for this publisher's eyes.
                Opened::Conflict => self.tell(&answer(1)),
            }
        };
        match self.stops.unless_aborted(settled).await {
            Ok(body) => Ending::Answered { id, body },
            Err(error) => Ending::HandBack { reason: error.to_string(), fault: Fault::Passing },
        }
    }

    /// The bytes of the durable result: this one, unless another stands.
    async fn settle(&self, records: &Records<'_>, result: &JobResult) -> Result<Bytes, Failure> {
        let body = records.settle(encode(result)?).await?;
        self.count(result);
        Ok(body)
    }

    /// The bytes of a result that is told and not kept.
    fn tell(&self, result: &JobResult) -> Result<Bytes, Failure> {
        self.count(result);
        encode(result)
    }

    fn count(&self, result: &JobResult) {
        metrics::job_ended(result, self.tenant_key.as_deref());
    }
}

/// One accepted message's way.
struct Life<'a> {
    runner: &'a Runner,
    turn: &'a Turn,
    end: &'a End,
    lost: &'a CancellationToken,
    span: &'a JobSpan,
    accepted_at: Instant,
    timings: Timings,
}

impl Life<'_> {
    /// The durable result's bytes; an error hands the job back.
    async fn live(
        mut self,
        job: &JobRequest,
        accept: StageSpan,
        sink: Arc<dyn EventSink>,
    ) -> Result<Bytes, Failure> {
        let (runner, span) = (self.runner, self.span);
        let records = Records::new(&*runner.store, &runner.base, job.id.as_str())?.traced(span.traceparent());
        let opening = records.open(&job.digest, &runner.worker_id, runner.limits.max_attempts);
        let opened = accept.run(runner.stops.unless_aborted(opening)).await?;
        let attempt = match opened {
            Opened::Finished { body, former } => {
                span.follows(former.as_deref());
                span.had_ended(&body);
                return Ok(body);
            }
            Opened::Conflict => {
                let failure = Failure::IdConflict(job.id.to_string());
                let met = Met { stage: Stage::Accept, failure };
                // The manifest beneath this id is another job's: this answer is told and not kept.
                let result = failed(&runner.worker_id, &job.id, 1, self.timings, job.metadata.clone(), &met);
                span.ended(&result);
                return runner.tell(&result);
            }
            Opened::Poison { attempt, crashes } => {
                let met = Met { stage: Stage::Accept, failure: Failure::Poison { crashes } };
                let result = failed(
                    &runner.worker_id,
                    &job.id,
                    attempt.number,
                    self.timings,
                    job.metadata.clone(),
                    &met,
                );
                span.tries(attempt.number, attempt.former.as_deref());
                span.ended(&result);
                return runner.stops.unless_aborted(runner.settle(&records, &result)).await;
            }
            Opened::Attempt(attempt) => attempt,
        };
        span.tries(attempt.number, attempt.former.as_deref());
        let reporter = Reporter::new(job.id.clone(), runner.worker_id.clone(), attempt.number, sink);
        reporter.tell(EventKind::Accepted);
        crate::phases::reached("accepted").await;
        let disowned = disown(self.lost, &records, &attempt);
        let outcome = tokio::select! {
            outcome = Box::pin(self.attempts(job, &attempt, &reporter)) => outcome,
            never = disowned => match never {},
        };
        let failure = match outcome {
            Ok(result) => match self.record(&records, &result).await {
                Ok(body) => {
                    span.ended(&result);
                    crate::phases::reached("result-stored").await;
                    reporter.ended(&result);
                    return Ok(body);
                }
                Err(failure) => failure,
            },
            Err(failure) => failure,
        };
        // A marker left open counts as a crash; losing this one costs a try, no more.
        close(&records, &attempt, &failure.to_string()).await;
        Err(failure)
    }

    async fn record(&self, records: &Records<'_>, result: &JobResult) -> Result<Bytes, Failure> {
        let settling = self.runner.settle(records, result);
        self.span.stage(StageName::Record).run(self.runner.stops.unless_aborted(settling)).await
    }

    /// Tries until there is an answer; an error hands the job back.
    async fn attempts(
        &mut self,
        job: &JobRequest,
        attempt: &OpenAttempt,
        reporter: &Reporter,
    ) -> Result<JobResult, Failure> {
        if attempt.crashes > 0 {
            tokio::select! {
                biased;
                () = self.runner.stops.stop.cancelled() => return Err(Failure::Draining),
                () = self.turn.alone() => {}
            }
        }
        let mut seen = HashMap::<_, u32>::new();
        let mut executor =
            Executor::new(self.runner, self.turn, job, attempt.number, reporter, self.end, self.span);
        loop {
            let met = match Box::pin(executor.execute(&mut self.timings)).await {
                Ok(done) => return Ok(self.succeeded(job, attempt.number, done, &executor)),
                Err(met) => met,
            };
            let (log, stage) = (&met.failure, StageName::from(met.stage));
            let times = seen.entry(discriminant(&met.failure)).or_default();
            *times += 1;
            match verdict(&met.failure, *times) {
                Verdict::Answer => {
                    tracing::info!(%stage, error = %log, "job failed");
                    let stops = self.runner.stops.clone();
                    let answer = async { Ok(self.failed(job, attempt.number, &met, &executor).await) };
                    return stops.unless_aborted(answer).await;
                }
                Verdict::HandBack => {
                    tracing::warn!(%stage, error = %log, "job handed back");
                    return Err(met.failure);
                }
                Verdict::RetryHere(remedy) => {
                    tracing::warn!(%stage, error = %log, "job tried again here");
                    if let Failure::OutputMissing { nodes, .. } = met.failure {
                        executor.rerun = nodes;
                    }
                    self.mend(remedy).await;
                }
            }
        }
    }

    async fn mend(&self, remedy: Remedy) {
        match remedy {
            Remedy::Nothing | Remedy::RunAgain => {}
            Remedy::FreeMemory => {
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
        met: &Met,
        executor: &Executor<'_>,
    ) -> JobResult {
        let timings = self.total();
        let mut result = failed(&self.runner.worker_id, &job.id, attempt, timings, job.metadata.clone(), met);
        result.worker.comfyui_version = executor.comfyui_version();
        if let Some(records) = executor.left_records().await {
            result.history = Some(records.history.to_string());
            result.prompt = Some(records.prompt.to_string());
        }
        result
    }
}

/// Once the broker has taken the message back, others may run the job too: then this attempt's
/// marker must not count as a crash there.
async fn disown(lost: &CancellationToken, records: &Records<'_>, attempt: &OpenAttempt) -> Infallible {
    lost.cancelled().await;
    close(records, attempt, "the connection that brought the job is gone").await;
    std::future::pending().await
}

async fn close(records: &Records<'_>, attempt: &OpenAttempt, reason: &str) {
    match timeout(CLOSE_LIMIT, records.close(attempt, reason)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "an attempt's marker could not be closed"),
        Err(_) => tracing::warn!("an attempt's marker could not be closed in time"),
    }
}

pub(super) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
