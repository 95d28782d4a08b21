//! Stop, then abort: what signals mean to a worker.

use std::{io, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};
use tokio_util::task::AbortOnDropHandle;

use crate::job::runner::Stops;

/// Listens for SIGTERM and SIGINT as long as it lives.
#[derive(Debug)]
pub struct Signals {
    _listener: AbortOnDropHandle<()>,
}

/// The first signal stops and, after `grace`, aborts; the second one aborts and runs `at_once`.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn on_signals(
    stops: Stops,
    grace: Duration,
    at_once: impl FnOnce() + Send + 'static,
) -> io::Result<Signals> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let listener = tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            }
        };
        let name = next().await;
        tracing::info!(signal = name, ?grace, "draining");
        stops.stop.cancel();
        tokio::select! {
            () = sleep(grace) => {
                tracing::warn!(?grace, "the grace is over, interrupting what still runs");
                stops.abort.cancel();
                next().await;
            }
            _ = next() => {}
        }
        tracing::warn!("second signal, ending at once");
        stops.abort.cancel();
        at_once();
    });
    Ok(Signals { _listener: AbortOnDropHandle::new(listener) })
}
