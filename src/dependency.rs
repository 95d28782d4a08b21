//! What no job can do without: the store, and room on the disk. While one is away the worker takes no job and waits; that
//! is a state of the worker, and no verdict on the jobs that it has in hand.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::metrics;

/// The first pause between two looks at a dependency that is away; they double, with jitter.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest: what has come back is noticed within it.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// One dependency, as everybody who needs it sees it. Clones share it.
#[derive(Clone, Debug)]
pub struct Dependency(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    name: &'static str,
    state: watch::Sender<Option<Away>>,
    /// When it was last found to be back.
    came: Mutex<Option<Instant>>,
}

/// Why a dependency is away, and since when.
#[derive(Clone, Debug)]
struct Away {
    since: Instant,
    why: String,
}

impl Dependency {
    /// One that is there. `name`: for messages and the metric's label.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        metrics::dependency(name, true);
        Self(Arc::new(Shared { name, state: watch::Sender::new(None), came: Mutex::default() }))
    }

    /// What it is.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.0.name
    }

    /// Why it is away; `None`: it is there.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.0.state.borrow().as_ref().map(|away| format!("the {} is away: {}", self.0.name, away.why))
    }

    /// Whether it is away.
    #[must_use]
    pub fn is_away(&self) -> bool {
        self.0.state.borrow().is_some()
    }

    /// It failed somebody, who says how. The first failure counts until [`Dependency::back`].
    pub fn lost(&self, why: &str) {
        let lost = self.0.state.send_if_modified(|state| {
            let is_new = state.is_none();
            state.get_or_insert_with(|| Away { since: Instant::now(), why: why.to_owned() });
            is_new
        });
        if lost {
            tracing::warn!(
                dependency = self.0.name,
                reason = why,
                "a dependency is away: waiting for it, taking no job"
            );
            metrics::dependency(self.0.name, false);
        }
    }

    /// It works again.
    pub fn back(&self) {
        if let Some(away) = self.0.state.send_replace(None) {
            *self.0.came.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            tracing::info!(dependency = self.0.name, after = ?away.since.elapsed(), "a dependency is back");
            metrics::dependency(self.0.name, true);
        }
    }

    /// Whether it was away a moment ago: others may not know yet that it is back.
    #[must_use]
    pub fn came_lately(&self) -> bool {
        let came = *self.0.came.lock().unwrap_or_else(PoisonError::into_inner);
        came.is_some_and(|came| came.elapsed() < LONGEST_PAUSE * 2)
    }

    /// Waits until it is there.
    pub async fn returned(&self) {
        let _ = self.0.state.subscribe().wait_for(Option::is_none).await;
    }

    /// Waits until it is away.
    pub async fn departed(&self) {
        let _ = self.0.state.subscribe().wait_for(Option::is_some).await;
    }

    /// Looks after it as long as this is polled: each time that it is away, `works` is asked with growing
    /// pauses until it says so.
    pub async fn recover<F: Future<Output = bool>>(&self, works: impl Fn() -> F) {
        loop {
            self.departed().await;
            let mut pauses = pauses();
            loop {
                sleep(pauses.next().unwrap_or(LONGEST_PAUSE)).await;
                if works().await {
                    break;
                }
            }
            self.back();
        }
    }
}

fn pauses() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(FIRST_PAUSE)
        // The jitter adds up to as much again as the pause.
        .with_max_delay(LONGEST_PAUSE / 2)
        .with_jitter()
        .without_max_times()
        .build()
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_fleet_does_not_look_in_step_nor_seldom() {
        let pauses: Vec<_> = pauses().take(50).collect();
        assert!(pauses.iter().all(|pause| *pause >= FIRST_PAUSE && *pause <= LONGEST_PAUSE), "{pauses:?}");
        assert!(pauses.iter().skip(10).any(|pause| *pause != LONGEST_PAUSE / 2), "{pauses:?}");
    }

    #[tokio::test]
    async fn it_is_away_from_the_first_failure_until_it_works() {
        let store = Dependency::new("store");
        assert!(store.trouble().is_none() && store.departed().now_or_never().is_none());
        store.lost("refused");
        store.lost("again");
        assert_eq!(store.trouble().as_deref(), Some("the store is away: refused"));
        assert!(store.returned().now_or_never().is_none());

        let looks = std::cell::Cell::new(0);
        let works = async || {
            looks.set(looks.get() + 1);
            looks.get() == 3
        };
        tokio::select! {
            () = store.recover(works) => {}
            () = store.returned() => {}
        }
        assert!(!store.is_away());
        assert_eq!(looks.get(), 3);
    }
}
