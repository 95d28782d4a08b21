//! A job's life: accept, stage ∥ convert, apply, run, collect, upload, result.
//!
//! Invariant: an [`JobOutcome::Answered`] is durable before it is returned; the caller publishes it and
//! acks, in that order.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use contract::{
    JobId, ObjectUri,
    failure::Failure,
    request::{JobRequest, Refused},
    result::{JobResult, Stage, Timings},
};

use super::{
    answer::{encode, failed},
    attempt::{Opened, Records},
    decision::{Decision, GiveBack},
    in_flight::InFlightJobs,
    job_run::{JobContext, JobRun},
    message::{JobMessage, JobOutcome},
    progress::ms,
    retries::{CompletedWork, Retries, StepFailure},
    scheduler::{JobPermit, Scheduler},
    stage_failure::StageFailure,
};
use crate::{
    config::{Config, JobConfig, OutputsConfig},
    dependency::Dependency,
    events::EventSink,
    lifecycle::ShutdownTokens,
    metrics,
    store::{ObjectStore, StoreMonitor},
    telemetry::{StageName, keep_secret},
};
use connector::{ComfyConnector, comfy::forecast::Forecasts};

/// A longer wait means that the publisher's clock is wrong; it is not counted.
const LONGEST_IN_A_QUEUE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How long a job is held while ComfyUI starts: others could run it.
pub const BOOT_PATIENCE: Duration = Duration::from_secs(60);

/// How long a place that took outputs counts as one that does, and how many are remembered.
const PLACE_KNOWN_FOR: Duration = Duration::from_secs(5 * 60);
const MAX_PLACES: u64 = 256;

