//! Carries out commands from the control exchange and from the status page.

use std::{sync::Arc, time::Duration};

use contract::{JobId, ObjectUri};
use tokio::{task::JoinSet, time::sleep};

use crate::{
    admin,
    job::{
        cancel::{self, Cancelling},
        in_flight::InFlightJobs,
        runner::Runner,
    },
    lifecycle::ShutdownTokens,
    queue::{ControlCommand, ControlCommands},
    store::ObjectStore,
};

/// Cancels, at a time, of jobs that are not in hand here; more are ignored.
const MAX_CANCELS: usize = 64;

/// The workers of a fleet spread their looks at a job's result over this time.
const SPREAD: Duration = Duration::from_secs(3);

/// What the status page reaches: this worker and the jobs that it has in hand.
#[derive(Debug)]
pub(super) struct LocalControl {
    pub(super) in_hand: InFlightJobs,
    pub(super) shutdown: ShutdownTokens,
}

impl admin::Commands for LocalControl {
    fn cancel(&self, job: &JobId) -> bool {
        let found = self.in_hand.cancel(job);
        if found {
            tracing::info!(%job, "cancelled from the status page");
        }
        found
    }

    fn drain(&self) {
        tracing::info!("draining, requested on the status page");
        self.shutdown.stop.cancel();
    }
}

/// What commands reach.
pub(super) struct ControlHandler {
    in_hand: InFlightJobs,
    store: Arc<dyn ObjectStore>,
    base: ObjectUri,
    worker_id: String,
    shutdown: ShutdownTokens,
}

impl ControlHandler {
    pub(super) fn of(runner: &Runner) -> Self {
        Self {
            in_hand: runner.in_hand.clone(),
            store: Arc::clone(&runner.store),
            base: runner.base.clone(),
            worker_id: runner.worker_id.clone(),
            shutdown: runner.shutdown.clone(),
        }
    }

    /// Obeys as long as there is a session with the broker.
    pub(super) async fn handle(self, mut commands: ControlCommands) {
        let this = Arc::new(self);
        let mut cancels = JoinSet::new();
        while let Some(command) = commands.next().await {
            while cancels.try_join_next().is_some() {}
            match command {
                ControlCommand::Drain(who) if who.as_ref().is_none_or(|id| *id == this.worker_id) => {
                    tracing::info!("draining, requested by a control message");
                    this.shutdown.stop.cancel();
                }
                ControlCommand::Drain(_) => {}
                ControlCommand::Cancel(id) => match id.parse::<JobId>() {
                    Err(problem) => tracing::warn!(problem, "no job to cancel"),
                    Ok(id) if this.in_hand.cancel(&id) => {
                        tracing::info!(job = %id, "cancelled by a control message")
                    }
                    Ok(id) if cancels.len() < MAX_CANCELS => {
                        let this = Arc::clone(&this);
                        cancels.spawn(async move { this.cancel(&id).await });
                    }
                    Ok(id) => tracing::warn!(job = %id, "too many cancels at once: ignoring this one"),
                },
            }
        }
    }

    /// A job that is not in hand here: it may wait in the queue, and the message of its cancel may be
    /// all that its publisher can send.
    async fn cancel(&self, id: &JobId) {
        // Every worker of the fleet gets the command at the same moment. The worker that has the job, or looks first, has stored
        // the result when the others look: one read each, spread over a while, instead of a herd on one key.
        sleep(random_within(SPREAD)).await;
        // They wait for the one that has it: one look each, at the end.
        let look_every = cancel::PATIENCE + random_within(SPREAD);
        match cancel::cancel(&*self.store, &self.base, id, &self.worker_id, look_every).await {
            Ok(Cancelling::Cancelled(_)) => tracing::info!(job = %id, "cancelled in the store"),
            Ok(Cancelling::Over(_)) => tracing::debug!(job = %id, "finished before it was cancelled"),
            Err(error) => tracing::warn!(job = %id, %error, "the cancel could not be stored"),
        }
    }
}

/// A random time up to `limit`.
fn random_within(limit: Duration) -> Duration {
    limit.mul_f64(fastrand::f64())
}
