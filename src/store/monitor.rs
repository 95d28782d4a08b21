//! Whether the place for results is there: looked at when nothing else tells, and until it is back.

use std::{sync::Arc, time::Duration};

use contract::ObjectUri;
use tokio::{
    sync::Mutex,
    time::{Instant, sleep, timeout},
};

use connector::store::probe;

use super::{ObjectStore, StoreError};
use crate::dependency::Dependency;

/// How often the store is looked at while it is there: with the limit below, one that is gone is noticed in 8 s.
const LOOK_EVERY: Duration = Duration::from_secs(4);
/// A store that does not answer a small read within this is away.
const LOOK_LIMIT: Duration = Duration::from_secs(4);
/// Longest look at all that it must be able to do.
const PROBE_LIMIT: Duration = Duration::from_secs(10);
/// A look this fresh is not repeated.
const FRESH: Duration = Duration::from_secs(1);

/// Looks after the store that results go to. Clones share what they find.
#[derive(Clone, Debug)]
pub struct StoreMonitor {
    store: Arc<dyn ObjectStore>,
    base: ObjectUri,
    dependency: Dependency,
    /// When it last could do all.
    probed: Arc<Mutex<Option<Instant>>>,
}

impl StoreMonitor {
    /// For the results under `base`.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>, base: ObjectUri) -> Self {
        Self { store, base, dependency: Dependency::new("store"), probed: Arc::default() }
    }

    /// The store, as a dependency.
    #[must_use]
    pub fn dependency(&self) -> &Dependency {
        &self.dependency
    }

    /// Whether the store is away, by a look now at all that it must be able to do: what else failed may have failed
    /// with it.
    pub async fn is_away(&self) -> bool {
        if !self.dependency.is_away() {
            // One look serves all that ask at a time.
            let mut probed = self.probed.lock().await;
            if probed.is_none_or(|at| at.elapsed() > FRESH) {
                match self.probe().await {
                    Ok(()) => *probed = Some(Instant::now()),
                    Err(why) => self.dependency.lost(&why),
                }
            }
        }
        self.dependency.is_away()
    }

    /// Looks as long as this is polled.
    pub async fn watch(&self) {
        let look = async {
            loop {
                self.dependency.returned().await;
                self.look().await;
                sleep(LOOK_EVERY).await;
            }
        };
        tokio::join!(look, self.recover());
    }

    /// Notices its return as long as this is polled.
    pub async fn recover(&self) {
        self.dependency.recover(|| self.works()).await;
    }

    async fn works(&self) -> bool {
        self.probe().await.inspect_err(|why| tracing::debug!(why, "the store is still away")).is_ok()
    }

    /// All that it must be able to do.
    async fn probe(&self) -> Result<(), String> {
        match timeout(PROBE_LIMIT, self.store.probe(&self.base)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {PROBE_LIMIT:?}")),
        }
    }

    /// One small read: of an object that is not there, which the store must say.
    async fn look(&self) {
        let look = async { self.store.read(&probe::object_beneath(&self.base)?, 1).await };
        match timeout(LOOK_LIMIT, look).await {
            Ok(Ok(_) | Err(StoreError::NotFound { .. } | StoreError::TooLarge { .. })) => {}
            Ok(Err(error)) => self.dependency.lost(&error.to_string()),
            Err(_) => self.dependency.lost(&format!("no answer within {LOOK_LIMIT:?}")),
        }
    }
}
