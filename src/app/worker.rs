//! Takes jobs while ComfyUI runs, and starts it again when it is lost or worn.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    ServeError,
    boot::{BootMark, Starting, boot_error, starting},
    last_words,
    quota::WorkerQuota,
    sinks::Sinks,
    spans::received,
};
use crate::{
    admin::{Phase, StatusBoard},
    config::Config,
    job::{
        message::{JobMessage, JobOutcome},
        runner::{BOOT_PATIENCE, Runner},
        scheduler::{JobPermit, TakeReason},
    },
    lifecycle::ShutdownTokens,
    metrics,
    queue::{self, Broker, Consumer, Delivery, Message, Settled, Settlement},
    telemetry::{JobSpan, Traces},
};
use connector::ConnectorError;

/// A message that is handed back comes again at once: wait before, or it is a hot loop.
pub(super) const HAND_BACK_PAUSE: Duration = Duration::from_secs(5);
/// How often a job is asked for while one in hand nears its end.
const LOOK_EVERY: Duration = Duration::from_millis(250);

pub(super) struct Worker {
    pub(super) runner: Runner,
    pub(super) broker: Broker,
    pub(super) board: StatusBoard,
    pub(super) config: Config,
    traces: Traces,
    /// The subscription of a worker that has no job in hand. With prefetch 1 it stays open until that job is acked,
    /// because the broker then sends the next one at once. While several jobs are in hand it would bring one too many,
    /// so it is ended before.
    subscription: tokio::sync::Mutex<Option<Consumer>>,
    /// A job that `basic.get` brought and whose task has not begun: handed back if fetching is cut short.
    taken: Mutex<Option<Delivery>>,
    /// Whether ComfyUI has come up since it was last waited for.
    runs: AtomicBool,
    pub(super) quota: WorkerQuota,
}

/// Why no more jobs are taken.
enum StopReason {
    /// Told to stop.
    Drain,
    /// ComfyUI cannot be started.
    Unusable(Arc<ConnectorError>),
    /// ComfyUI is gone or does not answer.
    Lost(String),
    /// ComfyUI has had its share of jobs or memory.
    Worn(String),
    /// The worker itself has: it drains.
    QuotaReached(String),
}

impl Worker {
    pub(super) fn new(
        runner: Runner,
        broker: Broker,
        board: StatusBoard,
        config: &Config,
        traces: Traces,
    ) -> Self {
        Self {
            runner,
            broker,
            board,
            config: config.clone(),
            traces,
            subscription: tokio::sync::Mutex::default(),
            taken: Mutex::default(),
            runs: AtomicBool::new(false),
            quota: WorkerQuota::new(&config.worker),
        }
    }

    /// Takes jobs until told to stop, or until ComfyUI cannot be started (again). The first job may come,
    /// and its files, while `first` still starts.
    pub(super) async fn consume(
        self: &Arc<Self>,
        first: Starting,
        mark: &BootMark,
    ) -> Result<(), ServeError> {
        let connector = &self.runner.connector;
        let (mut engine, mut early) = (first, !mark.was_found());
        loop {
            match self.take_jobs(engine, early, mark).await {
                StopReason::Drain => return Ok(()),
                StopReason::Unusable(error) => return Err(boot_error(&error)),
                StopReason::Lost(why) => {
                    tracing::warn!(why, "ComfyUI is lost: no jobs until it runs again");
                    self.board.enter(Phase::Booting);
                }
                StopReason::Worn(why) => {
                    tracing::info!(why, "recycling ComfyUI between two jobs");
                    self.board.enter(Phase::Booting);
                    connector.recycle().await;
                }
                StopReason::QuotaReached(why) => {
                    tracing::info!(why, "worker quota reached: draining");
                    self.runner.shutdown.stop.cancel();
                    return Ok(());
                }
            }
            (engine, early) = (starting(connector), false);
        }
    }

