//! What the workers of one run share, and the publisher's side of it.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use futures_util::StreamExt as _;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions,
        QueueDeclareOptions,
    },
    types::FieldTable,
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use testbed::{Front, Gate, RabbitMq, S3Server, landscape, wait_for};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{
    JOB, SOON,
    journal::{Expected, Journal, Record},
};

/// Between two looks at a broker that is away.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);
/// A broker that confirms nothing for so long is asked again. One with an alarm does so when that is over: each try
/// before would be one more copy.
const CONFIRM_LIMIT: Duration = Duration::from_secs(200);
/// For a broker that is away or blocked for minutes.
const PUBLISH_LIMIT: Duration = Duration::from_secs(600);

/// Broker, store and its front, publisher and collector of one run; its end removes the files.
pub(super) struct Bed {
    pub(super) journal: Arc<Journal>,
    pub(super) broker: RabbitMq,
    pub(super) front: Front,
    /// Before that: what only TCP can do to all workers' connections to the store.
    pub(super) store_gate: Gate,
    pub(super) s3: S3Server,
    pub(super) name: &'static str,
    /// Where journal and logs lie after the run.
    pub(super) kept: PathBuf,
    collector: OnceLock<JoinHandle<()>>,
    /// Short, since sockets of Chromium's lie in it.
    pub(super) folder: TempDir,
}

/// The events that a judge needs.
pub(super) const ACCEPTED: &[&str] = &["accepted"];

impl Bed {
    pub(super) async fn new(name: &'static str) -> Result<Self> {
        Self::within(tempfile::tempdir()?, name).await
    }

    pub(super) async fn within(folder: TempDir, name: &'static str) -> Result<Self> {
        let s3 = S3Server::start(&folder.path().join("s3")).await?;
        s3.create_bucket("inputs")?;
        s3.create_bucket("results")?;
        s3.put("inputs", "cat.png", landscape()).await?;
        let broker = RabbitMq::start(&folder.path().join("rabbitmq")).await?;
        let kept = testbed::scratch_root()?;
        fs::create_dir_all(&kept)?;
        let file = kept.join(format!("{name}-journal.jsonl"));
        println!("journal: {}", file.display());
        let journal = Arc::new(Journal::create(&file)?);
        let front = Front::start(s3.address()).await?;
        let store_gate = Gate::start(front.address()).await?;
        Ok(Self { journal, broker, front, store_gate, s3, name, kept, collector: OnceLock::new(), folder })
    }

    pub(super) fn queue(&self) -> String {
        format!("{}.jobs", self.name)
    }

    fn replies(&self) -> String {
        format!("{}.replies", self.name)
    }

    pub(super) fn events(&self) -> String {
        format!("{}.events", self.name)
    }

    pub(super) fn control(&self) -> String {
        format!("{}.control", self.name)
    }

    pub(super) fn broker_address(&self) -> Result<SocketAddr> {
        let url = url::Url::parse(&self.broker.url())?;
        Ok(SocketAddr::from(([127, 0, 0, 1], url.port().context("the broker's port")?)))
    }

    /// From now on answers, these events and dead letters are noted. A worker must have declared its queues.
    pub(super) async fn collect(&self, kinds: &'static [&'static str]) -> Result<()> {
        let queues = Queues {
            url: self.broker.url(),
            replies: self.replies(),
            events: self.events(),
            kinds,
            dead: format!("{}.dead", self.queue()),
        };
        let mut first = queues.subscribe().await?;
        let journal = Arc::clone(&self.journal);
        let collector = tokio::spawn(async move {
            loop {
                let ended = first.note_all(&journal).await;
                drop(ended);
                first = loop {
                    match timeout(SOON, queues.subscribe()).await {
                        Ok(Ok(next)) => break next,
                        _ => sleep(RECONNECT_PAUSE).await,
                    }
                };
            }
        });
        self.collector.set(collector).map_err(|_| anyhow!("collected already"))
    }

    /// Publishes until the broker confirms it: after a lost confirm the message may be there twice.
    pub(super) async fn publish(&self, id: &str, body: &[u8], expected: &Expected) -> Result<()> {
        let confirmed = || async {
            // On a connection of its own: what a fault did to the last one is of no interest.
            let publish = async { self.publish_once(&self.line().await?, id, body, expected).await };
            timeout(CONFIRM_LIMIT, publish).await.is_ok_and(|done| done.is_ok())
        };
        wait_for("the broker to take a job", PUBLISH_LIMIT, confirmed).await?;
        self.note_published(id, expected);
        Ok(())
    }

    /// Publishes once: for a broker that stays up.
    pub(super) async fn publish_on(
        &self,
        line: &Line,
        id: &str,
        body: &[u8],
        expected: &Expected,
    ) -> Result<()> {
        timeout(CONFIRM_LIMIT, self.publish_once(line, id, body, expected)).await.context("no confirm")??;
        self.note_published(id, expected);
        Ok(())
    }

    fn note_published(&self, id: &str, expected: &Expected) {
        let (at, expected) = (self.journal.now(), expected.clone());
        self.journal.note(Record::Published { at, id: id.to_owned(), expected });
    }

    async fn publish_once(&self, line: &Line, id: &str, body: &[u8], expected: &Expected) -> Result<()> {
        let mut properties = BasicProperties::default().with_delivery_mode(2).with_message_id(id.into());
        if *expected != Expected::DeadLetter {
            properties = properties.with_reply_to(self.replies().into());
        }
        line.send("", &self.queue(), body, properties).await.context("a job")
    }

    /// A connection of the publisher's.
    pub(super) async fn line(&self) -> Result<Line> {
        let connection = Connection::connect(&self.broker.url(), ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Line { channel, _connection: connection })
    }

    /// Sends all workers an order.
    pub(super) async fn order(&self, line: &Line, order: &Value) -> Result<()> {
        let (exchange, body) = (self.control(), serde_json::to_vec(order)?);
        let sent = line.send(&exchange, "", &body, BasicProperties::default());
        sent.await.with_context(|| format!("{order}"))
    }

    /// How many jobs wait in the queue.
    pub(super) async fn waiting(&self, line: &Line) -> Result<u32> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = self.queue();
        let queue = line.channel.queue_declare(queue.as_str().into(), options, FieldTable::default()).await?;
        Ok(queue.message_count())
    }

    /// Waits until that job has been answered so often.
    pub(super) async fn wait_answers(&self, id: &str, count: usize) -> Result<()> {
        let came = || async { self.journal.answers(id) >= count };
        wait_for(&format!("{count} answers to {id}"), JOB, came).await
    }

    /// Messages, unacked ones too, and consumers of each queue that is not as it should be.
    pub(super) async fn full_queues(&self, consumers: usize) -> Result<Vec<String>> {
        let listed = self.broker.ctl(&["list_queues", "--no-table-headers", "name", "messages", "consumers"]);
        let listed = listed.await?;
        let full = |line: &str| {
            let fields: Vec<&str> = line.split('\t').collect();
            let own = fields.first() == Some(&self.queue().as_str());
            fields.get(1) != Some(&"0") || own && fields.get(2) != Some(&consumers.to_string().as_str())
        };
        Ok(listed.lines().filter(|line| full(line)).map(str::to_owned).collect())
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some(collector) = self.collector.get() {
            collector.abort();
        }
    }
}

