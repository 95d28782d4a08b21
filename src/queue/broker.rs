//! The handle that the rest of the worker holds.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Consumer, ControlCommand, ControlCommands, DeadLetters, EventSender, Follow, Health, JobProperties,
    Postponement, PublishError, QueueCompatibility, QueueError, ReplyWarning, ResultMessage, compatibility,
    consumer::Source,
    control,
    delivery::Delivery,
    events, postpone, results,
    session::{Role, Session, pauses},
    take,
};
use crate::config::AmqpConfig;

/// Longest flush of events, and longest end of the tasks.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// A session with the broker. Clones share it; when the last is dropped it ends, but only
/// [`Broker::close`] waits for that.
#[derive(Clone)]
pub struct Broker {
    session: Arc<Session>,
    events: EventSender,
    flush: CancellationToken,
    _ends: Arc<[DropGuard; 2]>,
}

impl Broker {
    /// Connects and checks or declares queues and exchanges: one attempt. `name` (the worker's id)
    /// is what the broker's list of consumers shows, and its list of connections with what each is for.
    ///
    /// # Errors
    /// [`QueueError::Misconfigured`] when something must be changed first, else
    /// [`QueueError::Unavailable`]. Neither holds the password.
    pub async fn connect(config: &AmqpConfig, name: &str) -> Result<Self, QueueError> {
        let session = Session::open(config, name).await?;
        let flush = CancellationToken::new();
        let events = events::start(&session, flush.clone());
        let ends = Arc::new([flush.clone().drop_guard(), session.stop.clone().drop_guard()]);
        Ok(Self { session, events, flush, _ends: ends })
    }

    /// Like [`Broker::connect`], but tries forever while the broker is unavailable.
    ///
    /// # Errors
    /// [`QueueError::Misconfigured`] at once, [`QueueError::Stopped`] when `stop` is cancelled.
    pub async fn connect_retrying(
        config: &AmqpConfig,
        name: &str,
        stop: &CancellationToken,
    ) -> Result<Self, QueueError> {
        let mut pauses = pauses();
        loop {
            let connected = tokio::select! {
                () = stop.cancelled() => return Err(QueueError::Stopped),
                connected = Self::connect(config, name) => connected,
            };
            match connected {
                Err(QueueError::Unavailable(reason)) => tracing::warn!(reason, "waiting for the broker"),
                settled => return settled,
            }
            tokio::select! {
                () = stop.cancelled() => return Err(QueueError::Stopped),
                () = sleep(pauses.next().unwrap_or(Duration::from_secs(5))) => {}
            }
        }
    }

    /// Subscribes to the queue of jobs, at most `prefetch` (at least 1) unsettled at a time.
    #[must_use]
    pub fn consume(&self, prefetch: u16) -> Consumer {
        Consumer::start(&self.session, Source::Jobs, prefetch)
    }

    /// One job, if one waits and no idle worker wants it; `None` without a connection, too. Cancel safe:
    /// a job that comes too late is handed back.
    pub async fn take(&self) -> Option<Delivery> {
        take::take(&self.session).await
    }

    /// Subscribes to the notices of dead letters: a copy of each message that the broker moved there,
    /// or a worker rejected, with the reason in [`Message::death`](super::Message::death).
    #[must_use]
    pub fn notices(&self, prefetch: u16) -> Consumer {
        Consumer::start(&self.session, Source::Notices, prefetch)
    }

    /// Begins a pass over the dead letters. One at a time: what it holds another does not see.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`] without a connection.
    pub async fn dead_letters(&self) -> Result<DeadLetters, QueueError> {
        DeadLetters::open(&self.session).await
    }

    /// Sends a stored result to its `reply_to` and to `amqp.results_exchange`, each confirmed.
    /// Tried again on new channels and connections until `deadline`; a result may be sent twice.
    ///
    /// A reply queue that is gone, forbidden or full is a warning, and so is a results exchange that
    /// passes nothing on, the first time: `result.json` stands, and the job can be acked. A result that
    /// is too large for the broker is replaced by a short one that says where it is. With neither
    /// address there is nothing to do.
    ///
    /// # Errors
    /// When the broker does not say what became of it. The job must not be acked then.
    pub async fn publish_result(
        &self,
        result: &ResultMessage,
        deadline: Instant,
    ) -> Result<Vec<ReplyWarning>, PublishError> {
        results::publish_result(&self.session, result, deadline).await
    }

