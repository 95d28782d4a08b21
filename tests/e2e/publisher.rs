//! Who publishes jobs and gets the answers: a client of its own, without the code under test.

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, Consumer, ExchangeKind,
    options::{
        BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions,
        ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
    },
    types::FieldTable,
};
use serde_json::Value;
use testbed::wait_for_value;
use tokio::time::timeout;
use uuid::Uuid;

use crate::{
    bench::Bench,
    suite::{JOB, SOON},
};

/// The broker's objects of one bench.
pub(crate) struct Topology {
    url: String,
    pub(crate) jobs: String,
    pub(crate) dead: String,
    pub(crate) events: String,
    pub(crate) control: String,
    /// `None`: a body that is no job and names no `reply_to` has nobody to tell.
    pub(crate) results: Option<String>,
}

impl Topology {
    pub(crate) fn new(url: String, name: &str) -> Self {
        Self {
            url,
            jobs: format!("{name}.jobs"),
            dead: format!("{name}.jobs.dead"),
            events: format!("{name}.events"),
            control: format!("{name}.control"),
            results: (name == "any").then(|| format!("{name}.results")),
        }
    }

    /// Makes what a results exchange needs before the first result: somebody who listens.
    pub(crate) async fn declare(&self) -> Result<()> {
        let Some(results) = &self.results else { return Ok(()) };
        let connection = Connection::connect(&self.url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let arguments = FieldTable::default;
        channel.exchange_declare(results.as_str().into(), ExchangeKind::Topic, durable, arguments()).await?;
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(results.as_str().into(), durable, arguments()).await?;
        let queue = results.as_str().into();
        channel
            .queue_bind(queue, results.as_str().into(), "#".into(), QueueBindOptions::default(), arguments())
            .await?;
        connection.close(200, "done".into()).await?;
        Ok(())
    }
}

/// A result as it came.
pub(crate) struct Reply {
    pub(crate) body: Vec<u8>,
    pub(crate) correlation_id: Option<String>,
}

/// A connection of one test's.
pub(crate) struct Publisher {
    jobs: String,
    control: String,
    channel: Channel,
    /// The queue that answers come to.
    pub(crate) reply_to: String,
    replies: Consumer,
    events: Consumer,
    _connection: Connection,
}

impl Publisher {
    /// Listens for answers and for all events from now on.
    pub(crate) async fn connect(bench: &Bench) -> Result<Self> {
        let Topology { url, jobs, events: exchange, control, .. } = bench.topology();
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let reply_to = format!("replies.{}", Uuid::new_v4().simple());
        let replies = listen(&channel, &reply_to).await?;
        let queue = format!("events.{}", Uuid::new_v4().simple());
        let events = listen(&channel, &queue).await?;
        let bind = QueueBindOptions::default();
        channel
            .queue_bind(queue.into(), exchange.as_str().into(), "job.#".into(), bind, FieldTable::default())
            .await?;
        let (jobs, control) = (jobs.clone(), control.clone());
        Ok(Self { jobs, control, channel, reply_to, replies, events, _connection: connection })
    }

    /// Publishes a body; the broker has it then.
    pub(crate) async fn publish(&self, body: &[u8], properties: BasicProperties) -> Result<()> {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let publish = self.channel.basic_publish(
            "".into(),
            self.jobs.as_str().into(),
            options,
            body,
            properties.with_delivery_mode(2),
        );
        ensure!(publish.await?.await?.is_ack(), "the broker did not take the job");
        Ok(())
    }

    /// Publishes a job that wants an answer; `correlation_id`.
    pub(crate) async fn ask(&self, body: &[u8]) -> Result<String> {
        let correlation_id = Uuid::new_v4().to_string();
        let properties = BasicProperties::default()
            .with_reply_to(self.reply_to.as_str().into())
            .with_correlation_id(correlation_id.as_str().into());
        self.publish(body, properties).await?;
        Ok(correlation_id)
    }

    /// The next answer.
    pub(crate) async fn reply(&mut self) -> Result<Reply> {
        let reply = timeout(JOB, self.replies.next()).await.context("no answer came")?;
        let delivery = reply.context("the broker closed the reply queue")??;
        let correlation_id = delivery.properties.correlation_id().as_ref().map(ToString::to_string);
        Ok(Reply { body: delivery.data, correlation_id })
    }

    /// The next event: routing key, properties and body.
    pub(crate) async fn event(&mut self) -> Result<lapin::message::Delivery> {
        let event = timeout(JOB, self.events.next()).await.context("no event came")?;
        Ok(event.context("the broker closed the queue of events")??)
    }

    /// All events of a job until it is finished, but for previews.
    pub(crate) async fn events_of(&mut self, id: &str) -> Result<Vec<Value>> {
        let mut events = Vec::new();
        loop {
            let delivery = self.event().await.with_context(|| format!("events until then: {events:#?}"))?;
            let key = delivery.routing_key.to_string();
            if !key.starts_with(&format!("job.{id}.")) || key.ends_with(".preview") {
                continue;
            }
            let event: Value = serde_json::from_slice(&delivery.data)?;
            let name = event["event"].as_str().unwrap_or_default().to_owned();
            ensure!(key == format!("job.{id}.{name}"), "{key} brought {event}");
            events.push(event);
            if name == "finished" {
                return Ok(events);
            }
        }
    }

    /// Waits for an event of this name, of any job.
    pub(crate) async fn wait_event(&mut self, name: &str) -> Result<()> {
        let end = format!(".{name}");
        while !self.event().await?.routing_key.as_str().ends_with(&end) {}
        Ok(())
    }

    /// Cancels a job.
    pub(crate) async fn cancel(&self, id: &str) -> Result<()> {
        let order = serde_json::to_vec(&serde_json::json!({"cancel": id}))?;
        let (exchange, options) = (self.control.as_str().into(), BasicPublishOptions::default());
        let properties = BasicProperties::default();
        self.channel.basic_publish(exchange, "".into(), options, &order, properties).await?.await?;
        Ok(())
    }

    /// Takes a message out of any queue.
    pub(crate) async fn take(&self, queue: &str) -> Result<lapin::message::Delivery> {
        wait_for_value(&format!("a message in {queue}"), SOON, || async {
            let options = BasicGetOptions { no_ack: true };
            Some(self.channel.basic_get(queue.into(), options).await.ok()??.delivery)
        })
        .await
    }
}

/// An exclusive queue that goes with the connection, and its consumer.
async fn listen(channel: &Channel, queue: &str) -> Result<Consumer> {
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    channel.queue_declare(queue.into(), options, FieldTable::default()).await?;
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    Ok(channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?)
}
