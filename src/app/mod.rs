//! `serve`: the only place where broker, runner and connector are wired together.

mod boot;
mod control;
mod dependencies;
mod notices;
mod quota;
mod sampler;
mod settle;
mod sinks;
mod spans;
mod worker;

use std::{sync::Arc, time::Duration};

use contract::ObjectUri;
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use self::{
    boot::{BootMark, boot, boot_error, starting},
    control::{ControlHandler, LocalControl},
    worker::Worker,
};
use crate::{
    admin::{self, Phase, StatusBoard},
    config::{Config, Mistake, Mistakes},
    job::{in_flight::InFlightJobs, runner::Runner},
    lifecycle::ShutdownTokens,
    store::Stores,
    telemetry::Traces,
};
use connector::{ComfyConnector, deliver};

/// What a broker or store may take for the last words after the grace is over.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Why `serve` ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Something must be changed in the configuration.
    #[error("{0}")]
    Misconfigured(String),
    /// A part of the surroundings failed.
    #[error("{0}")]
    Environment(String),
}

/// Boots, consumes until it is told to drain, drains.
///
/// # Errors
/// See [`ServeError`]; nothing is left running then.
pub async fn serve(config: Config, shutdown: ShutdownTokens) -> Result<(), ServeError> {
    let base = store_uri(&config).map_err(|mistakes| ServeError::Misconfigured(mistakes.to_string()))?;
    let traces = Traces::start(&config).map_err(ServeError::Misconfigured)?;
    let board = StatusBoard::new(config.worker.id.clone());
    let in_hand = InFlightJobs::default();
    let admin = match config.admin.listen {
        None => None,
        Some(address) => {
            let commands = LocalControl { in_hand: in_hand.clone(), shutdown: shutdown.clone() };
            let token = config.admin.token.clone();
            let admin = admin::serve(address, board.clone(), token, commands).await.map_err(|error| {
                let problem = format!("admin.listen: cannot listen at {address}: {error}");
                // Another process has it, and may let go of it.
                if error.kind() == std::io::ErrorKind::AddrInUse {
                    ServeError::Environment(problem)
                } else {
                    ServeError::Misconfigured(problem)
                }
            })?;
            tracing::info!(address = %admin.address, "admin endpoint");
            Some(admin)
        }
    };
    let stores = Stores::new(&config.store).await;
    let stores = Arc::new(stores.with_upload_notes(config.worker.state_dir.join("uploads")));
    if let Some(admin) = &admin {
        admin.shows_outputs_of(stores.clone());
    }
    let mut told = config.connector().await;
    told.store = stores.clone();
    crate::metrics::count_for_connector();
    let connector = ComfyConnector::instance(told, Arc::new(|_| {})).await;
    let connector = connector.map_err(|error| boot_error(&error))?;
    let journal = Arc::clone(connector.stager().journal());
    let mark = BootMark::set(&config.worker.state_dir)
        .map_err(|error| ServeError::Misconfigured(format!("worker.state_dir: {error}")))?;
    let engine = starting(&connector);
    // Driven from here on, no matter who waits for it.
    let _starting = AbortOnDropHandle::new(tokio::spawn(engine.clone()));
    let booted = tokio::select! {
        booted = boot(&config, &stores, &base, &shutdown.stop) => booted,
        // No reason to wait for broker or store any longer.
        Err(error) = engine.clone() => Err(boot_error(&error)),
        () = shutdown.stop.cancelled() => Ok(None),
    };
    let outcome = match booted {
        Ok(Some(broker)) => {
            board.connected(broker.health());
            let runner =
                Runner { in_hand, ..Runner::new(connector, stores.clone(), base, &config, shutdown.clone()) };
            board.depends_on(runner.store_monitor.dependency());
            board.depends_on(&runner.disk);
            let _watching = AbortOnDropHandle::new(tokio::spawn(dependencies::watch(&runner)));
            let handling = ControlHandler::of(&runner).handle(broker.commands());
            let _handling = AbortOnDropHandle::new(tokio::spawn(handling));
            let worker =
                Arc::new(Worker::new(runner, broker.clone(), board.clone(), &config, traces.clone()));
            let working = notices::beside(&worker, worker.consume(engine, &mark));
            let outcome = tokio::select! {
                outcome = Box::pin(working) => outcome,
                never = worker.quota.sampler.watch(&worker.runner.connector, &board) => match never {},
            };
            board.enter(Phase::Draining);
            let broker = last_words(&shutdown, broker.close());
            tokio::join!(broker, ComfyConnector::shutdown_live(), traces.close());
            outcome
        }
        // Whatever runs when the boot is cut short is stopped.
        Ok(None) => {
            board.enter(Phase::Draining);
            ComfyConnector::shutdown_live().await;
            Ok(())
        }
        Err(error) => {
            ComfyConnector::shutdown_live().await;
            Err(error)
        }
    };
    // What uploads that were given up left there.
    last_words(&shutdown, stores.settled()).await;
    // What jobs left here; without a drain's grace the connector has waited long enough.
    if shutdown.stop.is_cancelled() {
        let removals = async {
            tokio::join!(journal.settled(), deliver::settled());
        };
        last_words(&shutdown, removals).await;
    }
    if outcome.is_ok() {
        mark.clear();
        tracing::info!("drained");
    }
    outcome
}

/// Lets a peer finish, but one that is silent must not hold the drain up: until the grace is over,
/// and a moment more.
async fn last_words(shutdown: &ShutdownTokens, work: impl Future<Output = ()>) {
    let overdue = async {
        shutdown.abort.cancelled().await;
        sleep(LAST_WORDS).await;
    };
    tokio::select! {
        biased;
        () = work => {}
        () = overdue => tracing::warn!("shutdown step timed out: not waiting for it any longer"),
    }
}

/// Where results go.
///
/// # Errors
/// When `store.uri` is not set.
pub fn store_uri(config: &Config) -> Result<ObjectUri, Mistakes> {
    config.store.uri.clone().ok_or_else(|| {
        let problem = "missing; results need a place, for example: s3://bucket/prefix";
        Mistakes(vec![Mistake { at: "store.uri".to_owned(), problem: problem.to_owned() }])
    })
}
