//! A delivery: a job's message in hand, and how it is settled.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use lapin::{
    Acker, BasicProperties, Channel,
    message::Delivery as Delivered,
    options::{BasicAckOptions, BasicNackOptions, BasicRejectOptions},
};
use tokio::time::{sleep, timeout};

use super::{
    connection::{ANSWER_LIMIT, BrokerConnection},
    message::Message,
};

/// How often a job in hand is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What becomes of a delivered job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Done: it leaves the queue. Only after its result is durable.
    Ack,
    /// Back to the *head* of the queue, at once. Without a pause before it, this is a hot loop: what
    /// should wait goes by [`Broker::postpone`](super::Broker::postpone).
    HandBack,
    /// To the dead letters.
    DeadLetter,
}

/// What became of a [`Settlement`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It is on its way to the broker.
    Done,
    /// The connection that the job came by is gone: the job comes again, here or elsewhere.
    Stale,
}

/// One job in hand. Dropped without [`Delivery::settle`] it stays unacknowledged, and the broker
/// delivers it again once its channel is closed.
#[must_use = "a job that is not settled comes again"]
pub struct Delivery {
    /// Body and properties.
    pub message: Message,
    /// As they came, for a copy.
    properties: BasicProperties,
    received_at: SystemTime,
    acker: Acker,
    link: Arc<BrokerConnection>,
    /// Keeps the channel open: acks on a closed one are void.
    _channel: Channel,
}

impl Delivery {
    /// `queue`: that of the jobs.
    pub(super) fn new(
        delivered: Delivered,
        channel: Channel,
        link: Arc<BrokerConnection>,
        queue: &str,
    ) -> Self {
        let Delivered { data, redelivered, properties, acker, .. } = delivered;
        let message = Message::read(data, redelivered, &properties, queue);
        Self { message, properties, received_at: SystemTime::now(), acker, link, _channel: channel }
    }

    /// When it came.
    #[must_use]
    pub fn received_at(&self) -> SystemTime {
        self.received_at
    }

    pub(super) fn properties(&self) -> &BasicProperties {
        &self.properties
    }

    /// Number of the connection that it came by.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.link.epoch
    }

    /// Whether the broker has taken it back already, so that settling it is in vain.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.link.is_lost() || self.acker.poisoned()
    }

    /// Waits until the broker has taken it back, and may give it to others.
    pub async fn lost(&self) {
        while !self.is_stale() {
            tokio::select! {
                _ = self.link.failed() => {}
                // A channel that is closed alone tells nobody.
                () = sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Tells the broker, within a time limit. A broker that takes no answer loses the connection,
    /// so that `Stale` is true.
    pub async fn settle(self, settlement: Settlement) -> Settled {
        if self.is_stale() {
            return Settled::Stale;
        }
        let answer = async {
            match settlement {
                Settlement::Ack => self.acker.ack(BasicAckOptions::default()).await,
                // A nack on purpose: before RabbitMQ 4.3 nack and reject both count to the delivery limit,
                // from 4.3 on only reject does, and an orderly return is no sign of a bad job.
                Settlement::HandBack => {
                    self.acker.nack(BasicNackOptions { multiple: false, requeue: true }).await
                }
                Settlement::DeadLetter => self.acker.reject(BasicRejectOptions { requeue: false }).await,
            }
        };
        match timeout(ANSWER_LIMIT, answer).await {
            Ok(Ok(true)) => Settled::Done,
            Ok(Ok(false)) => Settled::Stale,
            Ok(Err(error)) => {
                tracing::debug!(%error, ?settlement, epoch = self.link.epoch, "cannot settle the delivery: its channel is closed");
                Settled::Stale
            }
            Err(_) => {
                self.link.fail("the broker takes no acknowledgement");
                Settled::Stale
            }
        }
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Delivery")
            .field("epoch", &self.link.epoch)
            .field("message_id", &self.message.message_id)
            .field("bytes", &self.message.body.len())
            .finish_non_exhaustive()
    }
}
