//! A job's message: body and the properties that matter.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, ShortString},
};

use super::{death::DeathRecord, error::PublishError, postpone::expires_at};
use crate::requeue::RequeueHistory;

/// `delivery_mode` of a message that survives a restart of the broker.
pub(super) const PERSISTENT: u8 = 2;
/// `delivery_mode` of a message that does not.
pub(super) const TRANSIENT: u8 = 1;

/// What a job's message carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// The job, as published.
    pub body: Bytes,
    /// `message_id`.
    pub message_id: Option<String>,
    /// `correlation_id`, to be returned with the result.
    pub correlation_id: Option<String>,
    /// The queue that waits for the result.
    pub reply_to: Option<String>,
    /// W3C trace context, from the header of that name.
    pub traceparent: Option<String>,
    /// The same, of vendors.
    pub tracestate: Option<String>,
    /// How long after publishing the job is worth starting, of one that was never returned.
    pub expiration: Option<Duration>,
    /// When that ends, of one that was postponed or renewed: its `expiration` is gone or counts from
    /// elsewhere.
    pub expires_at: Option<SystemTime>,
    /// When it was published, if the publisher or the broker said so: by the header `timestamp_in_ms`
    /// (RabbitMQ's own name for it, where the broker stamps messages), else by the property
    /// `timestamp`, which is in whole seconds.
    pub published_at: Option<SystemTime>,
    /// Whether it was delivered before, to anybody.
    pub redelivered: bool,
    /// `x-delivery-count`: how often it came back to the queue so that it counts to the delivery limit.
    pub delivery_count: u64,
    /// `x-acquired-count`, of RabbitMQ 4.3 and later: how often it was delivered before, whether that
    /// counts or not.
    pub acquired_count: u64,
    /// How workers gave it back on purpose, if they did. A publisher can write such headers itself, of
    /// its own job.
    pub returns: Option<RequeueHistory>,
    /// Why it is no longer in the queue of jobs. Means something in the dead letters and their notices
    /// only: a publisher can write such a header itself.
    pub death: Option<DeathRecord>,
}

/// The header that says when a message was published, in milliseconds since 1970.
const PUBLISHED_MS: &str = "timestamp_in_ms";

impl Message {
    /// `queue`: that of the jobs, also for what comes by its dead letters.
    pub(super) fn read(body: Vec<u8>, redelivered: bool, properties: &BasicProperties, queue: &str) -> Self {
        let owned = |property: &Option<ShortString>| property.as_ref().map(ToString::to_string);
        let headers = properties.headers().as_ref();
        let expires_at = headers.and_then(expires_at);
        let number = |name| headers.and_then(|headers| count(headers, name)).unwrap_or(0);
        Self {
            body: body.into(),
            message_id: owned(properties.message_id()),
            correlation_id: owned(properties.correlation_id()),
            reply_to: owned(properties.reply_to()),
            traceparent: headers.and_then(|headers| text(headers, "traceparent")),
            tracestate: headers.and_then(|headers| text(headers, "tracestate")),
            expiration: owned(properties.expiration())
                .filter(|_| expires_at.is_none())
                .and_then(|millis| millis.parse().ok())
                .map(Duration::from_millis),
            expires_at,
            published_at: headers
                .and_then(|headers| count(headers, PUBLISHED_MS))
                .map(Duration::from_millis)
                .or_else(|| properties.timestamp().map(Duration::from_secs))
                .and_then(|since| UNIX_EPOCH.checked_add(since)),
            redelivered,
            delivery_count: number("x-delivery-count"),
            acquired_count: number("x-acquired-count"),
            returns: headers.and_then(RequeueHistory::read),
            death: headers.and_then(|headers| DeathRecord::read(headers, queue)),
        }
    }

    /// When the job, received at `received`, is worth nothing any more; `None`: never.
    ///
    /// The broker lets no message out of a queue after its expiration. One that seems to come later was
    /// dated by a clock that disagrees with ours, or not at all: then the whole of it counts from its
    /// arrival.
    #[must_use]
    pub fn expiry(&self, received: SystemTime) -> Option<SystemTime> {
        if self.expires_at.is_some() {
            return self.expires_at;
        }
        let whole = self.expiration?;
        let dated = self.published_at.and_then(|at| at.checked_add(whole)).filter(|end| *end > received);
        dated.or_else(|| received.checked_add(whole))
    }
}

/// A header's text, if it is one.
pub(super) fn text(headers: &FieldTable, name: &str) -> Option<String> {
    match headers.inner().get(name)? {
        AMQPValue::LongString(text) => String::from_utf8(text.as_bytes().to_vec()).ok(),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}

/// A header's whole number, of whatever width, if it is one and not negative.
pub(super) fn count(headers: &FieldTable, name: &str) -> Option<u64> {
    match *headers.inner().get(name)? {
        AMQPValue::ShortShortInt(count) => count.try_into().ok(),
        AMQPValue::ShortShortUInt(count) => Some(count.into()),
        AMQPValue::ShortInt(count) => count.try_into().ok(),
        AMQPValue::ShortUInt(count) => Some(count.into()),
        AMQPValue::LongInt(count) => count.try_into().ok(),
        AMQPValue::LongUInt(count) => Some(count.into()),
        AMQPValue::LongLongInt(count) => count.try_into().ok(),
        _ => None,
    }
}

/// The properties of a job to submit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobProperties {
    /// The job's id when its body names none.
    pub message_id: Option<String>,
    /// Comes back with the result.
    pub correlation_id: Option<String>,
    /// The queue that waits for the result.
    pub reply_to: Option<String>,
    /// How long the job is worth starting.
    pub expiration: Option<Duration>,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// The same, of vendors.
    pub tracestate: Option<String>,
}

impl JobProperties {
    pub(super) fn write(&self) -> Result<BasicProperties, PublishError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut headers = FieldTable::default();
        let millis = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
        headers.insert(PUBLISHED_MS.into(), AMQPValue::LongLongInt(millis));
        let mut properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_delivery_mode(PERSISTENT)
            // `expiration` counts from here.
            .with_timestamp(now.as_secs());
        if let Some(id) = &self.message_id {
            properties = properties.with_message_id(short(id)?);
        }
        if let Some(id) = &self.correlation_id {
            properties = properties.with_correlation_id(short(id)?);
        }
        if let Some(queue) = &self.reply_to {
            properties = properties.with_reply_to(short(queue)?);
        }
        if let Some(expiration) = self.expiration {
            properties = properties.with_expiration(short(&expiration.as_millis().to_string())?);
        }
        for (name, value) in [("traceparent", &self.traceparent), ("tracestate", &self.tracestate)] {
            if let Some(value) = value {
                headers.insert(name.into(), AMQPValue::LongString(value.as_str().into()));
            }
        }
        Ok(properties.with_headers(headers))
    }
}

/// An AMQP short string. `ShortString::from` panics past 255 bytes: never use it on what came from
/// outside.
pub(super) fn short(text: &str) -> Result<ShortString, PublishError> {
    ShortString::try_new(text).map_err(|error| PublishError::TooLarge(error.to_string()))
}
