//! Obeys what comes by the control exchange, and from the status page.

use std::{sync::Arc, time::Duration};

use contract::{JobId, ObjectUri};
use tokio::{task::JoinSet, time::sleep};

use crate::{
    admin,
    job::{
        cancel::{self, Cancelling},
        end::InHand,
        runner::Runner,
    },
    lifecycle::Stops,
    queue::{Order, Orders},
    store::ObjectStore,
};

/// Cancels of jobs that are in nobody's hands, at a time; more are left to whoever ordered them.
const MOST_CANCELS: usize = 64;

/// Over so long are the looks of a fleet at a job's result spread.
const SPREAD: Duration = Duration::from_secs(3);

/// What the status page reaches: this worker and the jobs that it has in hand.
#[derive(Debug)]
pub(super) struct AtHand {
    pub(super) in_hand: InHand,
    pub(super) stops: Stops,
}

impl admin::Orders for AtHand {
    fn cancel(&self, job: &JobId) -> bool {
        let found = self.in_hand.cancel(job);
        if found {
            tracing::info!(%job, "cancelled, as ordered on the status page");
        }
        found
    }

    fn drain(&self) {
        tracing::info!("draining, as ordered on the status page");
        self.stops.stop.cancel();
    }
}

/// What orders reach.
pub(super) struct Obedience {
    in_hand: InHand,
    store: Arc<dyn ObjectStore>,
    base: ObjectUri,
    worker_id: String,
    stops: Stops,
}

impl Obedience {
    pub(super) fn of(runner: &Runner) -> Self {
        Self {
            in_hand: runner.in_hand.clone(),
            store: Arc::clone(&runner.store),
            base: runner.base.clone(),
            worker_id: runner.worker_id.clone(),
            stops: runner.stops.clone(),
        }
    }

    /// Obeys as long as there is a session with the broker.
    pub(super) async fn obey(self, mut orders: Orders) {
        let this = Arc::new(self);
        let mut cancels = JoinSet::new();
        while let Some(order) = orders.next().await {
            while cancels.try_join_next().is_some() {}
            match order {
                Order::Drain(who) if who.as_ref().is_none_or(|id| *id == this.worker_id) => {
                    tracing::info!("draining, as ordered");
                    this.stops.stop.cancel();
                }
                Order::Drain(_) => {}
                Order::Cancel(id) => match id.parse::<JobId>() {
                    Err(problem) => tracing::warn!(problem, "no job to cancel"),
                    Ok(id) if this.in_hand.cancel(&id) => tracing::info!(job = %id, "cancelled, as ordered"),
                    Ok(id) if cancels.len() < MOST_CANCELS => {
                        let this = Arc::clone(&this);
                        cancels.spawn(async move { this.cancel(&id).await });
                    }
                    Ok(id) => tracing::warn!(job = %id, "too many cancels at a time, this one is ignored"),
                },
            }
        }
    }

    /// A job that is not in hand here: it may wait in the queue, and the message of its cancel may be
    /// all that its publisher can send.
    async fn cancel(&self, id: &JobId) {
        // Every worker of the fleet gets the order at the same moment. The worker that has the job, or looks first, has stored
        // the result when the others look: one read each, spread over a while, instead of a herd on one key.
        sleep(random_within(SPREAD)).await;
        // They wait for the one that has it: one look each, at the end.
        let look_every = cancel::PATIENCE + random_within(SPREAD);
        match cancel::cancel(&*self.store, &self.base, id, &self.worker_id, look_every).await {
            Ok(Cancelling::Cancelled(_)) => tracing::info!(job = %id, "cancelled in the store"),
            Ok(Cancelling::Over(_)) => tracing::debug!(job = %id, "over before it was cancelled"),
            Err(error) => tracing::warn!(job = %id, %error, "the cancel could not be stored"),
        }
    }
}

/// A random time up to `limit`.
fn random_within(limit: Duration) -> Duration {
    limit.mul_f64(fastrand::f64())
}
