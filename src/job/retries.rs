//! One delivery's failures: asks [`decide`] what follows from each, with what is known of the circumstances, and
//! waits where that is decided.

use std::{
    collections::HashMap,
    mem::{Discriminant, discriminant},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use contract::{failure::Failure, result::Code};
use tokio::time::sleep;

use super::{
    decision::{Circumstances, Decision, GiveBack, Need, Recovery, decide},
    in_flight::Cancellation,
    message::JobMessage,
    runner::Runner,
};
use crate::telemetry::SpanError;

/// How long a job is held for want of room on this disk: others may have some.
const DISK_PATIENCE: Duration = Duration::from_secs(60);

/// What a step has in hand, and so what ends a wait within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CompletedWork {
    /// Nothing that another worker could not make as well: a drain gives the job back at once.
    None,
    /// Outputs of an execution: kept for the drain's grace, until the job must end.
    Outputs,
    /// The result: nothing but the drain's grace ends the wait.
    Result,
}

/// A step that was not done, and what follows.
#[derive(Debug)]
pub(super) struct StepFailure {
    pub(super) failure: Failure,
    pub(super) decision: Decision,
}

impl StepFailure {
    /// By a bug of ours: the job is answered with it.
    pub(super) fn unanswered(failure: Failure) -> Self {
        Self { failure, decision: Decision::Answer }
    }
}

impl SpanError for StepFailure {
    fn span_error(&self) -> Option<(Code, String)> {
        self.failure.span_error()
    }
}

/// What one delivery has met until now.
pub(super) struct Retries<'a> {
    runner: &'a Runner,
    incoming: &'a JobMessage,
    end: Option<&'a Cancellation>,
    met: Mutex<HashMap<Discriminant<Failure>, (u32, Instant)>>,
}

impl<'a> Retries<'a> {
    pub(super) fn new(runner: &'a Runner, incoming: &'a JobMessage, end: Option<&'a Cancellation>) -> Self {
        Self { runner, incoming, end, met: Mutex::default() }
    }

    /// Whether the job came from a queue, where others can have it.
    pub(super) fn may_give_back(&self) -> bool {
        self.incoming.queued
    }

    /// Decides about a failure.
    pub(super) async fn decide(&self, failure: &Failure, in_hand: CompletedWork) -> Decision {
        let (times, since) = {
            let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
            let (times, since) = met.entry(discriminant(failure)).or_insert_with(|| (0, Instant::now()));
            *times = times.saturating_add(1);
            (*times, *since)
        };
        let store = &self.runner.store_monitor;
        let store_away = match failure {
            Failure::StoreUnavailable(_)
            | Failure::InputForbidden(_)
            | Failure::InputUnavailable(_)
            | Failure::OutputForbidden(_)
            | Failure::OutputNotFound(_)
            | Failure::OutputUnavailable(_) => store.is_away().await,
            _ => false,
        };
        let now = Circumstances {
            times,
            lasting: since.elapsed(),
            waited: self.incoming.waited(failure),
            store_away,
            executed: in_hand != CompletedWork::None,
            inputs_patience: self.runner.inputs_patience,
            queued: self.incoming.queued,
        };
        decide(failure, &now)
    }

    /// Does `step` again until it is done, or decided to be given up.
    pub(super) async fn persist<T, F>(
        &self,
        in_hand: CompletedWork,
        step: impl Fn() -> F,
    ) -> Result<T, StepFailure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        loop {
            let failure = tokio::select! {
                biased;
                done = step() => match done {
                    Ok(done) => return Ok(done),
                    Err(failure) => failure,
                },
                () = self.runner.shutdown.abort.cancelled() => Failure::Draining,
            };
            match self.decide(&failure, in_hand).await {
                Decision::WaitFor(need) => self.wait_for(need, failure, in_hand).await?,
                Decision::RetryHere(Recovery::Pause(pause)) => {
                    tracing::warn!(error = %failure, ?pause, "trying again after a pause");
                    self.unless_interrupted(sleep(pause), in_hand).await?;
                }
                decision => return Err(StepFailure { failure, decision }),
            }
        }
    }

    /// Waits until what `failure` shows to be away is back, with the job in hand.
    pub(super) async fn wait_for(
        &self,
        need: Need,
        failure: Failure,
        in_hand: CompletedWork,
    ) -> Result<(), StepFailure> {
        tracing::warn!(error = %failure, ?need, "the job waits until the dependency is back; it keeps its inputs and outputs");
        match need {
            Need::Store => {
                self.unless_interrupted(self.runner.store_monitor.dependency().returned(), in_hand).await
            }
            Need::Disk => {
                self.runner.disk.lost(&failure.to_string());
                let returned = tokio::time::timeout(DISK_PATIENCE, self.runner.disk.returned());
                match self.unless_interrupted(returned, in_hand).await? {
                    Ok(()) => Ok(()),
                    Err(_) => Err(StepFailure { failure, decision: Decision::GiveBack(GiveBack::Later) }),
                }
            }
        }
    }

    /// `work`, unless the job must not be held any longer.
    pub(super) async fn unless_interrupted<T>(
        &self,
        work: impl Future<Output = T>,
        in_hand: CompletedWork,
    ) -> Result<T, StepFailure> {
        let (shutdown, inputs) = (&self.runner.shutdown, in_hand == CompletedWork::None);
        let called = async {
            match self.end {
                Some(end) => end.called().await,
                None => std::future::pending().await,
            }
        };
        let failure = tokio::select! {
            biased;
            done = work => return Ok(done),
            () = shutdown.abort.cancelled() => Failure::Draining,
            () = shutdown.stop.cancelled(), if inputs => Failure::Draining,
            () = self.incoming.lost.cancelled(), if inputs => Failure::Disowned,
            why = called, if in_hand != CompletedWork::Result => why,
        };
        let decision = self.decide(&failure, in_hand).await;
        Err(StepFailure { failure, decision })
    }
}
