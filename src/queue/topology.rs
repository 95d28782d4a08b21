//! Queues and exchanges: declared, or only checked.

use std::time::Duration;

use lapin::{
    Channel, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, ShortString},
};

use super::{
    connection::{ANSWER_LIMIT, BrokerConnection},
    error::{BrokerError, QueueError, within},
    refusal,
};
use crate::config::AmqpConfig;

/// The exchange that rejected jobs go through, to `<queue>.dead`.
const DEAD_EXCHANGE: &str = "comfy.dead";

/// How long a worker may hold a job before the broker takes it back: one value, so that workers with
/// another `job.timeout` agree, and longer than any job.
pub(super) const CONSUMER_TIMEOUT: Duration = Duration::from_millis(CONSUMER_TIMEOUT_MS.unsigned_abs());
/// A day.
const CONSUMER_TIMEOUT_MS: i64 = 86_400_000;

/// What is known of the `x-consumer-timeout` that the queue of jobs was declared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Argument {
    Is(Duration),
    Absent,
    /// The queue was only checked.
    Unseen,
}

/// Name of the queue that holds the dead letters of `queue`.
pub(super) fn dead_queue(queue: &str) -> String {
    format!("{queue}.dead")
}

/// Name of the queue that tells of each dead letter of `queue`: a worker answers its publisher.
pub(super) fn notices_queue(queue: &str) -> String {
    format!("{queue}.dead.notices")
}

/// Name of the queue that holds the jobs of `queue` that are given back until later.
pub(super) fn later_queue(queue: &str) -> String {
    format!("{queue}.later")
}

/// Declares the exchanges and queues, or with `declare = false` checks that they are there.
pub(super) async fn ensure(link: &BrokerConnection, config: &AmqpConfig) -> Result<(), QueueError> {
    let channel = link.channel().await.map_err(|error| unavailable(&error))?;
    let topology = Topology { channel: &channel, declare: config.declare };
    let (dead, notices) = (dead_queue(&config.queue), notices_queue(&config.queue));
    let later = later_queue(&config.queue);
    topology.exchange(DEAD_EXCHANGE, ExchangeKind::Direct, None).await?;
    topology.queue(&dead, table(&[("x-queue-type", text("quorum"))])).await?;
    topology.bind(&dead, DEAD_EXCHANGE, &config.queue).await?;
    topology.queue(&notices, notices_queue_arguments()).await?;
    topology.bind(&notices, DEAD_EXCHANGE, &config.queue).await?;
    job_queue(link, config).await?;
    delay_queue(link, config, &later).await?;
    topology.exchange(&config.events_exchange, ExchangeKind::Topic, Some("amqp.events_exchange")).await?;
    topology.exchange(&config.control_exchange, ExchangeKind::Fanout, Some("amqp.control_exchange")).await?;
    if let Some(exchange) = &config.results_exchange {
        topology.exchange(exchange, ExchangeKind::Topic, Some("amqp.results_exchange")).await?;
    }
    Ok(())
}

/// The queue of jobs. One that an earlier version declared has no consumer timeout, and somebody may have
/// given it another one: it is taken as it is when nothing else differs.
pub(super) async fn job_queue(link: &BrokerConnection, config: &AmqpConfig) -> Result<Argument, QueueError> {
    let declare = async |timeout| {
        // A refusal closes it.
        let channel = link.channel().await?;
        let topology = Topology { channel: &channel, declare: config.declare };
        topology.declare(&config.queue, job_queue_arguments(config, timeout)).await
    };
    let refused = |error: &BrokerError| explain(error, "queue", &config.queue, Some("amqp.queue"));
    let Err(error) = declare(Some(CONSUMER_TIMEOUT_MS)).await else {
        return Ok(if config.declare { Argument::Is(CONSUMER_TIMEOUT) } else { Argument::Unseen });
    };
    let Some(existing) = existing_timeout(&error) else { return Err(refused(&error)) };
    declare(existing).await.map_err(|error| refused(&error))?;
    let limit = existing.and_then(|millis| u64::try_from(millis).ok()).map(Duration::from_millis);
    Ok(limit.map_or(Argument::Absent, Argument::Is))
}

