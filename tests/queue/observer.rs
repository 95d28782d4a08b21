//! A look at the broker from outside.

use anyhow::{Result, ensure};
use comfy_worker::config::AmqpConfig;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ExchangeKind,
    options::{
        BasicGetOptions, BasicPublishOptions, BasicRejectOptions, ConfirmSelectOptions,
        ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions,
        QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};
use testbed::wait_for_value;

use super::SOON;

/// A second client, which looks at the broker without the code under test.
pub(super) struct Observer {
    channel: Channel,
    connection: Connection,
}

impl Observer {
    pub(super) async fn connect(config: &AmqpConfig) -> Result<Self> {
        use secrecy::ExposeSecret as _;
        let properties = ConnectionProperties::default();
        let connection = Connection::connect(config.url.expose_secret(), properties).await?;
        Ok(Self { channel: connection.create_channel().await?, connection })
    }

    /// An exclusive queue of this test's.
    pub(super) async fn queue(&self, name: &str) -> Result<()> {
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(name.into(), options, FieldTable::default()).await?;
        Ok(())
    }

    /// A quorum queue whose messages come back so often and then are dropped.
    pub(super) async fn limited_queue(&self, name: &str, delivery_limit: i64) -> Result<()> {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(delivery_limit));
        self.channel.queue_declare(name.into(), options, arguments).await?;
        Ok(())
    }

    /// A queue of jobs, with that `x-consumer-timeout` or none.
    pub(super) async fn job_queue(&self, name: &str, consumer_timeout: Option<i64>) -> Result<()> {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let mut arguments = FieldTable::default();
        for (key, value) in [
            ("x-queue-type", "quorum"),
            ("x-dead-letter-exchange", "comfy.dead"),
            ("x-dead-letter-routing-key", name),
            ("x-dead-letter-strategy", "at-least-once"),
            ("x-overflow", "reject-publish"),
        ] {
            arguments.insert(key.into(), AMQPValue::LongString(value.into()));
        }
        let numbers = [("x-delivery-limit", Some(20)), ("x-consumer-timeout", consumer_timeout)];
        for (key, number) in numbers {
            if let Some(number) = number {
                arguments.insert(key.into(), AMQPValue::LongLongInt(number));
            }
        }
        self.channel.queue_declare(name.into(), options, arguments).await?;
        Ok(())
    }

    /// The delay queue as it was before it had a time to live.
    pub(super) async fn delay_queue(&self, name: &str, jobs: &str) -> Result<()> {
        let text = |text: &str| AMQPValue::LongString(text.into());
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), text("quorum"));
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(1_000_000_000));
        arguments.insert("x-dead-letter-exchange".into(), text(""));
        arguments.insert("x-dead-letter-routing-key".into(), text(jobs));
        arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
        arguments.insert("x-overflow".into(), text("reject-publish"));
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(name.into(), options, arguments).await?;
        Ok(())
    }

    /// Takes the next message and rejects it back, as a careless reader does, which counts on every version;
    /// whether there is one.
    pub(super) async fn reject(&self, queue: &str) -> Result<bool> {
        let got = self.channel.basic_get(queue.into(), BasicGetOptions::default()).await?;
        let Some(got) = got else { return Ok(false) };
        Ok(got.delivery.acker.reject(BasicRejectOptions { requeue: true }).await?)
    }

    /// Publishes into a queue.
    pub(super) async fn publish(&self, queue: &str, body: &[u8], properties: BasicProperties) -> Result<()> {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let channel = self.connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let published =
            channel.basic_publish("".into(), queue.into(), options, body, properties).await?.await?;
        ensure!(matches!(published, Confirmation::Ack(None)), "{published:?}");
        Ok(())
    }

    pub(super) async fn bind(&self, queue: &str, exchange: &str, key: &str) -> Result<()> {
        let options = QueueBindOptions::default();
        Ok(self
            .channel
            .queue_bind(queue.into(), exchange.into(), key.into(), options, FieldTable::default())
            .await?)
    }

    pub(super) async fn exchange(&self, name: &str, kind: ExchangeKind) -> Result<()> {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        Ok(self.channel.exchange_declare(name.into(), kind, options, FieldTable::default()).await?)
    }

    /// `(messages ready, consumers)`; `None` when there is no such queue.
    pub(super) async fn count(&self, queue: &str) -> Option<(u32, u32)> {
        // A missing queue closes the channel.
        let channel = self.connection.create_channel().await.ok()?;
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare(queue.into(), options, FieldTable::default()).await.ok()?;
        Some((queue.message_count(), queue.consumer_count()))
    }

    pub(super) async fn delete_exchange(&self, name: &str) -> Result<()> {
        Ok(self.channel.exchange_delete(name.into(), ExchangeDeleteOptions::default()).await?)
    }

    /// A queue of this test's that takes one message.
    pub(super) async fn full_queue(&self, name: &str) -> Result<()> {
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(1));
        arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        self.channel.queue_declare(name.into(), options, arguments).await?;
        Ok(())
    }

    pub(super) async fn delete(&self, queue: &str) -> Result<()> {
        self.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
        Ok(())
    }

    /// The next message of `queue`, acked.
    pub(super) async fn take(&self, queue: &str) -> Result<lapin::message::Delivery> {
        wait_for_value(&format!("a message in {queue}"), SOON, || async {
            let options = BasicGetOptions { no_ack: true };
            let got = self.channel.basic_get(queue.into(), options).await.ok()??;
            Some(got.delivery)
        })
        .await
    }
}
