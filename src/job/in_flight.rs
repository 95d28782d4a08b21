//! Jobs that run in this worker, and what ends one from outside: the worker's drain, its publisher's cancel, its
//! message's expiration.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::SystemTime,
};

use contract::{JobId, failure::Failure};
use tokio::{sync::Notify, time::sleep};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// One job's end, called at most once.
#[derive(Clone, Debug, Default)]
pub(super) struct Cancellation {
    called: CancellationToken,
    why: Arc<OnceLock<Failure>>,
}

impl Cancellation {
    /// Ends the job; the first reason stands.
    pub(super) fn call(&self, why: Failure) {
        let _ = self.why.set(why);
        self.called.cancel();
    }

    /// Ends the job when its message, published then, expires; not once dropped.
    pub(super) fn expire(
        &self,
        expires_at: SystemTime,
        published_at: Option<SystemTime>,
    ) -> AbortOnDropHandle<()> {
        let now = SystemTime::now();
        let left = expires_at.duration_since(now).unwrap_or_default();
        let whole = expires_at.duration_since(published_at.unwrap_or(now)).unwrap_or(left);
        let end = self.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            sleep(left).await;
            end.call(Failure::Expired { seconds: whole.as_secs_f64() });
        }))
    }

    /// Cancelled once the job must end.
    pub(super) fn token(&self) -> &CancellationToken {
        &self.called
    }

    /// Why it must end; before that a bug, said as one.
    pub(super) fn why(&self) -> Failure {
        let why = self.why.get().cloned();
        why.unwrap_or_else(|| Failure::Internal("ended from outside for no reason".to_owned()))
    }

    /// Waits until the job must end: why.
    pub(super) async fn called(&self) -> Failure {
        self.called.cancelled().await;
        self.why()
    }
}

/// The jobs that this worker has in hand.
#[derive(Clone, Debug, Default)]
pub struct InFlightJobs(Arc<Jobs>);

#[derive(Debug, Default)]
struct Jobs {
    held: Mutex<HashMap<JobId, Cancellation>>,
    freed: Notify,
}

impl InFlightJobs {
    /// Cancels the job if it is in hand; whether it is.
    #[must_use]
    pub fn cancel(&self, id: &JobId) -> bool {
        let held = self.held().get(id).cloned();
        held.as_ref().inspect(|end| end.call(Failure::Cancelled)).is_some()
    }

    /// Takes a job in hand, until the guard is dropped; waits while another copy of it is.
    pub(super) async fn hold(&self, id: &JobId) -> InFlightJob {
        loop {
            // Before the look, so that no end is missed.
            let freed = self.0.freed.notified();
            if let Some(held) = self.try_hold(id) {
                return held;
            }
            freed.await;
        }
    }

    fn try_hold(&self, id: &JobId) -> Option<InFlightJob> {
        match self.held().entry(id.clone()) {
            Entry::Occupied(_) => None,
            Entry::Vacant(free) => {
                let end = free.insert(Cancellation::default()).clone();
                Some(InFlightJob { id: id.clone(), end, jobs: self.clone() })
            }
        }
    }

    fn held(&self) -> MutexGuard<'_, HashMap<JobId, Cancellation>> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A job in hand.
#[derive(Debug)]
pub(super) struct InFlightJob {
    id: JobId,
    pub(super) end: Cancellation,
    jobs: InFlightJobs,
}

impl Drop for InFlightJob {
    fn drop(&mut self) {
        self.jobs.held().remove(&self.id);
        self.jobs.0.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_job_is_cancelled_while_it_is_in_hand_and_for_the_first_reason() {
        let jobs = InFlightJobs::default();
        let id: JobId = "a".parse().unwrap();
        assert!(!jobs.cancel(&id));
        let held = jobs.hold(&id).await;
        let mut copy = std::pin::pin!(jobs.hold(&id));
        assert!(copy.as_mut().now_or_never().is_none(), "a copy waits");
        assert!(!held.end.token().is_cancelled());
        assert!(!jobs.cancel(&"b".parse().unwrap()) && jobs.cancel(&id));
        held.end.call(Failure::Expired { seconds: 1.0 });
        assert!(held.end.token().is_cancelled());
        assert_eq!(held.end.why(), Failure::Cancelled);
        drop(held);
        assert!(!jobs.cancel(&id));
        let copy = copy.await;
        assert!(!copy.end.token().is_cancelled());
    }
}