    /// Takes jobs as they are wanted, from the moment that ComfyUI runs, or `early`; neither a
    /// subscription nor a job in hand is left when this returns.
    async fn take_jobs(self: &Arc<Self>, mut engine: Starting, early: bool, mark: &BootMark) -> StopReason {
        let (stop, connector) = (&self.runner.shutdown.stop, &self.runner.connector);
        // Each job is a task of its own: what one does in a long poll holds up neither another nor the drain.
        let mut jobs = JoinSet::new();
        self.runs.store(false, Ordering::Relaxed);
        // A job is not held through a long boot: others could run it.
        let mut early_until = early.then(|| Instant::now() + BOOT_PATIENCE);
        let stop_reason = {
            let mut next = Box::pin(self.next());
            loop {
                let may_take = self.runs() || early_until.is_some();
                let boots_long = async {
                    match early_until {
                        Some(until) => sleep_until(until).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    biased;
                    () = stop.cancelled() => break StopReason::Drain,
                    Some(ended) = jobs.join_next() => if let Some(stop_reason) = finished(ended) {
                        break stop_reason;
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
                        Err(error) => break StopReason::Unusable(error),
                    },
                    () = boots_long, if !self.runs() => {
                        early_until = None;
                        // It holds the subscription, and nobody polls it here.
                        drop(next);
                        self.unsubscribe().await;
                        next = Box::pin(self.next());
                    }
                    why = connector.lost(), if self.runs() && jobs.is_empty() => break StopReason::Lost(why),
                    why = self.quota.idle(), if self.runs() && jobs.is_empty() => break StopReason::QuotaReached(why),
                    delivery = &mut next, if may_take => {
                        let Some(delivery) = delivery else { break StopReason::Drain };
                        let permit = self.runner.scheduler.join();
                        jobs.spawn(Arc::clone(self).run_job(delivery, permit));
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
        let ended = async {
            let rest = async {
                while let Some(ended) = jobs.join_next().await {
                    finished(ended);
                }
            };
            tokio::join!(self.unsubscribe(), rest);
        };
        tokio::select! {
            biased;
            never = told => match never {},
            () = ended => if stop.is_cancelled() { StopReason::Drain } else { stop_reason },
        }
    }

    /// The next job, once one is wanted and nothing that it needs is away; `None` once the broker handle is
    /// closed. Cancel safe.
    async fn next(&self) -> Option<Delivery> {
        let Runner { store_monitor, disk, .. } = &self.runner;
        let needs = [store_monitor.dependency(), disk];
        loop {
            for need in needs {
                need.returned().await;
            }
            if needs.iter().any(|need| need.is_away()) {
                continue;
            }
            tokio::select! {
                delivery = self.next_wanted() => return delivery,
                () = store_monitor.dependency().departed() => {}
                () = disk.departed() => {}
            }
            self.unsubscribe().await;
        }
    }

    async fn next_wanted(&self) -> Option<Delivery> {
        loop {
            match self.runner.scheduler.wanted().await {
                _ if self.quota.is_full() => {}
                TakeReason::First => {
                    let mut subscription = self.subscription.lock().await;
                    return subscription.get_or_insert_with(|| self.broker.consume(1)).next().await;
                }
                TakeReason::Ahead
                    if self.runs() && self.stop_reason().is_none() && self.quota.excess().is_none() =>
                {
                    let mut subscription = self.subscription.lock().await;
                    if let Some(delivery) = self.broker.take().await.filter(|taken| !taken.is_stale()) {
                        self.taken().replace(delivery);
                        stop_consuming(&self.runner.shutdown, &mut subscription).await;
                        return self.taken().take();
                    }
                }
                TakeReason::Ahead => {}
            }
            tokio::select! {
                () = sleep(LOOK_EVERY) => {}
                () = self.runner.scheduler.emptied() => {}
            }
        }
    }

    fn taken(&self) -> std::sync::MutexGuard<'_, Option<Delivery>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the subscription, and hands back what came by it or was taken and has no life yet.
    async fn unsubscribe(&self) {
        let mut subscription = self.subscription.lock().await;
        let taken = self.taken().take();
        if let Some(delivery) = taken {
            delivery.settle(Settlement::HandBack).await;
        }
        stop_consuming(&self.runner.shutdown, &mut subscription).await;
    }

    /// One job from its delivery to its settlement. Why no other is taken, if none is.
    async fn run_job(self: Arc<Self>, delivery: Delivery, permit: JobPermit) -> Option<StopReason> {
        let span = self.traces.job(&received(&self.config.amqp.queue, &delivery.message));
        let running = async {
            let status = Arc::new(self.board.take_job());
            metrics::job_taken(delivery.message.redelivered);
            self.quota.take();
            let incoming = JobMessage { span: span.clone(), ..self.incoming(&delivery) };
            let sink = Arc::new(Sinks { status: Arc::clone(&status), events: self.broker.events() });
            let disowned = async {
                delivery.lost().await;
                incoming.lost.cancel();
                std::future::pending::<Infallible>().await
            };
            let outcome = tokio::select! {
                outcome = self.runner.run(&incoming, &permit, sink) => outcome,
                never = disowned => match never {},
            };
            match &outcome {
                JobOutcome::Answered { body, .. } => status.answered(body),
                JobOutcome::HandBack { reason, .. } => status.handed_back(reason),
                JobOutcome::Reject { .. } => {}
            }
            let settling = self.settling(outcome, &incoming, &delivery).await;
            let enough = self.quota.settle(settling.returned).map(StopReason::QuotaReached);
            let stop = self.stop_reason().or(enough);
            if stop.is_some() {
                // Before the ack: the broker would send another at once.
                self.unsubscribe().await;
            }
            self.settle(delivery, settling.settlement).await;
            metrics::job_settled();
            stop
        };
        let stop = span.around(running).await;
        span.end();
        stop
    }

    fn runs(&self) -> bool {
        self.runs.load(Ordering::Relaxed)
    }

    /// Whether ComfyUI is fit for another job; one that starts for the first time will be.
    fn stop_reason(&self) -> Option<StopReason> {
        if !self.runs() {
            return None;
        }
        let Some(engine) = self.runner.connector.running() else {
            return Some(StopReason::Lost("it was stopped".to_owned()));
        };
        if engine.server().has_ended() {
            return Some(StopReason::Lost("its process ended".to_owned()));
        }
        engine.worn(&self.config.comfyui).map(StopReason::Worn)
    }

    pub(super) fn incoming(&self, delivery: &Delivery) -> JobMessage {
        let message: &Message = &delivery.message;
        let answerable = self.config.amqp.results_exchange.is_some()
            || message.reply_to.as_ref().is_some_and(|queue| queue::reply_allowed(&self.config.amqp, queue));
        JobMessage {
            body: message.body.clone(),
            message_id: message.message_id.clone(),
            published_at: message.published_at,
            expires_at: message.expiry(delivery.received_at()),
            redelivered: message.redelivered,
            returned: message.returns.clone(),
            lost: CancellationToken::new(),
            answerable,
            queued: true,
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
        connector::phases::reached("acked").await;
    }

    pub(super) async fn pause(&self, pause: Duration) {
        tokio::select! {
            () = sleep(pause) => {}
            () = self.runner.shutdown.stop.cancelled() => {}
        }
    }
}

/// What a job's task says at its end; a panic in it ends the worker.
fn finished(ended: Result<Option<StopReason>, tokio::task::JoinError>) -> Option<StopReason> {
    match ended {
        Ok(stop_reason) => stop_reason,
        Err(stopped) if stopped.is_panic() => std::panic::resume_unwind(stopped.into_panic()),
        Err(_) => None,
    }
}

async fn stop_consuming(shutdown: &ShutdownTokens, subscription: &mut Option<Consumer>) {
    if let Some(mut consumer) = subscription.take() {
        last_words(shutdown, consumer.stop()).await;
    }
}