/// The delay queue. One that an earlier version declared lets a message stay that came without a time to live, and with it
/// all behind: it is taken as it is.
async fn delay_queue(link: &BrokerConnection, config: &AmqpConfig, name: &str) -> Result<(), QueueError> {
    let declare = async |arguments| {
        // A refusal closes it.
        let channel = link.channel().await?;
        Topology { channel: &channel, declare: config.declare }.declare(name, arguments).await
    };
    let arguments = later_queue_arguments(config);
    let Err(error) = declare(arguments.clone()).await else { return Ok(()) };
    let is_older = error.refusal().is_some_and(|(code, text)| {
        code == 406 && refusal::difference(&text).is_some_and(|found| found.argument == LATER_TTL)
    });
    if is_older {
        tracing::warn!(
            queue = name,
            "the delay queue has no x-message-ttl: one message without an expiration would keep all behind it; delete the queue while it is empty and start a worker, or set a policy with message-ttl 60000"
        );
        let mut older = FieldTable::default();
        for (key, value) in arguments.inner().iter().filter(|(key, _)| key.as_str() != LATER_TTL) {
            older.insert(key.clone(), value.clone());
        }
        let Err(error) = declare(older).await else { return Ok(()) };
        return Err(explain(&error, "queue", name, None));
    }
    Err(explain(&error, "queue", name, None))
}

/// The consumer timeout of a queue that was refused for having another one, if it has one at all.
fn existing_timeout(error: &BrokerError) -> Option<Option<i64>> {
    let (_, text) = error.refusal().filter(|(code, _)| *code == 406)?;
    let difference = refusal::difference(&text).filter(|found| found.argument == "x-consumer-timeout")?;
    match difference.existing.as_str() {
        "none" => Some(None),
        number => number.parse().ok().map(Some),
    }
}

/// A notice comes back whenever its worker ends before it could act: RabbitMQ 4 would drop it at the
/// 20th time.
fn notices_queue_arguments() -> FieldTable {
    table(&[("x-queue-type", text("quorum")), ("x-delivery-limit", AMQPValue::LongLongInt(1_000_000_000))])
}

const LATER_TTL: &str = "x-message-ttl";

/// Each message has a time to live of its own, [`LONGEST_DELAY`](super::LONGEST_DELAY) at most. The queue's is for those that
/// others put there: one without would stay, and nothing behind it would come out.
fn later_queue_arguments(config: &AmqpConfig) -> FieldTable {
    table(&[
        ("x-queue-type", text("quorum")),
        ("x-delivery-limit", AMQPValue::LongLongInt(1_000_000_000)),
        ("x-message-ttl", AMQPValue::LongLongInt(60_000)),
        // The default exchange, which has a queue's name for a key.
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text(&config.queue)),
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-overflow", text("reject-publish")),
    ])
}

fn job_queue_arguments(config: &AmqpConfig, consumer_timeout: Option<i64>) -> FieldTable {
    let mut arguments = table(&[
        ("x-queue-type", text("quorum")),
        ("x-delivery-limit", AMQPValue::LongLongInt(config.delivery_limit.into())),
        ("x-dead-letter-exchange", text(DEAD_EXCHANGE)),
        ("x-dead-letter-routing-key", text(&config.queue)),
        // At least once needs reject-publish, or the broker falls back to at-most-once silently.
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-overflow", text("reject-publish")),
    ]);
    if let Some(millis) = consumer_timeout {
        arguments.insert("x-consumer-timeout".into(), AMQPValue::LongLongInt(millis));
    }
    arguments
}

