//! Answers the publisher of a job, and submits jobs.

use bytes::Bytes;
use lapin::BasicProperties;
use tokio::time::Instant;

use super::{
    error::{PublishError, ReplyWarning},
    message::{JobProperties, PERSISTENT, short},
    publisher::{Envelope, Persistence, publish},
    reply::reply_allowed,
    session::Session,
};

/// Tries at a reply queue that is full. It is the publisher's, and must not hold the worker.
const REPLY_TRIES: u32 = 3;

/// A result on its way to whoever waits for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResultMessage {
    /// The job's id: `message_id`, and the routing key at `amqp.results_exchange`.
    pub job_id: String,
    /// `result.json`, byte for byte.
    pub body: Bytes,
    /// The job's `reply_to`.
    pub reply_to: Option<String>,
    /// The job's `correlation_id`.
    pub correlation_id: Option<String>,
    /// Whether it is for the one who asked alone: `amqp.results_exchange` is left out.
    pub reply_only: bool,
}

pub(super) async fn publish_result(
    session: &Session,
    result: &ResultMessage,
    deadline: Instant,
) -> Result<Vec<ReplyWarning>, PublishError> {
    let mut properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_delivery_mode(PERSISTENT)
        .with_message_id(short(&result.job_id)?);
    if let Some(id) = &result.correlation_id {
        properties = properties.with_correlation_id(short(id)?);
    }
    let mut warnings = Vec::new();
    if let Some(queue) = &result.reply_to {
        warnings.extend(reply(session, queue, result, properties.clone(), deadline).await?);
    }
    if let Some(exchange) = session.config.results_exchange.as_ref().filter(|_| !result.reply_only) {
        let envelope = Envelope {
            exchange: short(exchange)?,
            routing_key: short(&result.job_id)?,
            properties,
            body: result.body.clone(),
        };
        let persistence = Persistence { unroutable: true, nacks: None };
        match publish(session, &envelope, persistence, deadline).await {
            Ok(()) => {}
            // No later try would be taken either.
            Err(PublishError::TooLarge(why)) => warnings.push(ReplyWarning::TooLarge(exchange.clone(), why)),
            Err(error) => return Err(error),
        }
    }
    Ok(warnings)
}

/// Only a broker that does not answer is an error here: then nobody knows whether the queue is there.
async fn reply(
    session: &Session,
    queue: &str,
    result: &ResultMessage,
    properties: BasicProperties,
    deadline: Instant,
) -> Result<Option<ReplyWarning>, PublishError> {
    if !reply_allowed(&session.config, queue) {
        return Ok(Some(ReplyWarning::Forbidden(queue.into())));
    }
    let envelope =
        Envelope { exchange: "".into(), routing_key: short(queue)?, properties, body: result.body.clone() };
    let persistence = Persistence { unroutable: false, nacks: Some(REPLY_TRIES) };
    match publish(session, &envelope, persistence, deadline).await {
        Ok(()) => Ok(None),
        Err(PublishError::Unroutable { .. }) => Ok(Some(ReplyWarning::Unroutable(queue.into()))),
        Err(PublishError::Refused(reason)) => Ok(Some(ReplyWarning::Refused(queue.into(), reason))),
        Err(PublishError::TooLarge(why)) => Ok(Some(ReplyWarning::TooLarge(queue.into(), why))),
        Err(error @ PublishError::Unconfirmed(_)) => Err(error),
    }
}

pub(super) async fn submit(
    session: &Session,
    body: Bytes,
    properties: &JobProperties,
    deadline: Instant,
) -> Result<(), PublishError> {
    let envelope = Envelope {
        exchange: "".into(),
        routing_key: short(&session.config.queue)?,
        properties: properties.write()?,
        body,
    };
    publish(session, &envelope, Persistence { unroutable: false, nacks: None }, deadline).await
}