/// Runs jobs; remembers how long earlier prompts took.
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
    /// Whether the store is there.
    pub store_monitor: StoreMonitor,
    /// Whether there is room on the disk.
    pub disk: Dependency,
    /// Places for outputs, beside the store's own, that took some lately.
    pub known_places: moka::sync::Cache<ObjectUri, ()>,
    /// Longest staging of one job's inputs.
    pub staging_limit: Duration,
    /// How long inputs that are away are tried, in the delay queue and again.
    pub inputs_patience: Duration,
    /// This worker's name.
    pub worker_id: String,
    /// When to stop and when to let go.
    pub shutdown: ShutdownTokens,
    /// The jobs in hand, for anyone who cancels one.
    pub in_hand: InFlightJobs,
    /// Their order in ComfyUI.
    pub scheduler: Scheduler,
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
        shutdown: ShutdownTokens,
    ) -> Self {
        Self {
            connector,
            store_monitor: StoreMonitor::new(Arc::clone(&store), base.clone()),
            disk: Dependency::new("disk"),
            store,
            base,
            outputs: config.outputs.clone(),
            limits: config.job.clone(),
            known_places: moka::sync::Cache::builder()
                .max_capacity(MAX_PLACES)
                .time_to_live(PLACE_KNOWN_FOR)
                .build(),
            staging_limit: config.inputs.timeout,
            inputs_patience: config.inputs.retry_for,
            worker_id: config.worker.id.clone(),
            shutdown,
            in_hand: InFlightJobs::default(),
            scheduler: Scheduler::new(config.amqp.lookahead),
            forecasts: Forecasts::default(),
            tenant_key: config.metrics.tenant_key.clone(),
        }
    }

    /// Takes a message from acceptance to its durable result, or back to the queue; `permit`: its place
    /// among the others.
    pub async fn run(
        &self,
        incoming: &JobMessage,
        permit: &JobPermit,
        sink: Arc<dyn EventSink>,
    ) -> JobOutcome {
        let (accepted_at, span) = (Instant::now(), &incoming.span);
        let accept = span.stage(StageName::Accept);
        let job = match self.accept(incoming) {
            Ok(job) => job,
            Err(refused) => {
                refused.id.iter().for_each(|id| span.is_of(id));
                span.is_refused(&refused.failure);
                accept.fails(&refused.failure);
                return accept.within(self.refuse(*refused, incoming, incoming.answerable)).await;
            }
        };
        span.is_of(&job.id);
        // Nodes may print it, and errors hold it.
        let _kept = job.api_key_comfy_org.as_ref().map(keep_secret);
        // Clocks that disagree give zero; so does a time that no clock has shown.
        let queued = incoming.published_at.map(|then| then.elapsed().unwrap_or_default());
        let queued = queued.filter(|queued| *queued < LONGEST_IN_A_QUEUE);
        queued.into_iter().for_each(metrics::job_waited);
        let queued = queued.unwrap_or_default();
        let timings = Timings { queued_ms: ms(queued), ..Timings::default() };
        let held = tokio::select! {
            biased;
            held = accept.within(self.in_hand.hold(&job.id)) => held,
            () = self.shutdown.stop.cancelled() => {
                return JobOutcome::hand_back(incoming, &Failure::Draining, GiveBack::Now);
            }
        };
        let _expiry = incoming.expires_at.map(|at| held.end.expire(at, incoming.published_at));
        let retries = Retries::new(self, incoming, Some(&held.end));
        let context =
            JobContext { runner: self, incoming, permit, cancellation: &held.end, retries: &retries, span };
        // On the heap: a future of its size on every caller's stack would be large for nothing.
        let answer = Box::pin(JobRun::new(context, accepted_at, timings).run(&job, accept, sink)).await;
        ended(incoming, job.id.clone(), answer)
    }

    /// Takes a message that the broker gave up to its durable result: one that is there already, else
    /// `failure`, or what is wrong with a body that is no job.
    pub async fn give_up(&self, incoming: &JobMessage, failure: Failure) -> JobOutcome {
        match self.accept(incoming) {
            // Kept even when nobody listens, as every job's result is.
            Ok(JobRequest { id, digest, metadata, .. }) => {
                self.refuse(Refused { id: Some(id), digest, metadata, failure }, incoming, true).await
            }
            Err(refused) => self.refuse(*refused, incoming, incoming.answerable).await,
        }
    }

    fn accept(&self, incoming: &JobMessage) -> Result<JobRequest, Box<Refused>> {
        JobRequest::accept(&incoming.body, incoming.message_id.as_deref(), self.limits.max_message_bytes)
    }

    /// Answers a body that is no job, when somebody listens.
    async fn refuse(&self, refused: Refused, incoming: &JobMessage, answerable: bool) -> JobOutcome {
        let Refused { id, digest, metadata, failure } = refused;
        let retries = Retries::new(self, incoming, None);
        let (Some(id), true) = (id, answerable) else {
            let failure = Failure::Unanswerable(failure.to_string());
            return match retries.decide(&failure, CompletedWork::None).await {
                Decision::DeadLetter => JobOutcome::Reject { reason: failure.to_string() },
                _ => JobOutcome::hand_back(incoming, &failure, GiveBack::Later),
            };
        };
        let met = StageFailure { stage: Stage::Accept, failure };
        let answer =
            |attempt| failed(&self.worker_id, &id, attempt, Timings::default(), metadata.clone(), &met);
        let settled = async {
            let records =
                Records::new(&*self.store, &self.base, id.as_str()).map_err(StepFailure::unanswered)?;
            let most = self.limits.max_attempts;
            let opening = || records.open(&digest, &self.worker_id, most, incoming);
            match retries.persist(CompletedWork::Result, opening).await? {
                Opened::Finished { body, .. } => Ok(Answer { body, stored: true }),
                Opened::Attempt(attempt) | Opened::Poison { attempt, .. } => {
                    self.record(&records, &retries, &mut answer(attempt.number)).await
                }
                // The stored result belongs to another job: it is not shown to this publisher.
                Opened::Conflict => self.tell(&mut answer(1)).await,
            }
        };
        let settled = settled.await;
        ended(incoming, id.clone(), settled)
    }

    /// Makes this the job's durable result, unless another stands; waits for the store as long as it takes.
    pub(super) async fn record(
        &self,
        records: &Records<'_>,
        retries: &Retries<'_>,
        result: &mut JobResult,
    ) -> Result<Answer, StepFailure> {
        let bytes = encode(result).await.map_err(StepFailure::unanswered)?;
        let body = retries.persist(CompletedWork::Result, || records.settle(bytes.clone())).await?;
        self.count(result);
        Ok(Answer { body, stored: true })
    }

    /// A result that is told and not kept.
    pub(super) async fn tell(&self, result: &mut JobResult) -> Result<Answer, StepFailure> {
        let body = encode(result).await.map_err(StepFailure::unanswered)?;
        self.count(result);
        Ok(Answer { body, stored: false })
    }

    fn count(&self, result: &JobResult) {
        metrics::job_ended(result, self.tenant_key.as_deref());
    }
}

/// The bytes that answer a job, and whether they are its durable result.
pub(super) struct Answer {
    pub(super) body: Bytes,
    pub(super) stored: bool,
}

fn ended(incoming: &JobMessage, id: JobId, outcome: Result<Answer, StepFailure>) -> JobOutcome {
    match outcome {
        Ok(Answer { body, stored }) => JobOutcome::Answered { id, body, stored },
        Err(StepFailure { failure, decision: Decision::GiveBack(give_back) }) => {
            JobOutcome::hand_back(incoming, &failure, give_back)
        }
        Err(StepFailure { failure, decision: Decision::DeadLetter }) => {
            JobOutcome::Reject { reason: failure.to_string() }
        }
        // What these ask for was not possible where it was decided.
        Err(StepFailure { failure, .. }) => JobOutcome::hand_back(incoming, &failure, GiveBack::Later),
    }
}
