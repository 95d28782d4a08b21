//! A job's life: accept, stage ∥ convert, apply, run, collect, upload, result.
//!
//! Invariant: an [`Ending::Answered`] is durable before it is returned; the caller publishes it and
//! acks, in that order.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use serde_json::Value;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{
    JobId,
    attempt::{OpenAttempt, Opened, Records},
    event::EventKind,
    execution::{Done, Executor},
    failure::Failure,
    report::{EventSink, Reporter},
    request::{JobRequest, Refused},
    result::{JobResult, Stage, Status, Timings, WorkerInfo},
    verdict::{Remedy, Verdict, verdict},
};
use crate::{
    checksum,
    config::{JobConfig, OutputsConfig},
    connector::ComfyConnector,
    store::{ObjectStore, ObjectUri},
};

/// Longest closing of an attempt's marker: a store that is away must not hold up a hand-back.
const CLOSE_LIMIT: Duration = Duration::from_secs(3);

/// Runs jobs, one at a time or several: it holds no state of any.
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
    /// This worker's name.
    pub worker_id: String,
    /// When to stop and when to let go.
    pub stops: Stops,
}

/// Stop is not abort: stop ends what has not begun to run, abort ends what runs.
#[derive(Clone, Debug, Default)]
pub struct Stops {
    /// Nothing new starts.
    pub stop: CancellationToken,
    /// What runs is interrupted.
    pub abort: CancellationToken,
}

impl Stops {
    /// `work`, given up when what runs must end.
    pub(super) async fn unless_aborted<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            biased;
            done = work => done,
            () = self.abort.cancelled() => Err(Failure::Draining),
        }
    }
}

/// A message to be run.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// The body.
    pub body: Bytes,
    /// AMQP `message_id`.
    pub message_id: Option<String>,
    /// When it was published.
    pub published_at: Option<SystemTime>,
    /// Whether somebody gets the answer.
    pub answerable: bool,
}

/// What becomes of a message.
#[derive(Debug)]
pub enum Ending {
    /// Publish this result, then ack.
    Answered {
        /// The job.
        id: JobId,
        /// The result, byte for byte.
        body: Bytes,
    },
    /// Give it back to the queue; `pause`: after a while, or it would come back at once.
    HandBack {
        /// Why.
        reason: String,
        /// Whether the fault may last.
        pause: bool,
    },
    /// No job, and nobody to tell: to the dead letters.
    Reject {
        /// Why.
        reason: String,
    },
}

/// A failure and where it was met.
#[derive(Debug)]
pub(super) struct Met {
    pub(super) stage: Stage,
    pub(super) failure: Failure,
}

pub(super) trait At<T> {
    /// Notes where a failure was met.
    fn at(self, stage: Stage) -> Result<T, Met>;
}

impl<T> At<T> for Result<T, Failure> {
    fn at(self, stage: Stage) -> Result<T, Met> {
        self.map_err(|failure| Met { stage, failure })
    }
}

impl Runner {
    /// Takes a message from acceptance to its durable result, or back to the queue.
    pub async fn run(&self, incoming: Incoming, sink: Arc<dyn EventSink>) -> Ending {
        let accepted_at = Instant::now();
        let size = incoming.body.len() as u64;
        let parsed = if size > self.limits.max_message_bytes {
            let limit = self.limits.max_message_bytes;
            let failure = Failure::Malformed(format!(
                "the message has {size} bytes, more than {limit} (job.max_message_bytes)"
            ));
            let digest = checksum::of_bytes(&incoming.body);
            let id = incoming.message_id.as_deref().unwrap_or(&digest).parse().ok();
            Err(Box::new(Refused { id, digest, metadata: None, failure }))
        } else {
            JobRequest::parse(&incoming.body, incoming.message_id.as_deref())
        };
        let job = match parsed {
            Ok(job) => job,
            Err(refused) => return self.refuse(*refused, incoming.answerable).await,
        };
        // Clocks that disagree give zero.
        let queued = incoming.published_at.and_then(|then| then.elapsed().ok()).unwrap_or_default();
        let timings = Timings { queued_ms: ms(queued), ..Timings::default() };
        let life = Life { runner: self, accepted_at, timings };
        match Box::pin(life.live(&job, sink)).await {
            Ok(body) => Ending::Answered { id: job.id, body },
            Err(failure) => {
                let pause = !matches!(failure, Failure::Draining);
                Ending::HandBack { reason: failure.to_string(), pause }
            }
        }
    }

    /// Answers a body that is no job, when somebody listens.
    async fn refuse(&self, refused: Refused, answerable: bool) -> Ending {
        let Refused { id, digest, metadata, failure } = refused;
        let (Some(id), true) = (id, answerable) else {
            return Ending::Reject { reason: failure.to_string() };
        };
        let met = Met { stage: Stage::Accept, failure };
        let settled = async {
            let records = Records::new(&*self.store, &self.base, id.as_str())?;
            let opened = records.open(&digest, &self.worker_id, self.limits.max_attempts).await?;
            let attempt = match opened {
                Opened::Finished(body) => return Ok(body),
                Opened::Attempt(attempt) | Opened::Poison { attempt, .. } => attempt.number,
                // The manifest beneath this id is another job's, and not for this publisher's eyes.
                Opened::Conflict => {
                    return encode(&self.failed(&id, 1, Timings::default(), metadata.clone(), &met));
                }
            };
            let result = self.failed(&id, attempt, Timings::default(), metadata.clone(), &met);
            records.settle(encode(&result)?).await
        };
        match self.stops.unless_aborted(settled).await {
            Ok(body) => Ending::Answered { id, body },
            Err(error) => Ending::HandBack { reason: error.to_string(), pause: true },
        }
    }

