//! A broker with TLS under an authority of its own, and its management API.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use comfy_worker::{
    config::AmqpConfig,
    queue::{Broker, Settled, Settlement, consumer_timeout_warning},
};
use testbed::{Extras, RabbitMq, wait_for};
use tokio::{sync::OnceCell, time::Instant};

use super::{SOON, config, misconfigured, next, outages::NOTICED, submit};

async fn offered() -> Result<&'static (RabbitMq, Extras)> {
    static OFFERED: OnceCell<(RabbitMq, Extras)> = OnceCell::const_new();
    let start =
        || async { RabbitMq::start_with_extras(&testbed::folder_of_process("rabbitmq-extras")?).await };
    OFFERED.get_or_try_init(start).await
}

#[tokio::test]
async fn a_broker_is_trusted_by_the_authority_in_the_configuration() -> Result<()> {
    let (_, extras) = offered().await?;
    let trusting =
        |file: Option<&PathBuf>| AmqpConfig { ca_file: file.cloned(), ..config(extras.tls_url(), "tls") };
    let broker = Broker::connect(&trusting(Some(&extras.authority)), "w").await?;
    submit(&broker, "secured").await?;
    let delivery = next(&mut broker.consume(1)).await?;
    assert_eq!(delivery.message.body, "secured");
    delivery.settle(Settlement::Ack).await;
    broker.close().await;

    let text = misconfigured(Broker::connect(&trusting(None), "w").await)?;
    assert!(text.contains("UnknownIssuer") && text.contains("in amqp.ca_file"), "{text}");
    let text = misconfigured(Broker::connect(&trusting(Some(&extras.stranger)), "w").await)?;
    assert!(
        text.contains("UnknownIssuer") && text.contains("stranger.pem) must hold the authority"),
        "{text}"
    );
    // The certificate is that of `localhost`.
    let mut elsewhere = trusting(Some(&extras.authority));
    elsewhere.url = extras.tls_url().replace("localhost", "127.0.0.1").into();
    let text = misconfigured(Broker::connect(&elsewhere, "w").await)?;
    assert!(text.contains("certificate") && text.contains("host name"), "{text}");

    // Renewed certificates are read at the next connection; a file that is gone is told.
    let gone = trusting(Some(&"/no/such.pem".into()));
    let text = misconfigured(Broker::connect(&gone, "w").await)?;
    assert!(text.contains("amqp.ca_file: cannot read /no/such.pem"), "{text}");
    Ok(())
}

#[tokio::test]
async fn a_consumer_timeout_that_cannot_be_read_is_said_to_be_so() -> Result<()> {
    let (rabbitmq, extras) = offered().await?;
    let mut config = config(rabbitmq.url(), "timeout");
    let hour = Duration::from_secs(3600);
    let warned = async |config: &AmqpConfig| {
        let text = consumer_timeout_warning(config, hour).await.context("no warning")?;
        eprintln!("{text}");
        anyhow::Ok(text)
    };
    assert!(warned(&config).await?.contains("set amqp.management_url"));

    Broker::connect(&config, "w").await?.close().await;
    config.management_url = Some(extras.management_url().into());
    let version = rabbitmq.ctl(&["version"]).await?;
    let by_queue = !["3.8.", "3.9.", "3.10.", "3.11."].iter().any(|old| version.starts_with(old));
    let why = if by_queue { "neither the queue nor a policy" } else { version.as_str() };
    let text = warned(&config).await?;
    assert!(text.contains(why) && text.contains("job.timeout is 1h"), "{text}");
    assert_eq!(consumer_timeout_warning(&config, Duration::from_secs(60)).await, None);

    // Whatever the API says, its address and password stay where they are.
    let url = extras.management_url();
    for (url, expected) in [
        (url.replace(":guest@", ":hunter2@"), "401"),
        (format!("http://u:hunter2@127.0.0.1:{}", testbed::free_port()?), "refused"),
    ] {
        config.management_url = Some(url.into());
        let text = warned(&config).await?;
        assert!(
            text.contains(expected) && !text.contains("hunter2") && !text.contains("127.0.0.1"),
            "{text}"
        );
    }
    Ok(())
}

/// The broker takes a job back that is held too long: the channel ends, the connection does not.
#[tokio::test]
async fn a_closed_channel_is_noticed_and_what_it_held_is_stale() -> Result<()> {
    let (rabbitmq, _) = offered().await?;
    let config = config(rabbitmq.url(), "closed");
    let set = |name: &str, millis: u32| {
        let eval = format!("application:set_env(rabbit, {name}, {millis}).");
        async move { rabbitmq.ctl(&["eval", &eval]).await }
    };
    set("channel_tick_interval", 200).await?;
    set("consumer_timeout", 1500).await?;
    let broker = Broker::connect(&config, "w").await?;
    let mut consumer = broker.consume(1);
    submit(&broker, "held too long").await?;
    let held = next(&mut consumer).await?;
    // A channel keeps what it began with; the next one, and those of other tests, get more time.
    set("consumer_timeout", 600_000).await?;
    wait_for("the channel's end", SOON, || async { held.is_stale() }).await?;
    let start = Instant::now();
    let again = next(&mut consumer).await?;
    assert!(start.elapsed() < NOTICED, "delivered again after {:?}", start.elapsed());
    assert_eq!((again.epoch(), again.message.redelivered), (held.epoch(), true));
    // Not acked by the stale one: it would be gone.
    assert_eq!(held.settle(Settlement::Ack).await, Settled::Stale);
    assert_eq!(again.settle(Settlement::Ack).await, Settled::Done);
    broker.close().await;
    Ok(())
}
