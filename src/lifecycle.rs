//! Stop, then abort: what signals mean to a worker.

use std::{io, time::Duration};

use contract::failure::Failure;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// Stop is not abort: stop ends what has not begun to run, abort ends what runs.
#[derive(Clone, Debug, Default)]
pub struct ShutdownTokens {
    /// Nothing new starts.
    pub stop: CancellationToken,
    /// What runs is interrupted.
    pub abort: CancellationToken,
}

impl ShutdownTokens {
    /// `work`, given up when what runs must end.
    pub(crate) async fn unless_aborted<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            biased;
            done = work => done,
            () = self.abort.cancelled() => Err(Failure::Draining),
        }
    }
}

/// From the interrupt of what runs to the end of a drain that is stuck in spite of every limit of
/// its own: an orchestrator's KILL would come anyway, and a worker that hangs helps nobody.
const STUCK_AFTER: Duration = Duration::from_secs(20);

/// Listens for SIGTERM and SIGINT as long as it lives.
#[derive(Debug)]
pub struct Signals {
    _listener: AbortOnDropHandle<()>,
}

/// The first signal, or a stop from elsewhere, stops and, after `grace`, aborts; the next one aborts and runs `at_once`,
/// and so does a drain that does not end.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn on_signals(
    shutdown: ShutdownTokens,
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
        tokio::select! {
            signal = next() => tracing::info!(signal, ?grace, "draining"),
            // Told to drain in another way: the grace is the same.
            () = shutdown.stop.cancelled() => tracing::info!(?grace, "draining"),
        }
        shutdown.stop.cancel();
        tokio::select! {
            () = sleep(grace) => {
                tracing::warn!(?grace, "the shutdown grace is over: interrupting what still runs");
                shutdown.abort.cancel();
                tokio::select! {
                    signal = next() => tracing::warn!(signal, "second signal, ending at once"),
                    () = sleep(STUCK_AFTER) => tracing::error!("the drain is stuck, ending at once"),
                }
            }
            signal = next() => tracing::warn!(signal, "second signal, ending at once"),
        }
        shutdown.abort.cancel();
        at_once();
    });
    Ok(Signals { _listener: AbortOnDropHandle::new(listener) })
}