    fn failed(
        &self,
        id: &JobId,
        attempt: u32,
        timings: Timings,
        metadata: Option<Value>,
        met: &Met,
    ) -> JobResult {
        JobResult {
            version: 1,
            id: id.clone(),
            status: Status::Failed,
            outputs: Vec::new(),
            history: None,
            prompt: None,
            error: Some(met.failure.to_error(met.stage)),
            warnings: Vec::new(),
            timings,
            nodes: Default::default(),
            attempt,
            worker: WorkerInfo {
                id: self.worker_id.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                comfyui_version: String::new(),
            },
            metadata,
        }
    }
}

/// One accepted message's way.
struct Life<'a> {
    runner: &'a Runner,
    accepted_at: Instant,
    timings: Timings,
}

impl Life<'_> {
    /// The durable result's bytes; an error hands the job back.
    async fn live(mut self, job: &JobRequest, sink: Arc<dyn EventSink>) -> Result<Bytes, Failure> {
        let runner = self.runner;
        let records = Records::new(&*runner.store, &runner.base, job.id.as_str())?;
        let opening = records.open(&job.digest, &runner.worker_id, runner.limits.max_attempts);
        let opened = runner.stops.unless_aborted(opening).await?;
        let attempt = match opened {
            Opened::Finished(body) => return Ok(body),
            Opened::Conflict => {
                let failure = Failure::IdConflict(job.id.to_string());
                let met = Met { stage: Stage::Accept, failure };
                // The manifest beneath this id is another job's: this answer is told and not kept.
                return encode(&runner.failed(&job.id, 1, self.timings, job.metadata.clone(), &met));
            }
            Opened::Poison { attempt, crashes } => {
                let met = Met { stage: Stage::Accept, failure: Failure::Poison { crashes } };
                let result = runner.failed(&job.id, attempt.number, self.timings, job.metadata.clone(), &met);
                return runner.stops.unless_aborted(records.settle(encode(&result)?)).await;
            }
            Opened::Attempt(attempt) => attempt,
        };
        let reporter = Reporter::new(job.id.clone(), runner.worker_id.clone(), attempt.number, sink);
        reporter.tell(EventKind::Accepted);
        crate::phases::reached("accepted").await;
        let failure = match Box::pin(self.attempts(job, &attempt, &reporter)).await {
            Ok(result) => match runner.stops.unless_aborted(records.settle(encode(&result)?)).await {
                Ok(body) => {
                    crate::phases::reached("result-stored").await;
                    reporter.tell(EventKind::Finished { status: result.status });
                    return Ok(body);
                }
                Err(failure) => failure,
            },
            Err(failure) => failure,
        };
        // A marker left open counts as a crash; losing this one costs a try, no more.
        let reason = failure.to_string();
        match timeout(CLOSE_LIMIT, records.close(&attempt, &reason)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(job = %job.id, %error, "the attempt's marker could not be closed");
            }
            Err(_) => tracing::warn!(job = %job.id, "the attempt's marker could not be closed in time"),
        }
        Err(failure)
    }

    /// Tries until there is an answer; an error hands the job back.
    async fn attempts(
        &mut self,
        job: &JobRequest,
        attempt: &OpenAttempt,
        reporter: &Reporter,
    ) -> Result<JobResult, Failure> {
        let mut tries = 1;
        let mut executor = Executor::new(self.runner, job, attempt.number, reporter);
        loop {
            let met = match executor.execute(&mut self.timings).await {
                Ok(done) => return Ok(self.succeeded(job, attempt.number, done, &executor)),
                Err(met) => met,
            };
            let log = &met.failure;
            match verdict(&met.failure, tries) {
                Verdict::Answer => {
                    tracing::info!(job = %job.id, stage = ?met.stage, error = %log, "job failed");
                    let stops = self.runner.stops.clone();
                    let answer = async { Ok(self.failed(job, attempt.number, &met, &executor).await) };
                    return stops.unless_aborted(answer).await;
                }
                Verdict::HandBack => {
                    tracing::warn!(job = %job.id, stage = ?met.stage, error = %log, "job handed back");
                    return Err(met.failure);
                }
                Verdict::RetryHere(remedy) => {
                    tracing::warn!(job = %job.id, stage = ?met.stage, error = %log, "job tried again here");
                    if let Failure::OutputMissing { nodes, .. } = met.failure {
                        executor.rerun = nodes;
                    }
                    self.mend(remedy).await;
                    tries += 1;
                }
            }
        }
    }

    async fn mend(&self, remedy: Remedy) {
        match remedy {
            Remedy::Nothing | Remedy::RunAgain => {}
            // The next call starts it again.
            Remedy::Restart => self.runner.connector.kill_engine().await,
            Remedy::FreeMemory => {
                // One that is started again has nothing to free.
                if let Some(engine) = self.runner.connector.running()
                    && let Err(error) = engine.server().client().free().await
                {
                    tracing::warn!(%error, "ComfyUI did not free its memory");
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
        let mut result = self.runner.failed(&job.id, attempt, timings, job.metadata.clone(), met);
        result.worker.comfyui_version = executor.comfyui_version();
        if let Some(records) = executor.left_records().await {
            result.history = Some(records.history.to_string());
            result.prompt = Some(records.prompt.to_string());
        }
        result
    }
}

fn encode(result: &JobResult) -> Result<Bytes, Failure> {
    let body = serde_json::to_vec_pretty(result).map_err(|error| Failure::Internal(error.to_string()))?;
    Ok(body.into())
}

pub(super) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