/// The same for one consumer, which RabbitMQ 4.3 and later go by; others ignore it.
pub(super) fn consumer_arguments() -> FieldTable {
    table(&[("x-consumer-timeout", AMQPValue::LongLongInt(CONSUMER_TIMEOUT_MS))])
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

fn table(entries: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (key, value) in entries {
        table.insert(ShortString::from(*key), value.clone());
    }
    table
}

struct Topology<'a> {
    channel: &'a Channel,
    declare: bool,
}

impl Topology<'_> {
    async fn exchange(&self, name: &str, kind: ExchangeKind, key: Option<&str>) -> Result<(), QueueError> {
        let options = ExchangeDeclareOptions {
            passive: !self.declare,
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        let answer = self.channel.exchange_declare(short(name)?, kind, options, FieldTable::default());
        within(ANSWER_LIMIT, "exchange.declare", answer)
            .await
            .map_err(|error| explain(&error, "exchange", name, key))
    }

    async fn queue(&self, name: &str, arguments: FieldTable) -> Result<(), QueueError> {
        let declared = self.declare(name, arguments).await;
        declared.map_err(|error| explain(&error, "queue", name, Some("amqp.queue")))
    }

    async fn declare(&self, name: &str, arguments: FieldTable) -> Result<(), BrokerError> {
        let options =
            QueueDeclareOptions { passive: !self.declare, durable: true, ..QueueDeclareOptions::default() };
        let name = ShortString::try_new(name).map_err(|error| BrokerError::Unfit(error.to_string()))?;
        let answer = self.channel.queue_declare(name, options, arguments);
        within(ANSWER_LIMIT, "queue.declare", answer).await.map(drop)
    }

    /// A binding cannot be checked passively.
    async fn bind(&self, queue: &str, exchange: &str, routing_key: &str) -> Result<(), QueueError> {
        if !self.declare {
            return Ok(());
        }
        let options = QueueBindOptions::default();
        let answer = self.channel.queue_bind(
            short(queue)?,
            short(exchange)?,
            short(routing_key)?,
            options,
            FieldTable::default(),
        );
        within(ANSWER_LIMIT, "queue.bind", answer)
            .await
            .map_err(|error| explain(&error, "queue", queue, Some("amqp.queue")))
    }
}

fn short(name: &str) -> Result<ShortString, QueueError> {
    ShortString::try_new(name).map_err(|error| QueueError::Misconfigured(format!("{name:?}: {error}")))
}

fn unavailable(error: &BrokerError) -> QueueError {
    QueueError::Unavailable(format!("checking queues and exchanges: {error}"))
}

/// Turns a refused declaration into what differs and what to change. `key`: the setting that names
/// the object, where there is one.
fn explain(error: &BrokerError, kind: &str, name: &str, key: Option<&str>) -> QueueError {
    let Some((code, text)) = error.refusal() else { return unavailable(error) };
    let elsewhere = key.map_or_else(String::new, |key| format!(", or name another one in {key}"));
    let what = match code {
        404 if !refusal::is_passing(&text) => {
            format!("the {kind} {name:?} does not exist: create it, or set amqp.declare = true{elsewhere}")
        }
        406 => match refusal::difference(&text) {
            Some(difference) => {
                let settle = match difference.argument.as_str() {
                    "x-delivery-limit" => {
                        format!("set amqp.delivery_limit = {}", difference.existing)
                    }
                    _ if kind == "queue" => "delete it once it is empty".to_owned(),
                    _ => "delete it if nothing else uses it".to_owned(),
                };
                format!(
                    "the {kind} {name:?} exists with another {}: it has {}, this worker wants {}: {settle}, or \
                     set amqp.declare = false to take it as it is{elsewhere}",
                    difference.argument, difference.existing, difference.wanted,
                )
            }
            None => format!("the {kind} {name:?} cannot be declared: {text}"),
        },
        403 => format!(
            "the user of amqp.url may not declare or read the {kind} {name:?} ({text}): give it the permission, \
             or set amqp.declare = false"
        ),
        405 => format!("the {kind} {name:?} belongs to another connection ({text}){elsewhere}"),
        _ => return unavailable(error),
    };
    QueueError::Misconfigured(what)
}