/// A channel with confirms.
pub(super) struct Line {
    channel: Channel,
    _connection: Connection,
}

impl Line {
    async fn send(&self, exchange: &str, key: &str, body: &[u8], properties: BasicProperties) -> Result<()> {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let sent = self.channel.basic_publish(exchange.into(), key.into(), options, body, properties);
        ensure!(matches!(sent.await?.await?, Confirmation::Ack(None)), "it is in no queue");
        Ok(())
    }
}

struct Queues {
    url: String,
    replies: String,
    events: String,
    /// Of events.
    kinds: &'static [&'static str],
    dead: String,
}

/// What comes to the publisher, as long as one connection lasts.
struct Subscribed {
    replies: Consumer,
    events: Consumer,
    dead: Consumer,
    _connection: Connection,
}

impl Queues {
    async fn subscribe(&self) -> Result<Subscribed> {
        let connection = Connection::connect(&self.url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(self.replies.as_str().into(), durable, FieldTable::default()).await?;
        let own =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let listening = channel.queue_declare("".into(), own, FieldTable::default()).await?;
        let (name, exchange) = (listening.name().clone(), self.events.as_str());
        for kind in self.kinds {
            let (key, options) = (format!("job.*.{kind}"), QueueBindOptions::default());
            let bound =
                channel.queue_bind(name.clone(), exchange.into(), key.into(), options, FieldTable::default());
            bound.await?;
        }
        Ok(Subscribed {
            replies: consume(&channel, &self.replies).await?,
            events: consume(&channel, name.as_str()).await?,
            dead: consume(&channel, &self.dead).await?,
            _connection: connection,
        })
    }
}

async fn consume(channel: &Channel, queue: &str) -> Result<Consumer> {
    let options = BasicConsumeOptions::default();
    Ok(channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?)
}

impl Subscribed {
    /// Notes what comes; acked once it is noted: a broker that dies must not take it along.
    async fn note_all(&mut self, journal: &Journal) -> Result<()> {
        loop {
            let (from, delivery) = tokio::select! {
                next = self.replies.next() => ("reply", next),
                next = self.events.next() => ("event", next),
                next = self.dead.next() => ("dead", next),
            };
            let delivery = delivery.context("the subscription ended")??;
            let id = delivery.properties.message_id().as_ref().map(ToString::to_string).unwrap_or_default();
            let at = journal.now();
            match from {
                "reply" => journal.note(Record::Answered { at, id, sha256: sha256(&delivery.data) }),
                "dead" => journal.note(Record::DeadLettered { at, id }),
                _ => {
                    let event: Value = serde_json::from_slice(&delivery.data)?;
                    let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
                    let (id, worker) = (text("id"), text("worker"));
                    journal.note(match event["event"].as_str() {
                        Some("started") => Record::Started { at, id, worker },
                        _ => Record::Accepted { at, id, worker },
                    });
                }
            }
            delivery.ack(BasicAckOptions::default()).await?;
        }
    }
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How often each job stands in the stand-in's ledger: jobs bear `@their id@` somewhere in their prompt.
pub(super) fn count_executions(ledger: &str) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for id in ledger.lines().filter_map(|prompt| prompt.split('@').nth(1)) {
        *counts.entry(id).or_default() += 1;
    }
    counts
}
