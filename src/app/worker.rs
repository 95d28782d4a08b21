//! Takes jobs while ComfyUI runs, and starts it again when it is lost or worn.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{
    ServeError,
    boot::{BootMark, Starting, boot_error, starting},
    last_words,
    share::Share,
    sinks::Sinks,
    spans::received,
};
use crate::{
    admin::{Board, JobPlace, Phase},
    config::Config,
    connector::ConnectorError,
    job::{
        end::Stops,
        incoming::{Ending, Fault, Incoming},
        lane::{Turn, Wanted},
        runner::Runner,
    },
    metrics,
    queue::{self, Broker, Consumer, Delivery, Message, ResultMessage, Settled, Settlement},
    telemetry::{JobSpan, StageName, Traces},
};

/// A message that is handed back comes again at once: wait before, or it is a hot loop.
pub(super) const HAND_BACK_PAUSE: Duration = Duration::from_secs(5);
/// A disk that is full is given this long until the next job is tried.
const DISK_PAUSE: Duration = Duration::from_secs(30);
/// How often a job is asked for while one in hand nears its end.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Longest publishing of a result before the job is handed back; its manifest stands.
const PUBLISH_LIMIT: Duration = Duration::from_secs(60);

pub(super) struct Worker<'a> {
    pub(super) runner: Runner,
    pub(super) broker: Broker,
    pub(super) board: Board,
    pub(super) config: &'a Config,
    traces: Traces,
    /// The subscription of a worker that has no job in hand. It stays for that job's ack, on whose heels
    /// the broker sends the next one; with others in hand it would be one too many, and is ended before.
    subscription: tokio::sync::Mutex<Option<Consumer>>,
    /// Whether ComfyUI has come up since it was last waited for.
    runs: AtomicBool,
    pub(super) share: Share,
}

/// Why no more jobs are taken.
enum Leave {
    /// Told to stop.
    Drain,
    /// ComfyUI cannot be started.
    Unusable(Arc<ConnectorError>),
    /// ComfyUI is gone or does not answer.
    Lost(String),
    /// A job found the disk full.
    DiskFull,
    /// ComfyUI has had its share of jobs or memory.
    Worn(String),
    /// The worker itself has: it ends in good order.
    Enough(String),
}

impl<'a> Worker<'a> {
    pub(super) fn new(
        runner: Runner,
        broker: Broker,
        board: Board,
        config: &'a Config,
        traces: Traces,
    ) -> Self {
        Self {
            runner,
            broker,
            board,
            config,
            traces,
            subscription: tokio::sync::Mutex::default(),
            runs: AtomicBool::new(false),
            share: Share::new(&config.worker),
        }
    }

    /// Takes jobs until told to stop, or until ComfyUI cannot be started (again). The first job may come,
    /// and its files, while `first` still starts.
    pub(super) async fn consume(&self, first: Starting, mark: &BootMark) -> Result<(), ServeError> {
        let connector = &self.runner.connector;
        let (mut engine, mut early) = (first, !mark.was_found());
        loop {
            match self.take_jobs(engine, early, mark).await {
                Leave::Drain => return Ok(()),
                Leave::Unusable(error) => return Err(boot_error(&error)),
                Leave::Lost(why) => {
                    tracing::warn!(why, "ComfyUI is lost: no jobs until it runs again");
                    self.board.enter(Phase::Booting);
                }
                Leave::DiskFull => {
                    tracing::warn!(pause = ?DISK_PAUSE, "the disk is full: no jobs for a while");
                    self.board.enter(Phase::DiskFull);
                    self.pause(DISK_PAUSE).await;
                }
                Leave::Worn(why) => {
                    tracing::info!(why, "between two jobs ComfyUI is started anew");
                    self.board.enter(Phase::Booting);
                    connector.recycle().await;
                }
                Leave::Enough(why) => {
                    tracing::info!(why, "the worker has had its share");
                    self.runner.stops.stop.cancel();
                    return Ok(());
                }
            }
            (engine, early) = (starting(connector), false);
        }
    }

