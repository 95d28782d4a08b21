//! `serve`: the only place where broker, runner and connector are wired together.

use std::{pin::pin, sync::Arc, time::Duration};

use backon::{ExponentialBuilder, Retryable};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::{self, Board, Phase},
    config::{Config, Mistake, Mistakes},
    connector::{ComfyConnector, ConnectorError, State},
    job::{
        event::JobEvent,
        report::{EventSink, Preview},
        runner::{Ending, Incoming, Runner, Stops},
    },
    queue::{self, Broker, Delivery, QueueError, ResultMessage, Settled, Settlement},
    store::{ObjectStore, ObjectUri, StoreError, Stores},
};

/// A message that is handed back comes again at once: wait before, or it is a hot loop.
const HAND_BACK_PAUSE: Duration = Duration::from_secs(5);
/// Longest publishing of a result before the job is handed back; its manifest stands.
const PUBLISH_LIMIT: Duration = Duration::from_secs(60);
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
pub async fn serve(config: Config, stops: Stops) -> Result<(), ServeError> {
    let base = store_uri(&config).map_err(|mistakes| ServeError::Misconfigured(mistakes.to_string()))?;
    let board = Board::new(config.worker.id.clone());
    let _admin = match config.admin.listen {
        None => None,
        Some(address) => {
            let admin = admin::serve(address, board.clone()).await.map_err(|error| {
                ServeError::Misconfigured(format!("admin.listen: cannot listen at {address}: {error}"))
            })?;
            tracing::info!(address = %admin.address, "admin endpoint");
            Some(admin)
        }
    };
    let stores = Arc::new(Stores::new(&config.store).await);
    let booted = tokio::select! {
        booted = boot(&config, &stores, &base, &stops.stop) => booted,
        () = stops.stop.cancelled() => Ok(None),
    };
    let outcome = match booted {
        Ok(Some((broker, connector))) => {
            let running = connector.running();
            let version = running.map_or("unknown".to_owned(), |engine| engine.server().version().to_owned());
            board.connected(&version, broker.health());
            let runner = Runner {
                connector,
                store: stores.clone(),
                base,
                outputs: config.outputs.clone(),
                limits: config.job.clone(),
                worker_id: config.worker.id.clone(),
                stops: stops.clone(),
            };
            let worker = Worker { runner, broker: broker.clone(), board: board.clone(), config: &config };
            let outcome = worker.consume().await;
            board.enter(Phase::Draining);
            tokio::join!(last_words(&stops, broker.close()), ComfyConnector::shutdown_live());
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
    last_words(&stops, stores.settled()).await;
    if outcome.is_ok() {
        tracing::info!("drained");
    }
    outcome
}

/// Lets a peer finish, but one that is silent must not hold the drain up: until the grace is over,
/// and a moment more.
async fn last_words(stops: &Stops, work: impl Future<Output = ()>) {
    let overdue = async {
        stops.abort.cancelled().await;
        sleep(LAST_WORDS).await;
    };
    tokio::select! {
        biased;
        () = work => {}
        () = overdue => tracing::warn!("a peer is silent: not waiting for it any longer"),
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

/// Broker, store and ComfyUI side by side; `None` when told to stop meanwhile.
async fn boot(
    config: &Config,
    stores: &Stores,
    base: &ObjectUri,
    stop: &CancellationToken,
) -> Result<Option<(Broker, ComfyConnector)>, ServeError> {
    let broker = async {
        match Broker::connect_retrying(&config.amqp, &config.worker.id, stop).await {
            Ok(broker) => {
                tracing::info!(broker = config.amqp.address(), queue = config.amqp.queue, "broker ready");
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

fn boot_error(error: ConnectorError) -> ServeError {
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

struct Worker<'a> {
    runner: Runner,
    broker: Broker,
    board: Board,
    config: &'a Config,
}

impl Worker<'_> {
    /// Takes one job after the other until told to stop, or until ComfyUI cannot be started again.
    async fn consume(&self) -> Result<(), ServeError> {
        let stop = &self.runner.stops.stop;
        let mut consumer = self.broker.consume(1);
        self.board.enter(Phase::Ready);
        tracing::info!(worker = self.config.worker.id, "ready");
        loop {
            let delivery = tokio::select! {
                biased;
                () = stop.cancelled() => None,
                delivery = consumer.next() => delivery,
            };
            let Some(delivery) = delivery else { break };
            let mut job = pin!(self.handle(delivery));
            tokio::select! {
                () = &mut job => {}
                () = stop.cancelled() => {
                    self.board.enter(Phase::Draining);
                    // Beside the running job: what the broker sends on its heels goes straight back.
                    tokio::join!(last_words(&self.runner.stops, consumer.stop()), job);
                    return Ok(());
                }
            }
            if self.runner.connector.state() == State::Error {
                last_words(&self.runner.stops, consumer.stop()).await;
                return Err(ServeError::Environment("ComfyUI cannot be started again".to_owned()));
            }
        }
        self.board.enter(Phase::Draining);
        last_words(&self.runner.stops, consumer.stop()).await;
        Ok(())
    }

    async fn handle(&self, delivery: Delivery) {
        let message = &delivery.message;
        let answerable = self.config.amqp.results_exchange.is_some()
            || message.reply_to.as_ref().is_some_and(|queue| queue::reply_allowed(&self.config.amqp, queue));
        let incoming = Incoming {
            body: message.body.clone(),
            message_id: message.message_id.clone(),
            published_at: message.published_at,
            answerable,
        };
        let sink = Arc::new(Sinks { board: self.board.clone(), events: self.broker.events() });
        let ending = self.runner.run(incoming, sink).await;
        let settlement = match ending {
            Ending::Answered { id, body } => self.publish(&delivery, id.to_string(), body).await,
            Ending::Reject { reason } => {
                tracing::warn!(reason, "no job, and nobody to tell: to the dead letters");
                Settlement::DeadLetter
            }
            Ending::HandBack { reason, pause } => {
                tracing::warn!(reason, "job goes back to the queue");
                if pause {
                    self.pause().await;
                }
                Settlement::HandBack
            }
        };
        if delivery.settle(settlement).await == Settled::Stale {
            tracing::info!(
                "the connection that brought the job is gone: it comes again and is answered from its result"
            );
        }
        crate::phases::reached("acked").await;
        self.board.job_ended();
    }

    /// Order: the manifest is durable, then the confirm, then the ack.
    async fn publish(&self, delivery: &Delivery, job_id: String, body: bytes::Bytes) -> Settlement {
        let result = ResultMessage {
            job_id,
            body,
            reply_to: delivery.message.reply_to.clone(),
            correlation_id: delivery.message.correlation_id.clone(),
        };
        let publishing = self.broker.publish_result(&result, Instant::now() + PUBLISH_LIMIT);
        let published = tokio::select! {
            biased;
            published = publishing => published,
            // The manifest stands: whoever gets the job next answers from it.
            () = self.runner.stops.abort.cancelled() => {
                tracing::warn!(job = result.job_id, "the grace is over before the result was published");
                return Settlement::HandBack;
            }
        };
        match published {
            Ok(warnings) => {
                for warning in warnings {
                    tracing::warn!(job = result.job_id, %warning, "the result could not be sent there");
                }
                tracing::info!(job = result.job_id, "answered");
                crate::phases::reached("published").await;
                Settlement::Ack
            }
            Err(error) => {
                tracing::warn!(job = result.job_id, %error, "the result could not be published");
                self.pause().await;
                Settlement::HandBack
            }
        }
    }

    async fn pause(&self) {
        tokio::select! {
            () = sleep(HAND_BACK_PAUSE) => {}
            () = self.runner.stops.stop.cancelled() => {}
        }
    }
}

/// Events for the broker's followers and for the status.
struct Sinks {
    board: Board,
    events: queue::EventSender,
}

impl EventSink for Sinks {
    fn event(&self, event: &JobEvent) {
        self.board.event(event);
        if let Ok(body) = serde_json::to_value(event) {
            self.events.send(queue::Event::Json {
                job_id: event.id.to_string(),
                name: event.kind.name(),
                body,
            });
        }
    }

    fn preview(&self, preview: &Preview<'_>) {
        self.events.send(queue::Event::Preview(queue::Preview {
            job_id: preview.id.to_string(),
            image: preview.image.bytes.clone(),
            content_type: preview.image.content_type.to_owned(),
            seq: preview.seq,
            at: preview.at.to_string(),
            attempt: preview.attempt.into(),
            worker: preview.worker.to_owned(),
            node: preview.image.node.clone().unwrap_or_default(),
        }));
    }
}
