//! Takes jobs from the queue, and subscribes again whenever that ends.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use lapin::{
    Channel,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions},
};
use tokio::{
    sync::mpsc::{self, error::SendError},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    connection::{ANSWER_LIMIT, BrokerConnection},
    delivery::{Delivery, Settlement},
    error::{BrokerError, within},
    message::short,
    session::{Role, Session, pauses},
    topology,
};

/// Longest [`Consumer::stop`]: a cancel and a hand-back, each limited by itself.
const STOP_LIMIT: Duration = Duration::from_secs(12);

/// A subscription to the queue of jobs.
///
/// It survives a cancel by the broker, a closed channel and a lost connection. Several may be open
/// at once, so a second one that lives for a moment takes one job ahead. Dropping it stops it as
/// well, but nobody waits for the hand-back then.
pub struct Consumer {
    deliveries: mpsc::Receiver<Delivery>,
    stop: CancellationToken,
    pump: JoinHandle<()>,
    _stops_on_drop: DropGuard,
}

impl Consumer {
    pub(super) fn start(session: &Arc<Session>, source: Source, prefetch: u16) -> Self {
        let (sender, deliveries) = mpsc::channel(usize::from(prefetch.max(1)));
        let stop = session.stop.child_token();
        let pump = Pump {
            session: Arc::clone(session),
            source,
            prefetch: prefetch.max(1),
            out: sender,
            stop: stop.clone(),
        };
        let pump = session.tasks.spawn(pump.run());
        Self { deliveries, pump, _stops_on_drop: stop.clone().drop_guard(), stop }
    }

    /// The next job; `None` once the broker handle is closed. Cancel safe.
    ///
    /// The broker counts a job as ours from the moment it is sent, up to `prefetch` of them, also
    /// before this returns it: stop a consumer that nobody asks.
    pub async fn next(&mut self) -> Option<Delivery> {
        loop {
            let delivery = self.deliveries.recv().await?;
            if !delivery.is_stale() {
                return Some(delivery);
            }
        }
    }

    /// Cancels the subscription and hands back what was prefetched. Jobs in hand stay settleable; none
    /// comes any more.
    pub async fn stop(&mut self) {
        self.stop.cancel();
        let stopping = async {
            self.deliveries.close();
            while let Some(delivery) = self.deliveries.recv().await {
                delivery.settle(Settlement::HandBack).await;
            }
            let _ = (&mut self.pump).await;
        };
        if timeout(STOP_LIMIT, stopping).await.is_err() {
            tracing::warn!("the broker did not confirm the end of the subscription in time");
        }
    }
}

/// Where deliveries come from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Jobs,
    /// What the broker moved to the dead letters.
    Notices,
}

struct Pump {
    session: Arc<Session>,
    source: Source,
    prefetch: u16,
    out: mpsc::Sender<Delivery>,
    stop: CancellationToken,
}

/// A subscription as the broker knows it.
struct Subscription {
    link: Arc<BrokerConnection>,
    channel: Channel,
    stream: lapin::Consumer,
}

enum Ended {
    Stopped,
    Broken(String),
}

impl Pump {
    async fn run(self) {
        self.stay_subscribed().await;
        self.set_unsubscribed(None);
    }

    /// A worker that gets no notices takes jobs all the same.
    fn set_unsubscribed(&self, why: Option<String>) {
        if self.source == Source::Jobs {
            self.session.set_unsubscribed(why);
        }
    }

