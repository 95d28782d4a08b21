//! Follows one job from outside: its events and its result.

use std::{sync::Arc, time::Duration};

use backon::ExponentialBackoff;
use bytes::Bytes;
use futures_util::StreamExt;
use lapin::{
    Channel,
    options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions},
    types::FieldTable,
};
use serde_json::Value;
use tokio::time::sleep;
use uuid::Uuid;

use super::{
    error::{QueueError, Trouble, within},
    events::Preview,
    link::{ANSWER_LIMIT, Link},
    message::short,
    session::{Session, pauses},
};

/// What a followed job sends.
#[derive(Clone, Debug, PartialEq)]
pub enum Followed {
    /// An event's body.
    Event(Value),
    /// A preview.
    Preview(Preview),
    /// The result, for which [`Follow::reply_to`] was given as `reply_to`.
    Result(Bytes),
    /// The connection was lost and is there again. What was sent meanwhile is lost, be it the
    /// result: look for it in the store.
    Gap,
}

/// A subscription to one job's events and result. Its queue goes with the connection, but keeps
/// its name over a reconnection.
pub struct Follow {
    session: Arc<Session>,
    queue: String,
    job_id: String,
    subscription: Option<Subscription>,
    pauses: ExponentialBackoff,
}

struct Subscription {
    stream: lapin::Consumer,
    /// The queue lives as long as its consumer, the consumer as long as its channel.
    _channel: Channel,
    _link: Arc<Link>,
}

impl Follow {
    pub(super) async fn open(session: &Arc<Session>, job_id: &str) -> Result<Self, QueueError> {
        let queue = format!("comfy.follow.{}", Uuid::new_v4().simple());
        let gone = || QueueError::Unavailable("there is no connection to the broker".into());
        let link = session.current_link().ok_or_else(gone)?;
        let subscription = subscribe(session, &link, &queue, job_id).await.map_err(|error| {
            let text = format!("following {job_id}: {error}");
            match error.refusal() {
                Some((403 | 404, _)) => QueueError::Misconfigured(text),
                _ => QueueError::Unavailable(text),
            }
        })?;
        Ok(Self {
            session: Arc::clone(session),
            queue,
            job_id: job_id.to_owned(),
            subscription: Some(subscription),
            pauses: pauses(),
        })
    }

    /// The queue to name as the job's `reply_to`; `amqp.reply_to_allow` of the workers must permit
    /// it, `comfy.follow.*`.
    #[must_use]
    pub fn reply_to(&self) -> &str {
        &self.queue
    }

    /// What comes next; `None` once the broker handle is closed. Cancel safe.
    pub async fn next(&mut self) -> Option<Followed> {
        loop {
            if let Some(subscription) = &mut self.subscription {
                tokio::select! {
                    () = self.session.stop.cancelled() => return None,
                    delivered = subscription.stream.next() => match delivered {
                        Some(Ok(delivered)) => match read(delivered) {
                            Some(followed) => return Some(followed),
                            None => continue,
                        },
                        Some(Err(_)) | None => self.subscription = None,
                    }
                }
            }
            let link = self.session.link().await?;
            match subscribe(&self.session, &link, &self.queue, &self.job_id).await {
                Ok(subscription) => {
                    self.subscription = Some(subscription);
                    self.pauses = pauses();
                    return Some(Followed::Gap);
                }
                // Until the broker misses the old connection's heartbeat, the queue is locked.
                Err(error) => tracing::debug!(%error, job = self.job_id, "cannot follow the job yet"),
            }
            sleep(self.pauses.next().unwrap_or(Duration::from_secs(5))).await;
        }
    }
}

async fn subscribe(
    session: &Session,
    link: &Arc<Link>,
    queue: &str,
    job_id: &str,
) -> Result<Subscription, Trouble> {
    let name = |text: &str| short(text).map_err(|error| Trouble::Unfit(error.to_string()));
    let (queue, exchange) = (name(queue)?, name(&session.config.events_exchange)?);
    // An id's dots are words of the key like any others: only this id has exactly these words.
    let key = name(&format!("job.{job_id}.*"))?;
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

/// Events come through the exchange, the result comes straight to the queue.
fn read(delivered: lapin::message::Delivery) -> Option<Followed> {
    let body = Bytes::from(delivered.data);
    if delivered.exchange.as_str().is_empty() {
        Some(Followed::Result(body))
    } else if delivered.routing_key.as_str().ends_with(".preview") {
        Some(Followed::Preview(Preview::read(body, &delivered.properties)))
    } else {
        serde_json::from_slice(&body).ok().map(Followed::Event)
    }
}
