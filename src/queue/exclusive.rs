//! A private queue at an exchange: it ends with its connection, and is declared again on the next one under
//! the same name.

use std::{sync::Arc, time::Duration};

use backon::ExponentialBackoff;
use futures_util::StreamExt;
use lapin::{
    Channel,
    message::Delivery,
    options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions},
    types::FieldTable,
};
use tokio::time::sleep;

use super::{
    connection::{ANSWER_LIMIT, BrokerConnection},
    error::{BrokerError, QueueError, within},
    message::short,
    session::{Role, Session, pauses},
};

/// Failures in a row until they are told.
const FAILURES_TOLD: u32 = 8;

/// What comes by a private queue.
pub(super) enum ControlMessage {
    /// A message, which needs no acknowledgement.
    Message(Box<Delivery>),
    /// The connection is there, for the first time or again: what was sent before is lost.
    Gap,
}

/// The queue.
pub(super) struct ExclusiveQueue {
    session: Arc<Session>,
    name: String,
    exchange: String,
    routing_key: String,
    subscription: Option<Subscription>,
    pauses: ExponentialBackoff,
    failures: u32,
}

struct Subscription {
    stream: lapin::Consumer,
    /// The queue lives as long as its consumer, the consumer as long as its channel.
    _channel: Channel,
    _link: Arc<BrokerConnection>,
}

impl ExclusiveQueue {
    /// The queue `name`, bound to `exchange` by `routing_key`: made by [`ExclusiveQueue::open`], else by
    /// the first [`ExclusiveQueue::next`].
    pub(super) fn new(session: &Arc<Session>, name: String, exchange: String, routing_key: String) -> Self {
        let session = Arc::clone(session);
        Self { session, name, exchange, routing_key, subscription: None, pauses: pauses(), failures: 0 }
    }

    /// Makes the queue now.
    pub(super) async fn open(&mut self) -> Result<(), QueueError> {
        let gone = || QueueError::Unavailable("there is no connection to the broker".into());
        let link = self.session.current_link(Role::Consume).ok_or_else(gone)?;
        let subscribed = self.subscribe(&link).await.map_err(|error| {
            let text = format!("listening at {}: {error}", self.exchange);
            match error.refusal() {
                Some((403 | 404, _)) => QueueError::Misconfigured(text),
                _ => QueueError::Unavailable(text),
            }
        });
        self.subscription = Some(subscribed?);
        Ok(())
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What comes next; `None` once the session is closed. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<ControlMessage> {
        loop {
            if let Some(subscription) = &mut self.subscription {
                tokio::select! {
                    () = self.session.stop.cancelled() => return None,
                    delivered = subscription.stream.next() => match delivered {
                        Some(Ok(delivered)) => return Some(ControlMessage::Message(Box::new(delivered))),
                        Some(Err(_)) | None => self.subscription = None,
                    }
                }
            }
            let link = self.session.link(Role::Consume).await?;
            match self.subscribe(&link).await {
                Ok(subscription) => {
                    self.subscription = Some(subscription);
                    (self.pauses, self.failures) = (pauses(), 0);
                    return Some(ControlMessage::Gap);
                }
                // Until the broker misses the old connection's heartbeat, the queue is locked.
                Err(error) => {
                    self.failures += 1;
                    if self.failures == FAILURES_TOLD {
                        tracing::warn!(%error, exchange = self.exchange, "cannot consume from the exclusive queue");
                    }
                }
            }
            sleep(self.pauses.next().unwrap_or(Duration::from_secs(5))).await;
        }
    }

    async fn subscribe(&self, link: &Arc<BrokerConnection>) -> Result<Subscription, BrokerError> {
        let text = |text: &str| short(text).map_err(|error| BrokerError::Unfit(error.to_string()));
        let (queue, exchange, key) = (text(&self.name)?, text(&self.exchange)?, text(&self.routing_key)?);
        let channel = link.channel().await?;
        let options =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let declare = channel.queue_declare(queue.clone(), options, FieldTable::default());
        within(ANSWER_LIMIT, "queue.declare", declare).await?;
        let options = QueueBindOptions::default();
        let bind = channel.queue_bind(queue.clone(), exchange, key, options, FieldTable::default());
        within(ANSWER_LIMIT, "queue.bind", bind).await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consume = channel.basic_consume(queue, "".into(), options, FieldTable::default());
        let stream = within(ANSWER_LIMIT, "basic.consume", consume).await?;
        Ok(Subscription { stream, _channel: channel, _link: Arc::clone(link) })
    }
}
