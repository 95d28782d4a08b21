//! The queue module against a real, private RabbitMQ.

mod alarms;
mod dead;
mod extras;
mod jobs;
mod later;
mod observer;
mod outages;
mod results;
mod setup;

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use comfy_worker::{
    config::{AmqpConfig, Lookahead},
    queue::{Broker, Consumer, Delivery, JobProperties, QueueError},
};
use testbed::RabbitMq;
use tokio::time::{Instant, timeout};

/// For what takes milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(20);

/// A configuration of the test's own: nothing but `comfy.dead` is shared.
fn config(url: String, name: &str) -> AmqpConfig {
    AmqpConfig {
        url: url.into(),
        ca_file: None,
        management_url: None,
        queue: format!("{name}.jobs"),
        declare: true,
        delivery_limit: 20,
        lookahead: Lookahead::Auto,
        results_exchange: None,
        events_exchange: format!("{name}.events"),
        control_exchange: format!("{name}.control"),
        reply_to_allow: vec!["*".into()],
    }
}

async fn shared(name: &str) -> Result<AmqpConfig> {
    Ok(config(RabbitMq::shared().await?.url(), name))
}

fn in_a_while() -> Instant {
    Instant::now() + SOON
}

async fn submit(broker: &Broker, body: &'static str) -> Result<()> {
    let properties = JobProperties::default();
    Ok(broker.submit(Bytes::from_static(body.as_bytes()), &properties, in_a_while()).await?)
}

async fn next(consumer: &mut Consumer) -> Result<Delivery> {
    timeout(SOON, consumer.next()).await.context("no job came")?.context("the consumer ended")
}

/// What a refused connection says is to be changed.
fn misconfigured<T>(outcome: Result<T, QueueError>) -> Result<String> {
    match outcome {
        Err(QueueError::Misconfigured(text)) => {
            eprintln!("{text}");
            Ok(text)
        }
        Err(other) => bail!("not a misconfiguration: {other:?}"),
        Ok(_) => bail!("no error"),
    }
}
