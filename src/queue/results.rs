//! Answers the publisher of a job, and submits jobs.

use bytes::Bytes;
use lapin::BasicProperties;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::{
    error::{PublishError, ReplyWarning},
    message::{JobProperties, PERSISTENT, short},
    publisher::{Envelope, RetryPolicy, publish},
    reply::reply_allowed,
    session::Session,
};

/// Tries at a queue that is full. It is the publisher's, and must not hold the worker.
const TRIES: u32 = 3;
/// What a short answer keeps of a text.
const SHORT_TEXT: usize = 1000;

/// A result on its way to anyone who waits for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResultMessage {
    /// The job's id: `message_id`, and the routing key at `amqp.results_exchange`.
    pub job_id: String,
    /// `result.json`, byte for byte.
    pub body: Bytes,
    /// Where `result.json` is, for those who cannot be sent it.
    pub stored_at: Option<String>,
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
        if reply_allowed(&session.config, queue) {
            let place = Place { exchange: "", routing_key: queue };
            warnings.extend(send(session, place, result, &properties, deadline).await?);
        } else {
            warnings.push(ReplyWarning::Forbidden(queue.clone()));
        }
        for warning in &warnings {
            crate::metrics::result_unsent("reply", warning.word());
        }
    }
    if let Some(exchange) = session.config.results_exchange.as_ref().filter(|_| !result.reply_only) {
        let place = Place { exchange, routing_key: &result.job_id };
        let unsent = send(session, place, result, &properties, deadline).await?;
        if let Some(warning) = &unsent {
            crate::metrics::result_unsent("exchange", warning.word());
        }
        let unheard = unsent.as_ref().filter(|warning| !matches!(warning, ReplyWarning::TooLarge(..)));
        let is_large = unheard.is_none();
        // The same for every job until somebody acts: said once.
        if session.results_unheard(unheard.map(ToString::to_string)) || is_large {
            warnings.extend(unsent);
        }
    }
    Ok(warnings)
}

#[derive(Clone, Copy)]
struct Place<'a> {
    exchange: &'a str,
    routing_key: &'a str,
}

impl Place<'_> {
    /// What a warning calls it.
    fn name(self) -> String {
        if self.exchange.is_empty() { self.routing_key } else { self.exchange }.to_owned()
    }
}

/// Only a broker that does not answer is an error here: then nobody knows whether the result is there.
/// That no queue takes it is a warning: `result.json` stands, and the job is done.
async fn send(
    session: &Session,
    place: Place<'_>,
    result: &ResultMessage,
    properties: &BasicProperties,
    deadline: Instant,
) -> Result<Option<ReplyWarning>, PublishError> {
    let policy = RetryPolicy { unroutable: false, nacks: Some(TRIES) };
    let mut envelope = Envelope {
        exchange: short(place.exchange)?,
        routing_key: short(place.routing_key)?,
        properties: properties.clone(),
        body: result.body.clone(),
    };
    let mut sent = publish(session, &envelope, policy, deadline).await;
    let mut too_large = None;
    if let Err(PublishError::TooLarge(why)) = &sent {
        too_large = Some(ReplyWarning::TooLarge(place.name(), why.clone()));
        if let Some(body) = short_answer(&result.body, result.stored_at.as_deref()) {
            envelope.body = body;
            sent = publish(session, &envelope, policy, deadline).await;
        }
    }
    match sent {
        Ok(()) | Err(PublishError::TooLarge(_)) => Ok(too_large),
        Err(PublishError::Unroutable { .. }) if place.exchange.is_empty() => {
            Ok(Some(ReplyWarning::Unroutable(place.name())))
        }
        Err(PublishError::Unroutable { .. }) => Ok(Some(ReplyWarning::Unheard(place.name()))),
        Err(PublishError::Refused(reason)) => Ok(Some(ReplyWarning::Refused(place.name(), reason))),
        Err(error @ PublishError::Unconfirmed(_)) => Err(error),
    }
}

/// A result without what makes it large, which says where the whole one is; `None`: it is no JSON object.
fn short_answer(whole: &[u8], stored_at: Option<&str>) -> Option<Bytes> {
    let mut answer: Map<String, Value> = serde_json::from_slice(whole).ok()?;
    let place = stored_at.unwrap_or("result.json in the worker's store");
    let told = format!("this is not the whole result, which is too large for the broker: it is {place}");
    for (key, value) in
        [("outputs", json!([])), ("nodes", json!({})), ("metadata", Value::Null), ("warnings", json!([told]))]
    {
        answer.insert(key.into(), value);
    }
    if let Some(Value::Object(error)) = answer.get_mut("error") {
        error.retain(|key, _| ["code", "stage", "message", "node"].contains(&key.as_str()));
        for text in error.values_mut() {
            if let Value::String(text) = text {
                *text = text.chars().take(SHORT_TEXT).collect();
            }
        }
    }
    Some(Value::Object(answer).to_string().into())
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
    publish(session, &envelope, RetryPolicy { unroutable: false, nacks: None }, deadline).await
}