    /// Puts a job into the queue, confirmed. Sent again after an attempt without an answer, so it
    /// may be there twice: same id, same body, one job.
    ///
    /// # Errors
    /// When it is not known to be in the queue.
    pub async fn submit(
        &self,
        body: Bytes,
        properties: &JobProperties,
        deadline: Instant,
    ) -> Result<(), PublishError> {
        results::submit(&self.session, body, properties, deadline).await
    }

    /// Puts a copy of a job in hand into the queue of those that come back later, confirmed, with all that
    /// the job carried. The caller settles the original, and only afterwards: [`Settlement::Ack`].
    ///
    /// [`Settlement::Ack`]: super::Settlement::Ack
    ///
    /// # Errors
    /// When it is not known to be there, which a job is not whose delivery is stale: that comes again by
    /// itself. The original must not be acked then.
    pub async fn postpone(
        &self,
        delivery: &Delivery,
        postponement: &Postponement,
        deadline: Instant,
    ) -> Result<(), PublishError> {
        postpone::postpone(&self.session, delivery, postponement, deadline).await
    }

    /// Puts a copy of a job in hand at the end of its queue, confirmed: the broker counts its deliveries
    /// from nothing then, where a hand-back might be the one too many. The caller settles the original,
    /// and only afterwards: [`Settlement::Ack`].
    ///
    /// [`Settlement::Ack`]: super::Settlement::Ack
    ///
    /// # Errors
    /// Those of [`Broker::postpone`].
    pub async fn renew(&self, delivery: &Delivery, deadline: Instant) -> Result<(), PublishError> {
        postpone::renew(&self.session, delivery, deadline).await
    }

    /// Where events go. Sending never waits.
    #[must_use]
    pub fn events(&self) -> EventSender {
        self.events.clone()
    }

    /// Follows the job `job_id`. Follow first, then submit: events are not kept.
    ///
    /// # Errors
    /// When the queue for it cannot be made.
    pub async fn follow(&self, job_id: &str) -> Result<Follow, QueueError> {
        Follow::open(&self.session, job_id).await
    }

    /// Listens for commands, such as `comfy-worker cancel` sends, from the first
    /// [`next`](ControlCommands::next) on.
    #[must_use]
    pub fn commands(&self) -> ControlCommands {
        ControlCommands::new(&self.session)
    }

    /// Tells every worker that is connected now; there may be none.
    ///
    /// # Errors
    /// When it is not known to have been sent.
    pub async fn send_command(
        &self,
        command: &ControlCommand,
        deadline: Instant,
    ) -> Result<(), PublishError> {
        control::send(&self.session, command, deadline).await
    }

    /// What of the queue of jobs does not go with this worker's settings. Asks the management API where one
    /// is configured; takes seconds at most.
    pub async fn compatibility(&self, job_timeout: Duration) -> QueueCompatibility {
        compatibility::find(&self.session, job_timeout).await
    }

    /// The state of the session as it changes, for readiness.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.session.health.subscribe()
    }

    /// Whether both connections are there now.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        [Role::Consume, Role::Publish].into_iter().all(|role| self.session.current_link(role).is_some())
    }

    /// Flushes events, closes the connections and waits for every task, each within a time limit.
    /// Jobs in hand become stale: settle them before.
    pub async fn close(self) {
        self.flush.cancel();
        if timeout(CLOSE_LIMIT, self.events.flushed()).await.is_err() {
            tracing::debug!("events were dropped at the end");
        }
        self.session.stop.cancel();
        self.session.tasks.close();
        if timeout(CLOSE_LIMIT, self.session.tasks.wait()).await.is_err() {
            tracing::warn!("the session with the broker did not end in time");
        }
    }
}
