//! What a test's workers share: queue, store, and a publisher who waits for answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use anyhow::{Context as _, Result, ensure};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties,
    options::{
        BasicGetOptions, BasicPublishOptions, BasicRejectOptions, ConfirmSelectOptions, QueueDeclareOptions,
    },
    types::FieldTable,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use testbed::{RabbitMq, S3Server, landscape, wait_for};

use super::{JOB, SOON};

/// Everything of one test; its end removes the files.
pub(super) struct Bed {
    /// Short, since sockets of Chromium's lie in it.
    pub(super) folder: TempDir,
    pub(super) s3: S3Server,
    pub(super) broker: Broker,
    name: &'static str,
}

/// Every test's, or one of the test's own that it may break.
pub(super) enum Broker {
    Shared(&'static RabbitMq),
    Own(Box<RabbitMq>),
}

impl std::ops::Deref for Broker {
    type Target = RabbitMq;

    fn deref(&self) -> &RabbitMq {
        match self {
            Self::Shared(broker) => broker,
            Self::Own(broker) => broker,
        }
    }
}

impl Bed {
    pub(super) async fn new(name: &'static str) -> Result<Self> {
        Self::with(name, Broker::Shared(RabbitMq::shared().await?), tempfile::tempdir()?).await
    }

    pub(super) async fn with_own_broker(name: &'static str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let broker = RabbitMq::start(&folder.path().join("rabbitmq")).await?;
        Self::with(name, Broker::Own(Box::new(broker)), folder).await
    }

    async fn with(name: &'static str, broker: Broker, folder: TempDir) -> Result<Self> {
        let s3 = S3Server::start(&folder.path().join("s3")).await?;
        s3.create_bucket("inputs")?;
        s3.create_bucket("results")?;
        s3.put("inputs", "cat.png", landscape()).await?;
        let bed = Self { folder, s3, broker, name };
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let channel = bed.channel().await?;
        channel.queue_declare(bed.replies().into(), durable, FieldTable::default()).await?;
        Ok(bed)
    }

    pub(super) fn queue(&self) -> String {
        format!("drain-{}.jobs", self.name)
    }

    pub(super) fn replies(&self) -> String {
        format!("drain-{}.replies", self.name)
    }

    pub(super) fn events(&self) -> String {
        format!("drain-{}.events", self.name)
    }

    pub(super) fn control(&self) -> String {
        format!("drain-{}.control", self.name)
    }

    /// Sends an order to the workers, as a publisher without our command line would.
    pub(super) async fn order(&self, order: &Value) -> Result<()> {
        let channel = self.channel().await?;
        let body = serde_json::to_vec(order)?;
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = BasicProperties::default();
        let sent = channel.basic_publish(self.control().into(), "".into(), options, &body, properties);
        ensure!(matches!(sent.await?.await?, Confirmation::Ack(None)), "no worker listens for orders");
        Ok(())
    }

    pub(super) fn broker_address(&self) -> Result<SocketAddr> {
        let url = url::Url::parse(&self.broker.url())?;
        Ok(SocketAddr::from(([127, 0, 0, 1], url.port().context("the broker's port")?)))
    }

    pub(super) async fn channel(&self) -> Result<Channel> {
        let connection = Connection::connect(&self.broker.url(), ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    }

    /// Publishes a job that names its id; a worker must have declared the queue.
    pub(super) async fn publish(&self, job: &Value) -> Result<()> {
        self.publish_with(job, BasicProperties::default()).await
    }

    /// Publishes with more properties than the reply queue.
    pub(super) async fn publish_with(
        &self,
        job: &impl serde::Serialize,
        properties: BasicProperties,
    ) -> Result<()> {
        let properties = properties.with_reply_to(self.replies().into());
        self.publish_body(&serde_json::to_vec(job)?, properties).await
    }

    /// Publishes what nobody waits for.
    pub(super) async fn publish_unasked(&self, body: &[u8]) -> Result<()> {
        self.publish_body(body, BasicProperties::default()).await
    }

    pub(super) async fn publish_body(&self, body: &[u8], properties: BasicProperties) -> Result<()> {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let (channel, properties) = (self.channel().await?, properties.with_delivery_mode(2));
        let published =
            channel.basic_publish("".into(), self.queue().into(), options, body, properties).await?.await?;
        ensure!(matches!(published, Confirmation::Ack(None)), "the job is in no queue");
        Ok(())
    }

    /// Takes so many jobs and hands them back, as a worker does that cannot run them.
    pub(super) async fn hand_back(&self, jobs: usize) -> Result<()> {
        let channel = self.channel().await?;
        let mut held = Vec::new();
        for _ in 0..jobs {
            let got = channel.basic_get(self.queue().into(), BasicGetOptions::default()).await?;
            held.push(got.context("no job")?);
        }
        for job in held {
            // Not by nack, which counts no more from RabbitMQ 4.3 on.
            job.delivery.acker.reject(BasicRejectOptions { requeue: true }).await?;
        }
        channel.close(200, "done".into()).await?;
        Ok(())
    }

    /// How many messages lie ready in the queue of jobs or another that is named after it.
    pub(super) async fn ready(&self, suffix: &str) -> Option<u32> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let name = format!("{}{suffix}", self.queue());
        let channel = self.channel().await.ok()?;
        let queue = channel.queue_declare(name.into(), options, FieldTable::default()).await.ok()?;
        Some(queue.message_count())
    }

