//! Follows one job from outside: its events and its result.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use uuid::Uuid;

use super::{
    error::QueueError,
    events::PreviewEvent,
    exclusive::{ControlMessage, ExclusiveQueue},
    session::Session,
};

/// What a followed job sends.
#[derive(Clone, Debug, PartialEq)]
pub enum Followed {
    /// An event's body.
    Event(Value),
    /// A preview.
    Preview(PreviewEvent),
    /// The result, for which [`Follow::reply_to`] was given as `reply_to`.
    Result(Bytes),
    /// The connection was lost and is there again. What was sent meanwhile is lost, be it the
    /// result: look for it in the store.
    Gap,
}

/// A subscription to one job's events and result. Its queue goes with the connection, but keeps
/// its name over a reconnection.
pub struct Follow(ExclusiveQueue);

impl Follow {
    pub(super) async fn open(session: &Arc<Session>, job_id: &str) -> Result<Self, QueueError> {
        let name = format!("comfy.follow.{}", Uuid::new_v4().simple());
        // An id's dots are words of the key like any others: only this id has exactly these words.
        let key = format!("job.{job_id}.*");
        let exchange = session.config.events_exchange.clone();
        let mut queue = ExclusiveQueue::new(session, name, exchange, key);
        queue.open().await?;
        Ok(Self(queue))
    }

    /// The queue to name as the job's `reply_to`; `amqp.reply_to_allow` of the workers must permit
    /// it, `comfy.follow.*`.
    #[must_use]
    pub fn reply_to(&self) -> &str {
        self.0.name()
    }

    /// What comes next; `None` once the broker handle is closed. Cancel safe.
    pub async fn next(&mut self) -> Option<Followed> {
        loop {
            match self.0.next().await? {
                ControlMessage::Gap => return Some(Followed::Gap),
                ControlMessage::Message(delivered) => {
                    if let Some(followed) = read(*delivered) {
                        return Some(followed);
                    }
                }
            }
        }
    }
}

/// Events come through the exchange, the result comes straight to the queue.
fn read(delivered: lapin::message::Delivery) -> Option<Followed> {
    let body = Bytes::from(delivered.data);
    if delivered.exchange.as_str().is_empty() {
        Some(Followed::Result(body))
    } else if delivered.routing_key.as_str().ends_with(".preview") {
        Some(Followed::Preview(PreviewEvent::read(body, &delivered.properties)))
    } else {
        serde_json::from_slice(&body).ok().map(Followed::Event)
    }
}