    async fn stay_subscribed(&self) {
        let mut waits = pauses();
        let mut last_epoch = 0;
        loop {
            let link = tokio::select! {
                () = self.stop.cancelled() => return,
                link = self.session.link(Role::Consume) => link,
            };
            let Some(link) = link else { return };
            // A subscription that ended while its connection lives: the queue may be gone.
            let check_first = link.epoch == last_epoch;
            last_epoch = link.epoch;
            // Cut off by a stop, the channel closes, and the broker takes back what it had sent.
            let subscribed = tokio::select! {
                () = self.stop.cancelled() => return,
                subscribed = self.subscribe(link, check_first) => subscribed,
            };
            match subscribed {
                Ok(subscription) => {
                    self.set_unsubscribed(None);
                    waits = pauses();
                    match self.forward(subscription).await {
                        Ended::Stopped => return,
                        Ended::Broken(reason) => tracing::warn!(reason, "the subscription ended"),
                    }
                }
                Err(reason) => {
                    tracing::warn!(reason, "cannot subscribe to the queue yet");
                    self.set_unsubscribed(Some(reason));
                }
            }
            let pause = waits.next().unwrap_or(Duration::from_secs(5));
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = sleep(pause) => {}
            }
        }
    }

    async fn subscribe(
        &self,
        link: Arc<BrokerConnection>,
        check_first: bool,
    ) -> Result<Subscription, String> {
        let config = &self.session.config;
        if check_first {
            topology::ensure(&link, config).await.map_err(|error| error.to_string())?;
        }
        let name = match self.source {
            Source::Jobs => config.queue.clone(),
            Source::Notices => topology::notices_queue(&config.queue),
        };
        let queue = short(&name).map_err(|error| error.to_string())?;
        let tag = short(&self.session.name).map_err(|error| error.to_string())?;
        let subscribing = async {
            let channel = link.channel().await?;
            // Quorum queues know no global prefetch: it holds for this consumer.
            let qos = channel.basic_qos(self.prefetch, BasicQosOptions::default());
            within(ANSWER_LIMIT, "basic.qos", qos).await?;
            let options = BasicConsumeOptions::default();
            let consume = channel.basic_consume(queue, tag, options, topology::consumer_arguments());
            let stream = within(ANSWER_LIMIT, "basic.consume", consume).await?;
            Ok::<_, BrokerError>((channel, stream))
        };
        let (channel, stream) = subscribing.await.map_err(|error| format!("{name}: {error}"))?;
        Ok(Subscription { link, channel, stream })
    }

    async fn forward(&self, mut subscription: Subscription) -> Ended {
        loop {
            let event = tokio::select! {
                () = self.stop.cancelled() => {
                    subscription.cancel(&self.session.config.queue).await;
                    return Ended::Stopped;
                }
                event = subscription.stream.next() => event,
            };
            let delivered = match event {
                Some(Ok(delivered)) => delivered,
                Some(Err(error)) => return Ended::Broken(explain(&error)),
                None => return subscription.cancelled().await,
            };
            let delivery = subscription.delivery(delivered, &self.session.config.queue);
            let refused = tokio::select! {
                // First, so that a job that can be handed out is.
                biased;
                sent = self.out.reserve() => match sent {
                    Ok(permit) => {
                        permit.send(delivery);
                        continue;
                    }
                    Err(SendError(())) => delivery,
                },
                () = self.stop.cancelled() => delivery,
            };
            refused.settle(Settlement::HandBack).await;
        }
    }
}

impl Subscription {
    fn delivery(&self, delivered: lapin::message::Delivery, queue: &str) -> Delivery {
        Delivery::new(delivered, self.channel.clone(), Arc::clone(&self.link), queue)
    }

    /// A live channel's stream ends when the broker cancels it: the queue was deleted, or (from RabbitMQ
    /// 4.3 on) a job was held longer than the consumer timeout and is taken back. What it brought must be
    /// known to be stale then: an ack would be passed over in silence.
    async fn cancelled(self) -> Ended {
        let close = self.channel.close(200, "OK".into());
        if let Err(error) = within(ANSWER_LIMIT, "channel.close", close).await {
            tracing::debug!(%error, "the channel of a cancelled subscription had ended");
        }
        Ended::Broken("cancelled by the broker: the queue is gone, or a job was held too long".into())
    }

    /// Ends the subscription and hands back what came meanwhile. The channel stays open for the
    /// jobs in hand.
    async fn cancel(mut self, queue: &str) {
        let cancel = self.channel.basic_cancel(self.stream.tag(), BasicCancelOptions::default());
        if let Err(error) = within(ANSWER_LIMIT, "basic.cancel", cancel).await {
            if let BrokerError::Silent(..) = error {
                self.link.fail("the broker does not answer a cancel");
            }
            return;
        }
        // The stream ends behind everything that was sent before the cancel took effect.
        let drain = async {
            while let Some(Ok(delivered)) = self.stream.next().await {
                self.delivery(delivered, queue).settle(Settlement::HandBack).await;
            }
        };
        if timeout(ANSWER_LIMIT, drain).await.is_err() {
            self.link.fail("jobs that were sent ahead could not be handed back");
        }
    }
}

/// Adds what to change to the one channel error that a setting causes.
fn explain(error: &lapin::Error) -> String {
    let text = error.to_string();
    if text.contains("delivery acknowledgement on channel") && text.contains("timed out") {
        return format!(
            "{text}: the broker's consumer_timeout is shorter than a job: raise it above job.timeout"
        );
    }
    text
}
