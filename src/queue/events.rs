//! Events of a job: transient, bounded, dropped rather than waited for.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use lapin::{
    BasicProperties, Channel,
    options::BasicPublishOptions,
    types::{AMQPValue, FieldTable, ShortString},
};
use serde_json::Value;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    connection::{ANSWER_LIMIT, BrokerConnection},
    error::{BrokerError, PublishError, within},
    message::{TRANSIENT, count, short, text},
    session::{Role, Session},
};

/// Events waiting for the broker; more are dropped.
pub(super) const EVENTS_HELD: usize = 256;
/// No new channel sooner after one that the broker closed (the exchange may be missing).
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Something that happened to a job.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A JSON body, sent as it is.
    Json {
        /// The job.
        job_id: String,
        /// One of the contract's names, such as `progress`.
        name: &'static str,
        /// `{version, id, event, seq, at, attempt, worker, …}`.
        body: Value,
    },
    /// A picture of what is being made.
    Preview(PreviewEvent),
}

/// A preview: the raw image as the body, the rest as headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PreviewEvent {
    /// The job (header `job`).
    pub job_id: String,
    /// The image.
    pub image: Bytes,
    /// Its type, such as `image/jpeg`.
    pub content_type: String,
    /// Its place among the job's events (header `seq`).
    pub seq: u64,
    /// When, as in the JSON events (header `at`).
    pub at: String,
    /// Which attempt at the job (header `attempt`).
    pub attempt: u64,
    /// The worker's id (header `worker`).
    pub worker: String,
    /// The node that made it (header `node`).
    pub node: String,
}

/// Sends events without ever waiting.
#[derive(Clone, Debug)]
pub struct EventSender {
    queue: mpsc::Sender<Event>,
    dropped: Arc<AtomicU64>,
    flushed: CancellationToken,
}

impl EventSender {
    /// Sends `event`, or drops it: when too many wait, and when there is no connection.
    pub fn send(&self, event: Event) {
        if self.queue.try_send(event).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many events of all senders were dropped so far.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Ends when nothing sent waits any more and nothing can be sent.
    pub(super) async fn flushed(&self) {
        self.flushed.cancelled().await;
    }
}

/// The sender and the task that publishes what it sends, until `flush`: then what waits is still
/// published.
pub(super) fn start(session: &Arc<Session>, flush: CancellationToken) -> EventSender {
    let (queue, events) = mpsc::channel(EVENTS_HELD);
    let dropped = Arc::new(AtomicU64::new(0));
    let flushed = CancellationToken::new();
    let publisher = EventPublisher {
        session: Arc::clone(session),
        dropped: Arc::clone(&dropped),
        channel: None,
        not_before: None,
    };
    let guard = flushed.clone().drop_guard();
    session.tasks.spawn(async move {
        publisher.run(events, flush).await;
        drop(guard);
    });
    EventSender { queue, dropped, flushed }
}

struct EventPublisher {
    session: Arc<Session>,
    dropped: Arc<AtomicU64>,
    channel: Option<(u64, Channel)>,
    not_before: Option<Instant>,
}

impl EventPublisher {
    async fn run(mut self, mut events: mpsc::Receiver<Event>, flush: CancellationToken) {
        loop {
            let event = tokio::select! {
                biased;
                event = events.recv() => event,
                () = flush.cancelled(), if !events.is_closed() => {
                    events.close();
                    continue;
                }
            };
            let Some(event) = event else { break };
            if !self.publish(event).await {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        let blocked = self.publishing().is_none();
        if let Some((_, channel)) = self.channel.take().filter(|_| !blocked) {
            // Answered behind every publish: then the broker has them all.
            let _ = timeout(ANSWER_LIMIT, channel.close(200, "OK".into())).await;
        }
    }

    async fn publish(&mut self, event: Event) -> bool {
        let Some(link) = self.publishing() else { return false };
        let Ok(parcel) = Parcel::pack(event) else { return false };
        let Ok(exchange) = short(&self.session.config.events_exchange) else { return false };
        let channel = match self.channel(&link).await {
            Ok(Some(channel)) => channel,
            Ok(None) => return false,
            Err(error) => {
                tracing::debug!(%error, "cannot open a channel for events");
                return false;
            }
        };
        // It returns when the frames are written, so a slow broker fills our bounded queue and no
        // unbounded one inside lapin.
        let publish = channel.basic_publish(
            exchange,
            parcel.routing_key,
            BasicPublishOptions::default(),
            &parcel.body,
            parcel.properties,
        );
        let sent = within(ANSWER_LIMIT, "an event", publish).await;
        if let Err(error) = &sent {
            tracing::debug!(%error, "an event was dropped");
            self.channel = None;
        }
        sent.is_ok()
    }

    /// The connection, unless it is blocked: that one would take an event only when it is history.
    fn publishing(&self) -> Option<Arc<BrokerConnection>> {
        self.session.current_link(Role::Publish).filter(|link| !link.connection.status().blocked())
    }

    async fn channel(&mut self, link: &BrokerConnection) -> Result<Option<Channel>, BrokerError> {
        if let Some((epoch, channel)) = &self.channel {
            if *epoch == link.epoch && channel.status().connected() {
                return Ok(Some(channel.clone()));
            }
            self.channel = None;
        }
        if self.not_before.is_some_and(|instant| Instant::now() < instant) {
            return Ok(None);
        }
        self.not_before = Some(Instant::now() + AGAIN_AFTER);
        let channel = link.channel().await?;
        self.channel = Some((link.epoch, channel.clone()));
        Ok(Some(channel))
    }
}

/// An event as AMQP sees it.
struct Parcel {
    routing_key: ShortString,
    properties: BasicProperties,
    body: Bytes,
}

impl Parcel {
    fn pack(event: Event) -> Result<Self, PublishError> {
        let properties = BasicProperties::default().with_delivery_mode(TRANSIENT);
        match event {
            Event::Json { job_id, name, body } => Ok(Self {
                routing_key: short(&format!("job.{job_id}.{name}"))?,
                properties: properties.with_content_type("application/json".into()),
                body: body.to_string().into(),
            }),
            Event::Preview(preview) => Ok(Self {
                routing_key: short(&format!("job.{}.preview", preview.job_id))?,
                properties: properties
                    .with_content_type(short(&preview.content_type)?)
                    .with_headers(preview.headers()),
                body: preview.image,
            }),
        }
    }
}

impl PreviewEvent {
    fn headers(&self) -> FieldTable {
        let number = |number: u64| AMQPValue::LongLongInt(i64::try_from(number).unwrap_or(i64::MAX));
        let text = |text: &str| AMQPValue::LongString(text.into());
        let mut headers = FieldTable::default();
        headers.insert("job".into(), text(&self.job_id));
        headers.insert("seq".into(), number(self.seq));
        headers.insert("at".into(), text(&self.at));
        headers.insert("attempt".into(), number(self.attempt));
        headers.insert("worker".into(), text(&self.worker));
        headers.insert("node".into(), text(&self.node));
        headers
    }

    /// The reverse: what is missing stays empty.
    pub(super) fn read(image: Bytes, properties: &BasicProperties) -> Self {
        let empty = FieldTable::default();
        let headers = properties.headers().as_ref().unwrap_or(&empty);
        let text = |name| text(headers, name).unwrap_or_default();
        let number = |name| count(headers, name).unwrap_or_default();
        Self {
            job_id: text("job"),
            image,
            content_type: properties.content_type().as_ref().map(ToString::to_string).unwrap_or_default(),
            seq: number("seq"),
            at: text("at"),
            attempt: number("attempt"),
            worker: text("worker"),
            node: text("node"),
        }
    }
}
