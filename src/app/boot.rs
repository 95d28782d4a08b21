//! Broker, store and ComfyUI, before the first job.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use tokio_util::sync::CancellationToken;

use super::ServeError;
use crate::{
    config::Config,
    connector::{ComfyConnector, ConnectorError},
    queue::{self, Broker, QueueError},
    store::{ObjectStore, ObjectUri, StoreError, Stores},
};

/// Broker, store and ComfyUI side by side; `None` when told to stop meanwhile.
pub(super) async fn boot(
    config: &Config,
    stores: &Stores,
    base: &ObjectUri,
    stop: &CancellationToken,
) -> Result<Option<(Broker, ComfyConnector)>, ServeError> {
    let broker = async {
        match Broker::connect_retrying(&config.amqp, &config.worker.id, stop).await {
            Ok(broker) => {
                tracing::info!(broker = config.amqp.address(), queue = config.amqp.queue, "broker ready");
                let warning = queue::consumer_timeout_warning(&config.amqp, config.job.timeout).await;
                if let Some(warning) = warning {
                    tracing::warn!("{warning}");
                }
                Ok(Some(broker))
            }
            Err(QueueError::Stopped) => Ok(None),
            Err(error) => Err(ServeError::Misconfigured(error.to_string())),
        }
    };
    let connector = async {
        let connector = ComfyConnector::create(config).await.map_err(boot_error)?;
        tracing::info!("ComfyUI and browser ready");
        Ok(connector)
    };
    let (broker, (), connector) = tokio::try_join!(broker, probe(stores, base), connector)?;
    Ok(broker.map(|broker| (broker, connector)))
}

pub(super) fn boot_error(error: ConnectorError) -> ServeError {
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
        .map_err(|error| ServeError::Misconfigured(format!("store.uri: {error}")))?;
    tracing::info!(store = %base, "store ready");
    Ok(())
}
