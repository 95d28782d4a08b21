//! The dead letters: listed, returned, published again, dropped.
//!
//! Hazard: looking at a message is a delivery. Each return adds to its `x-delivery-count`, also the
//! return that a lost connection causes, and a quorum queue drops a message that exceeds the queue's
//! limit (RabbitMQ 4 gives every queue one of 20, and the dead letters have no dead letters). So all
//! are held and given back once, and a letter that has come back before is published again instead:
//! its count begins at nothing.
//!
//! Invariant: a letter is acked only after its copy is confirmed. A program that dies in between
//! leaves it twice, never not at all.

use std::{sync::Arc, time::Duration};

use lapin::{
    Acker, BasicProperties, Channel,
    message::Delivery as Delivered,
    options::{BasicAckOptions, BasicGetOptions, BasicNackOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::{
    PublishError,
    connection::{ANSWER_LIMIT, BrokerConnection},
    death::{renewed, revived},
    error::{BrokerError, QueueError, within},
    message::{Message, short},
    publisher::{Envelope, RetryPolicy, publish},
    session::{Role, Session},
    topology::dead_queue,
};
use connector::text::is_credential;

use crate::telemetry::redact_json;

/// Returns after which a letter is published again instead of being returned once more.
const RENEWED_AFTER: u64 = 2;
/// A body may be as large as the broker allows.
const GET_LIMIT: Duration = Duration::from_secs(60);
const PUBLISH_LIMIT: Duration = Duration::from_secs(60);

/// One pass over the dead letters that are there when it begins, oldest first.
///
/// What was read is held, so another pass does not see it, until [`DeadLetters::give_back`] or the
/// end of the connection.
pub struct DeadLetters {
    session: Arc<Session>,
    /// Keeps the channel's connection.
    _link: Arc<BrokerConnection>,
    channel: Channel,
    queue: ShortString,
    /// Letters published again go to the end: without this number a pass would meet them again. From the
    /// first letter's answer: a look at the queue may be older than what was returned to it just now.
    unread: Option<u32>,
    others_hold: bool,
}

/// A dead letter in hand; only its pass can let it go.
pub struct DeadLetter {
    /// Body and what matters of its properties, with the reason in `death`.
    pub message: Message,
    properties: BasicProperties,
    acker: Acker,
}

impl DeadLetters {
    pub(super) async fn open(session: &Arc<Session>) -> Result<Self, QueueError> {
        let gone = || QueueError::Unavailable("there is no connection to the broker".into());
        let link = session.current_link(Role::Consume).ok_or_else(gone)?;
        let queue = short(&dead_queue(&session.config.queue)).map_err(|error| refused(&error))?;
        let channel = link.channel().await.map_err(|error| trouble(&error))?;
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let look = channel.queue_declare(queue.clone(), options, FieldTable::default());
        let found = within(ANSWER_LIMIT, "queue.declare", look).await.map_err(|error| trouble(&error))?;
        let others_hold = found.consumer_count() > 0;
        Ok(Self { session: Arc::clone(session), _link: link, channel, queue, unread: None, others_hold })
    }

    /// Whether somebody else held letters when this pass began: those are not met.
    #[must_use]
    pub fn others_hold(&self) -> bool {
        self.others_hold
    }

    /// The next letter; `None` after the last. Its body is in memory until it is let go.
    ///
    /// # Errors
    /// When the connection is lost: every letter that was not acked is back in its queue then.
    pub async fn next(&mut self) -> Result<Option<DeadLetter>, QueueError> {
        if self.unread == Some(0) {
            return Ok(None);
        }
        let get = self.channel.basic_get(self.queue.clone(), BasicGetOptions { no_ack: false });
        let got = within(GET_LIMIT, "basic.get", get).await.map_err(|error| trouble(&error))?;
        self.unread =
            Some(got.as_ref().map_or(0, |got| self.unread.map_or(got.message_count, |unread| unread - 1)));
        Ok(got.map(|got| {
            let Delivered { data, redelivered, properties, acker, .. } = got.delivery;
            let message = Message::read(data, redelivered, &properties, &self.session.config.queue);
            DeadLetter { message, properties, acker }
        }))
    }

    /// Leaves a letter among the dead ones.
    ///
    /// # Errors
    /// When it had to be published again and the broker did not confirm that: then it is still there.
    pub async fn keep(&self, letter: DeadLetter) -> Result<(), QueueError> {
        if letter.message.delivery_count < RENEWED_AFTER {
            return Ok(());
        }
        let properties = renewed(&letter.properties, letter.message.death.as_ref());
        self.replace(letter, self.queue.clone(), properties).await
    }

    /// Publishes a letter's job into the queue of jobs, as it came first, and takes the letter away.
    ///
    /// # Errors
    /// When the broker did not confirm that: then the letter is still there.
    pub async fn retry(&self, letter: DeadLetter) -> Result<(), QueueError> {
        let jobs = short(&self.session.config.queue).map_err(|error| refused(&error))?;
        let properties = revived(&letter.properties);
        self.replace(letter, jobs, properties).await
    }

    /// Takes a letter away.
    ///
    /// # Errors
    /// When the connection is lost: then it is still there.
    pub async fn discard(&self, letter: DeadLetter) -> Result<(), QueueError> {
        let ack = within(ANSWER_LIMIT, "an acknowledgement", letter.acker.ack(BasicAckOptions::default()));
        if ack.await.map_err(|error| trouble(&error))? {
            Ok(())
        } else {
            Err(QueueError::Unavailable("the connection to the broker was lost".into()))
        }
    }

    async fn replace(
        &self,
        letter: DeadLetter,
        queue: ShortString,
        properties: BasicProperties,
    ) -> Result<(), QueueError> {
        let body = letter.message.body.clone();
        let envelope = Envelope { exchange: "".into(), routing_key: queue, properties, body };
        let policy = RetryPolicy { unroutable: false, nacks: None };
        let published = publish(&self.session, &envelope, policy, Instant::now() + PUBLISH_LIMIT);
        published.await.map_err(|error| refused(&error))?;
        self.discard(letter).await
    }

    /// Returns what is held, in its order, and waits until the broker has it.
    ///
    /// # Errors
    /// When the connection is lost: the broker returns them by itself then.
    pub async fn give_back(self) -> Result<(), QueueError> {
        let options = BasicNackOptions { multiple: true, requeue: true };
        // Tag 0 stands for all.
        let nack = within(ANSWER_LIMIT, "basic.nack", self.channel.basic_nack(0, options));
        nack.await.map_err(|error| trouble(&error))?;
        // Answered behind everything before it.
        let close = within(ANSWER_LIMIT, "channel.close", self.channel.close(200, "OK".into()));
        close.await.map_err(|error| trouble(&error))
    }
}

impl DeadLetter {
    /// Its properties and headers as JSON, for people.
    #[must_use]
    pub fn properties(&self) -> Value {
        let mut shown = Map::new();
        let texts = [
            ("message_id", self.properties.message_id()),
            ("correlation_id", self.properties.correlation_id()),
            ("reply_to", self.properties.reply_to()),
            ("content_type", self.properties.content_type()),
            ("content_encoding", self.properties.content_encoding()),
            ("type", self.properties.kind()),
            ("user_id", self.properties.user_id()),
            ("app_id", self.properties.app_id()),
        ];
        for (name, text) in texts {
            if let Some(text) = text {
                shown.insert(name.into(), json!(text.as_str()));
            }
        }
        if let Some(seconds) = self.properties.timestamp() {
            shown.insert("timestamp".into(), json!(seconds));
        }
        if let Some(headers) = self.properties.headers() {
            shown.insert("headers".into(), table(headers));
        }
        Value::Object(shown)
    }
}

fn table(table: &FieldTable) -> Value {
    let fields = table.inner().iter().map(|(name, value)| {
        let plain = name.as_str().replace('-', "_");
        let secret = is_credential(&plain) || plain.eq_ignore_ascii_case("authorization");
        (name.to_string(), if secret { json!("(not shown)") } else { shown(value) })
    });
    let mut table = Value::Object(fields.collect());
    redact_json(&mut table);
    table
}

fn shown(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(value) => json!(value),
        AMQPValue::ShortShortInt(value) => json!(value),
        AMQPValue::ShortShortUInt(value) => json!(value),
        AMQPValue::ShortInt(value) => json!(value),
        AMQPValue::ShortUInt(value) => json!(value),
        AMQPValue::LongInt(value) => json!(value),
        AMQPValue::LongUInt(value) => json!(value),
        AMQPValue::LongLongInt(value) => json!(value),
        AMQPValue::Float(value) => json!(value),
        AMQPValue::Double(value) => json!(value),
        AMQPValue::DecimalValue(value) => json!(format!("{}e-{}", value.value, value.scale)),
        AMQPValue::ShortString(text) => json!(text.as_str()),
        AMQPValue::LongString(text) => json!(String::from_utf8_lossy(text.as_bytes())),
        AMQPValue::FieldArray(values) => values.as_slice().iter().map(shown).collect(),
        AMQPValue::Timestamp(seconds) => json!(seconds),
        AMQPValue::FieldTable(inner) => table(inner),
        AMQPValue::ByteArray(bytes) => json!(String::from_utf8_lossy(bytes.as_slice())),
        AMQPValue::Void => Value::Null,
    }
}

fn trouble(error: &BrokerError) -> QueueError {
    QueueError::Unavailable(format!("the dead letters: {error}"))
}

fn refused(error: &PublishError) -> QueueError {
    match error {
        PublishError::Unconfirmed(_) => QueueError::Unavailable(error.to_string()),
        final_one => QueueError::Misconfigured(final_one.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_shown_without_keys_however_deep_they_lie() {
        let text = |text: &str| AMQPValue::LongString(text.into());
        let mut inner = FieldTable::default();
        inner.insert("x-api-key".into(), text("hunter2"));
        inner.insert("link".into(), text("https://h/x?X-Amz-Signature=hunter2"));
        let mut outer = FieldTable::default();
        outer.insert("Authorization".into(), text("Bearer hunter2"));
        outer.insert("nested".into(), AMQPValue::FieldArray(vec![AMQPValue::FieldTable(inner)].into()));
        outer.insert("tenant".into(), text("shop"));
        let shown = table(&outer);
        assert!(!shown.to_string().contains("hunter2"), "{shown}");
        assert_eq!((&shown["tenant"], &shown["Authorization"]), (&json!("shop"), &json!("(not shown)")));
    }
}