    /// How many jobs are ready in the queue, and how many workers are subscribed.
    pub(super) async fn queued(&self) -> Result<(u32, u32)> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let channel = self.channel().await?;
        let queue = channel.queue_declare(self.queue().into(), options, FieldTable::default()).await?;
        Ok((queue.message_count(), queue.consumer_count()))
    }

    /// Waits until a worker is subscribed.
    pub(super) async fn wait_subscribed(&self) -> Result<()> {
        let subscribed = || async { self.queued().await.is_ok_and(|(_, consumers)| consumers > 0) };
        wait_for("a consumer", SOON, subscribed).await
    }

    /// Waits until `ready` jobs lie in the queue and no worker holds any.
    pub(super) async fn wait_queued(&self, ready: u32) -> Result<()> {
        let holds = || async { self.queued().await.is_ok_and(|queued| queued == (ready, 0)) };
        let waited = wait_for("the queue", SOON, holds).await;
        waited.with_context(|| format!("{ready} jobs and no consumer wanted"))
    }

    /// The job's one answer. See [`Bed::answers`].
    pub(super) async fn answer(&self, id: &str) -> Result<Value> {
        Ok(self.answers(&[id]).await?.remove(id).unwrap_or_default())
    }

    /// That no answer but more of the same came since.
    pub(super) async fn no_other_answer(&self, id: &str) -> Result<()> {
        let channel = self.channel().await?;
        let stored = self.s3.get("results", &format!("jobs/{id}/result.json")).await?;
        while let Some(again) =
            channel.basic_get(self.replies().into(), BasicGetOptions { no_ack: true }).await?
        {
            ensure!(again.delivery.data == stored, "another answer");
        }
        Ok(())
    }

    /// Waits for an answer to each of these jobs, and sees that nobody else was answered and that
    /// each answer, however often it came, is the stored result, byte for byte.
    pub(super) async fn answers(&self, ids: &[&str]) -> Result<BTreeMap<String, Value>> {
        let wanted: BTreeSet<_> = ids.iter().map(ToString::to_string).collect();
        let mut came: BTreeMap<String, BTreeSet<Vec<u8>>> = BTreeMap::new();
        // A broker that restarts meanwhile brings back what was not acked.
        let replies = tokio::sync::Mutex::new((self.channel().await?, &mut came));
        let all_came = || async {
            let (channel, came) = &mut *replies.lock().await;
            loop {
                match channel.basic_get(self.replies().into(), BasicGetOptions { no_ack: true }).await {
                    Ok(Some(message)) => {
                        let id = message.properties.message_id().as_ref().map(ToString::to_string);
                        came.entry(id.unwrap_or_default()).or_default().insert(message.delivery.data);
                    }
                    Ok(None) => return wanted.iter().all(|id| came.contains_key(id)),
                    Err(_) => match self.channel().await {
                        Ok(again) => *channel = again,
                        Err(_) => return false,
                    },
                }
            }
        };
        wait_for("the answers", JOB, all_came).await?;
        ensure!(came.keys().eq(&wanted), "answered: {:?}", came.keys());
        let mut results = BTreeMap::new();
        for (id, bodies) in came {
            let stored = self.s3.get("results", &format!("jobs/{id}/result.json")).await?;
            ensure!(bodies == BTreeSet::from([stored.clone()]), "{id}: an answer is not the stored result");
            results.insert(id, serde_json::from_slice(&stored)?);
        }
        Ok(results)
    }

    pub(super) async fn marker(&self, id: &str, attempt: u32) -> Result<Value> {
        let marker = self.s3.get("results", &format!("jobs/{id}/attempts/{attempt}.json")).await?;
        Ok(serde_json::from_slice(&marker)?)
    }

    /// How many objects the job has under `attempts/`.
    pub(super) async fn attempts(&self, id: &str) -> Result<usize> {
        Ok(self.s3.list("results", &format!("jobs/{id}/attempts/")).await?.len())
    }
}

/// A picture that takes so long, from nothing.
pub(super) fn slow_job(id: &str, seconds: f64) -> Value {
    json!({"version": 1, "id": id, "workflow": {
        "1": {"class_type": "EmptyImage",
              "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 255}},
        "2": {"class_type": "StandinSleep", "inputs": {"seconds": seconds, "image": ["1", 0], "seed": 1}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "slow"}},
    }})
}

/// A staged picture, inverted after so long.
pub(super) fn staged_job(id: &str, seconds: f64) -> Value {
    let mut job = slow_job(id, seconds);
    job["workflow"]["1"] = json!({"class_type": "LoadImage", "inputs": {"image": "none.png"}});
    job["inputs"] = json!({"1.image": "s3://inputs/cat.png"});
    job
}

pub(super) fn ui_job(id: &str) -> Result<Value> {
    let workflow = testbed::checkout().join("tests/fixtures/workflows/invert-ui.json");
    let workflow: Value = serde_json::from_slice(&std::fs::read(workflow)?)?;
    Ok(json!({"version": 1, "id": id, "workflow": workflow, "inputs": {"1.image": "s3://inputs/cat.png"}}))
}