    /// Takes jobs as they are wanted, from the moment that ComfyUI runs, or `early`; neither a
    /// subscription nor a job in hand is left when this returns.
    async fn take_jobs(&self, mut engine: Starting, early: bool, mark: &BootMark) -> Leave {
        let (stop, connector) = (&self.runner.stops.stop, &self.runner.connector);
        let mut lives = FuturesUnordered::new();
        self.runs.store(false, Ordering::Relaxed);
        let leave = {
            let mut next = Box::pin(self.next());
            loop {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => break Leave::Drain,
                    Some(leave) = lives.next() => if let Some(leave) = leave {
                        break leave;
                    },
                    started = &mut engine, if !self.runs() => match started {
                        Ok(engine) => {
                            self.runs.store(true, Ordering::Relaxed);
                            mark.clear();
                            self.board.ready(engine.server().version());
                            metrics::identify(&self.config.worker.id, engine.server().version());
                            let browser = engine.browser();
                            self.board.converts_with(browser.frontend_version().as_deref(), &browser.version().await);
                            tracing::info!(worker = self.config.worker.id, "ready");
                        }
                        Err(error) => break Leave::Unusable(error),
                    },
                    why = connector.lost(), if self.runs() && lives.is_empty() => break Leave::Lost(why),
                    why = self.share.idle(), if self.runs() && lives.is_empty() => break Leave::Enough(why),
                    delivery = &mut next, if early || self.runs() => {
                        let Some(delivery) = delivery else { break Leave::Drain };
                        lives.push(self.live(delivery, self.runner.lane.join()));
                        next = Box::pin(self.next());
                    }
                }
            }
        };
        let told = async {
            stop.cancelled().await;
            self.board.enter(Phase::Draining);
            std::future::pending::<Infallible>().await
        };
        let finished = async {
            let rest = async { while lives.next().await.is_some() {} };
            tokio::join!(self.unsubscribe(), rest);
        };
        tokio::select! {
            biased;
            never = told => match never {},
            () = finished => if stop.is_cancelled() { Leave::Drain } else { leave },
        }
    }

    /// The next job, once one is wanted; `None` once the broker handle is closed. Cancel safe.
    async fn next(&self) -> Option<Delivery> {
        loop {
            match self.runner.lane.wanted().await {
                _ if self.share.is_full() => {}
                Wanted::First => {
                    let mut subscription = self.subscription.lock().await;
                    return subscription.get_or_insert_with(|| self.broker.consume(1)).next().await;
                }
                Wanted::Ahead if self.leave().is_none() && self.share.excess().is_none() => {
                    let mut subscription = self.subscription.lock().await;
                    if let Some(delivery) = self.broker.take().await.filter(|taken| !taken.is_stale()) {
                        stop_consuming(&self.runner.stops, &mut subscription).await;
                        return Some(delivery);
                    }
                }
                Wanted::Ahead => {}
            }
            tokio::select! {
                () = sleep(LOOK_EVERY) => {}
                () = self.runner.lane.emptied() => {}
            }
        }
    }

    async fn unsubscribe(&self) {
        stop_consuming(&self.runner.stops, &mut *self.subscription.lock().await).await;
    }

    /// One job from its delivery to its settlement. Why no other is taken, if none is.
    async fn live(&self, delivery: Delivery, turn: Turn) -> Option<Leave> {
        let span = self.traces.job(&received(&self.config.amqp.queue, &delivery.message));
        let leave = span.around(self.live_in(&span, delivery, turn)).await;
        span.end();
        leave
    }

    async fn live_in(&self, span: &JobSpan, delivery: Delivery, turn: Turn) -> Option<Leave> {
        let place = Arc::new(self.board.take_job());
        metrics::job_taken(delivery.message.redelivered);
        self.share.take();
        let (settlement, leave) = self.handle(span, &delivery, &turn, &place).await;
        let enough = self.share.settle(settlement).map(Leave::Enough);
        let leave = leave.or_else(|| self.leave()).or(enough);
        if leave.is_some() {
            // Before the ack: the broker would send another on its heels.
            self.unsubscribe().await;
        }
        self.settle(delivery, settlement).await;
        metrics::job_settled();
        leave
    }

    fn runs(&self) -> bool {
        self.runs.load(Ordering::Relaxed)
    }

    /// Whether ComfyUI is fit for another job; one that starts for the first time will be.
    fn leave(&self) -> Option<Leave> {
        if !self.runs() {
            return None;
        }
        let Some(engine) = self.runner.connector.running() else {
            return Some(Leave::Lost("it was stopped".to_owned()));
        };
        if engine.server().has_ended() {
            return Some(Leave::Lost("its process ended".to_owned()));
        }
        engine.worn(&self.config.comfyui).map(Leave::Worn)
    }

    /// From the message to what becomes of it, and why no other should be taken, if that showed.
    async fn handle(
        &self,
        span: &JobSpan,
        delivery: &Delivery,
        turn: &Turn,
        place: &Arc<JobPlace>,
    ) -> (Settlement, Option<Leave>) {
        let incoming = Incoming { span: span.clone(), ..self.incoming(&delivery.message) };
        let lost = incoming.lost.clone();
        let sink = Arc::new(Sinks { place: Arc::clone(place), events: self.broker.events() });
        let disowned = async {
            delivery.lost().await;
            lost.cancel();
            std::future::pending::<Infallible>().await
        };
        let ending = tokio::select! {
            ending = self.runner.run(incoming, turn, sink) => ending,
            never = disowned => match never {},
        };
        place.ended_with(&ending);
        let settlement = match ending {
            Ending::Answered { id, body } => {
                let publishing = self.publish(delivery, id.to_string(), body);
                let settlement = span.stage(StageName::Publish).within(publishing).await;
                if settlement == Settlement::HandBack {
                    metrics::handed_back(Fault::Passing);
                    span.goes_back("its result could not be published", true);
                }
                settlement
            }
            Ending::Reject { reason } => {
                tracing::warn!(reason, "no job, and nobody to tell: to the dead letters");
                Settlement::DeadLetter
            }
            Ending::HandBack { reason, fault } => {
                tracing::warn!(reason, "job goes back to the queue");
                metrics::handed_back(fault);
                match fault {
                    Fault::None => {}
                    Fault::Passing => self.pause(HAND_BACK_PAUSE).await,
                    Fault::DiskFull => return (Settlement::HandBack, Some(Leave::DiskFull)),
                }
                Settlement::HandBack
            }
        };
        (settlement, None)
    }

    pub(super) fn incoming(&self, message: &Message) -> Incoming {
        let answerable = self.config.amqp.results_exchange.is_some()
            || message.reply_to.as_ref().is_some_and(|queue| queue::reply_allowed(&self.config.amqp, queue));
        Incoming {
            body: message.body.clone(),
            message_id: message.message_id.clone(),
            published_at: message.published_at,
            expiration: message.expiration,
            lost: CancellationToken::new(),
            answerable,
            span: JobSpan::local(),
        }
    }

    async fn settle(&self, delivery: Delivery, settlement: Settlement) {
        // While a job is asked for it is not known whether the subscription must be ended first.
        let _subscription = self.subscription.lock().await;
        if delivery.settle(settlement).await == Settled::Stale {
            tracing::info!(
                "the connection that brought the job is gone: it comes again and is answered from its result"
            );
        }
        crate::phases::reached("acked").await;
    }

    /// Order: the manifest is durable, then the confirm, then the ack.
    pub(super) async fn publish(
        &self,
        delivery: &Delivery,
        job_id: String,
        body: bytes::Bytes,
    ) -> Settlement {
        let result = ResultMessage {
            job_id,
            body,
            stored_at: None,
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
                self.pause(HAND_BACK_PAUSE).await;
                Settlement::HandBack
            }
        }
    }

    pub(super) async fn pause(&self, pause: Duration) {
        tokio::select! {
            () = sleep(pause) => {}
            () = self.runner.stops.stop.cancelled() => {}
        }
    }
}

async fn stop_consuming(stops: &Stops, subscription: &mut Option<Consumer>) {
    if let Some(mut consumer) = subscription.take() {
        last_words(stops, consumer.stop()).await;
    }
}
