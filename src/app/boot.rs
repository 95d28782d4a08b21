//! Broker and store, before the first job.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use backon::{ExponentialBuilder, Retryable};
use contract::ObjectUri;
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use tokio_util::sync::CancellationToken;

use super::ServeError;
use crate::{
    config::Config,
    metrics,
    queue::{Broker, ConsumerTimeout, QueueCompatibility, QueueError},
    store::{ObjectStore, StoreError, Stores},
};
use connector::{ComfyConnector, ConnectorError, Engine};

/// Broker and store side by side; `None` when told to stop meanwhile.
pub(super) async fn boot(
    config: &Config,
    stores: &Stores,
    base: &ObjectUri,
    stop: &CancellationToken,
) -> Result<Option<Broker>, ServeError> {
    let broker = async {
        match Broker::connect_retrying(&config.amqp, &config.worker.id, stop).await {
            Ok(broker) => {
                tracing::info!(broker = config.amqp.address(), queue = config.amqp.queue, "broker ready");
                tell(&broker.compatibility(config.job.timeout).await);
                Ok(Some(broker))
            }
            Err(QueueError::Stopped) => Ok(None),
            Err(error) => Err(ServeError::Misconfigured(error.to_string())),
        }
    };
    let (broker, ()) = tokio::try_join!(broker, probe(stores, base))?;
    Ok(broker)
}

fn tell(findings: &QueueCompatibility) {
    let (fits, warning) = match &findings.consumer_timeout {
        ConsumerTimeout::Fits => (Some(true), None),
        ConsumerTimeout::TooShort(warning) => (Some(false), Some(warning)),
        ConsumerTimeout::Unknown(warning) => (None, warning.as_ref()),
    };
    if let Some(fits) = fits {
        metrics::consumer_timeout_fits(fits);
    }
    for warning in warning.into_iter().chain(&findings.slow_returns) {
        tracing::warn!("{warning}");
    }
}

/// Stands in `worker.state_dir` from the start until ComfyUI has run once. A start that finds one comes
/// after a start that failed: it takes no job before ComfyUI runs, or a machine on which it never does
/// would use up the jobs' deliveries.
#[derive(Debug)]
pub(super) struct BootMark {
    path: PathBuf,
    found: bool,
}

impl BootMark {
    pub(super) fn set(state_dir: &Path) -> io::Result<Self> {
        let path = state_dir.join("booting");
        let found = path.exists();
        fs::write(&path, "")?;
        Ok(Self { path, found })
    }

    /// Whether the last start has left one.
    pub(super) fn was_found(&self) -> bool {
        self.found
    }

    pub(super) fn clear(&self) {
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove the boot marker");
        }
    }
}

/// A ComfyUI that starts; clones wait for the same one.
pub(super) type Starting = Shared<BoxFuture<'static, Result<Arc<Engine>, Arc<ConnectorError>>>>;

/// The ComfyUI that runs and is well, else one that is started.
pub(super) fn starting(connector: &ComfyConnector) -> Starting {
    let connector = connector.clone();
    let start = async move {
        let engine = connector.engine().await.map_err(Arc::new)?;
        tracing::info!("ComfyUI and browser ready");
        Ok(engine)
    };
    start.boxed().shared()
}

pub(super) fn boot_error(error: &ConnectorError) -> ServeError {
    match error.to_string() {
        problem if error.is_misconfiguration() => ServeError::Misconfigured(problem),
        problem => ServeError::Environment(problem),
    }
}

/// Shows that the store takes results and honours create-once; waits while it is unreachable.
async fn probe(stores: &Stores, base: &ObjectUri) -> Result<(), ServeError> {
    let probe = || stores.probe(base);
    let pauses =
        ExponentialBuilder::new().with_max_delay(Duration::from_secs(15)).without_max_times().with_jitter();
    probe
        .retry(pauses)
        .when(|error| matches!(error, StoreError::Unavailable { .. }))
        .notify(|error, _| tracing::warn!(%error, "waiting for the store"))
        .await
        .map_err(|error| {
            let problem = format!("store.uri: {error}");
            // Keys that are being exchanged are refused for a while, too: nobody must change a setting for that.
            if matches!(error, StoreError::Forbidden { .. }) {
                ServeError::Environment(problem)
            } else {
                ServeError::Misconfigured(problem)
            }
        })?;
    tracing::info!(store = %base, "store ready");
    Ok(())
}
