//! A look at the broker from outside.

use anyhow::Result;
use comfy_worker::config::AmqpConfig;
use lapin::{
    Channel, Connection, ConnectionProperties, ExchangeKind,
    options::{
        BasicGetOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
    },
    types::FieldTable,
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
