//! A broker with TLS under an authority of its own, and its management API.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use comfy_worker::{
    config::AmqpConfig,
    queue::{Broker, ConsumerTimeout, Settled, Settlement},
};
use testbed::{Extras, RabbitMq, wait_for, wait_for_value};
use tokio::{
    sync::OnceCell,
    time::{Instant, timeout},
};

use super::{SOON, config, misconfigured, next, observer::Observer, outages::NOTICED, submit};

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

/// Whether this broker goes by the consumer timeout of a queue or its policy: it takes no such policy
/// otherwise.
async fn knows_timeouts_by_queue(rabbitmq: &RabbitMq) -> Result<bool> {
    let policy = ["set_policy", "known", "^nothing$", "{\"consumer-timeout\": 60000}"];
    let known = rabbitmq.ctl(&policy).await.is_ok();
    let version = rabbitmq.ctl(&["version"]).await?;
    let old = ["3.8.", "3.9.", "3.10.", "3.11."].iter().any(|old| version.starts_with(old));
    ensure!(known != old, "RabbitMQ {version}: {known}");
    Ok(known)
}

/// Whether it refuses to declare a queue again with another consumer timeout.
async fn compares_arguments(rabbitmq: &RabbitMq) -> Result<bool> {
    let version = rabbitmq.ctl(&["version"]).await?;
    Ok(!["3.", "4.0.", "4.1.", "4.2."].iter().any(|old| version.starts_with(old)))
}

async fn timeout_of(config: &AmqpConfig, job_timeout: Duration) -> Result<ConsumerTimeout> {
    let broker = Broker::connect(config, "w").await?;
    let found = broker.compatibility(job_timeout).await.consumer_timeout;
    broker.close().await;
    eprintln!("{found:?}");
    Ok(found)
}

/// The API shows a change only after a while.
async fn comes_to(config: &AmqpConfig, expected: impl Fn(&ConsumerTimeout) -> bool) -> Result<()> {
    let broker = Broker::connect(config, "w").await?;
    let seen = async || expected(&broker.compatibility(HOUR).await.consumer_timeout);
    let outcome = wait_for("what the API shows", SOON, seen).await;
    let found = broker.compatibility(HOUR).await;
    broker.close().await;
    outcome.with_context(|| format!("{found:?}"))
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn the_consumer_timeout_fits_by_default_or_what_is_known_of_it_is_said() -> Result<()> {
    let (rabbitmq, extras) = offered().await?;
    let config = config(rabbitmq.url(), "timeout");
    let asking = AmqpConfig { management_url: Some(extras.management_url().into()), ..config.clone() };
    let by_queue = knows_timeouts_by_queue(rabbitmq).await?;
    let unknown = |found: &ConsumerTimeout, why: &str| match found {
        ConsumerTimeout::Unknown(Some(text)) => text.contains(why) && text.contains("job.timeout is 1h"),
        _ => false,
    };
    let compared = compares_arguments(rabbitmq).await?;
    for (config, shown) in [(&config, compared), (&asking, true)] {
        let found = timeout_of(config, HOUR).await?;
        let expected = match (by_queue, shown) {
            (true, true) => found == ConsumerTimeout::Fits,
            (true, false) => found == ConsumerTimeout::Unknown(None),
            (false, _) => unknown(&found, "whole server"),
        };
        ensure!(expected, "{found:?}");
    }
    if !by_queue {
        assert_eq!(timeout_of(&config, Duration::from_secs(60)).await?, ConsumerTimeout::Unknown(None));
        return Ok(());
    }
    let policy = |millis: u64| format!("{{\"consumer-timeout\": {millis}}}");
    rabbitmq.ctl(&["set_policy", "timeout", "^timeout\\.jobs$", &policy(1_800_000)]).await?;
    comes_to(&asking, |found| {
        matches!(found, ConsumerTimeout::TooShort(text) if text.contains("after 30m (a policy") && text.contains("set_policy"))
    })
    .await?;

    // A queue from before is taken as it is, and how to set it is said.
    let observer = Observer::connect(&config).await?;
    let older = config_of_older(&observer, rabbitmq.url(), None).await?;
    let found = timeout_of(&older, HOUR).await?;
    if compared {
        ensure!(unknown(&found, "earlier version"), "{found:?}");
        ensure!(unknown(&found, "'^older\\.jobs$' '{\"consumer-timeout\": 86400000}'"), "{found:?}");
    } else {
        assert_eq!(found, ConsumerTimeout::Unknown(None));
    }
    let older = AmqpConfig { management_url: asking.management_url.clone(), ..older };
    comes_to(&older, |found| unknown(found, "neither the queue nor a policy")).await?;
    rabbitmq.ctl(&["set_policy", "older", "^older\\.jobs$", &policy(7_200_000)]).await?;
    comes_to(&older, |found| *found == ConsumerTimeout::Fits).await?;
    // Another difference is refused as ever.
    let text = misconfigured(Broker::connect(&AmqpConfig { delivery_limit: 7, ..older.clone() }, "w").await)?;
    ensure!(text.contains("x-delivery-limit: it has 20, this worker wants 7"), "{text}");
    observer.delete("older.jobs").await?;
    let short = config_of_older(&observer, rabbitmq.url(), Some(60_000)).await?;
    let short = AmqpConfig { management_url: asking.management_url.clone(), ..short };
    comes_to(&short, |found| matches!(found, ConsumerTimeout::TooShort(text) if text.contains("after 1m")))
        .await?;
    let text = misconfigured(Broker::connect(&AmqpConfig { delivery_limit: 7, ..short }, "w").await)?;
    ensure!(text.contains("x-delivery-limit"), "{text}");

    // Whatever the API says, its address and password stay where they are.
    let url = extras.management_url();
    for (url, expected) in [
        (url.replace(":guest@", ":hunter2@"), "401"),
        (format!("http://u:hunter2@127.0.0.1:{}", testbed::free_port()?), "refused"),
    ] {
        let locked = AmqpConfig { management_url: Some(url.into()), declare: false, ..config.clone() };
        let found = timeout_of(&locked, HOUR).await?;
        let text = format!("{found:?}");
        ensure!(
            unknown(&found, expected) && !text.contains("hunter2") && !text.contains("127.0.0.1"),
            "{text}"
        );
    }
    Ok(())
}

/// A queue of jobs as earlier versions declared it, or another program did.
async fn config_of_older(observer: &Observer, url: String, timeout: Option<i64>) -> Result<AmqpConfig> {
    let config = config(url, "older");
    observer.job_queue(&config.queue, timeout).await?;
    Ok(config)
}

#[tokio::test]
async fn a_policy_that_would_slow_returns_down_is_named() -> Result<()> {
    let (rabbitmq, extras) = offered().await?;
    let mut config = config(rabbitmq.url(), "slow");
    config.management_url = Some(extras.management_url().into());
    let broker = Broker::connect(&config, "w").await?;
    assert_eq!(broker.compatibility(HOUR).await.slow_returns, None);
    for (kind, slow) in [("failed", false), ("returned", true), ("all", true)] {
        let policy = format!("{{\"delayed-retry-type\": \"{kind}\", \"delayed-retry-min\": 1000}}");
        // Before 4.3 there is no such policy.
        let taken = rabbitmq.ctl(&["set_policy", "slow", "^slow\\.jobs$", &policy]).await.is_ok();
        let named = async || {
            let found = broker.compatibility(HOUR).await.slow_returns;
            found.is_some_and(|text| text.contains(&format!("\"slow.jobs\" has delayed-retry-type {kind:?}")))
        };
        if taken && slow {
            wait_for("the policy to be seen", SOON, named).await?;
        } else {
            ensure!(!named().await, "{kind}");
        }
    }
    broker.close().await;
    Ok(())
}

/// The broker takes a job back that is held too long, and the connection lives.
#[tokio::test]
async fn a_job_that_is_taken_back_is_noticed_and_what_was_held_is_stale() -> Result<()> {
    let (rabbitmq, _) = offered().await?;
    let config = config(rabbitmq.url(), "closed");
    let by_queue = knows_timeouts_by_queue(rabbitmq).await?;
    let set = |name: &str, millis: u32| {
        let eval = format!("application:set_env(rabbit, {name}, {millis}).");
        async move { rabbitmq.ctl(&["eval", &eval]).await }
    };
    let limit = async |millis: u32| {
        if by_queue {
            let policy = format!("{{\"consumer-timeout\": {millis}}}");
            rabbitmq.ctl(&["set_policy", "closed", "^closed\\.jobs$", &policy]).await
        } else {
            set("consumer_timeout", millis).await
        }
    };
    set("channel_tick_interval", 200).await?;
    let broker = Broker::connect(&config, "w").await?;
    // From 4.3 on a subscription has a timeout of its own.
    let by_consumer = compares_arguments(rabbitmq).await?;
    let ways: &[bool] = if by_consumer { &[true] } else { &[false, true] };
    for taken in ways {
        limit(1500).await?;
        submit(&broker, "held too long").await?;
        let (held, mut consumer) = if *taken {
            let held = wait_for_value("the job", SOON, || broker.take()).await?;
            (held, broker.consume(1))
        } else {
            let mut consumer = broker.consume(1);
            (next(&mut consumer).await?, consumer)
        };
        // Before, a channel keeps what it began with; the next one, and those of other tests, get more time.
        if !by_queue {
            limit(600_000).await?;
        }
        wait_for("its end", 2 * SOON, || async { held.is_stale() }).await?;
        let start = Instant::now();
        let again = next(&mut consumer).await?;
        assert!(start.elapsed() < NOTICED, "delivered again after {:?}", start.elapsed());
        assert_eq!((again.epoch(), again.message.redelivered), (held.epoch(), true));
        // Not acked by the stale one: it would be gone.
        assert_eq!(held.settle(Settlement::Ack).await, Settled::Stale);
        assert_eq!(again.settle(Settlement::Ack).await, Settled::Done);
        consumer.stop().await;
    }
    broker.close().await;
    Ok(())
}

/// What the queue asks for counts where the broker knows it, whatever the server's own value is.
#[tokio::test]
async fn a_job_is_held_longer_than_the_servers_own_timeout() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let rabbitmq = RabbitMq::start(folder.path()).await?;
    let by_queue = knows_timeouts_by_queue(&rabbitmq).await?;
    for (name, millis) in [("channel_tick_interval", 200), ("consumer_timeout", 1000)] {
        rabbitmq.ctl(&["eval", &format!("application:set_env(rabbit, {name}, {millis}).")]).await?;
    }
    let config = config(rabbitmq.url(), "held");
    let broker = Broker::connect(&config, "w").await?;
    submit(&broker, "subscribed").await?;
    let mut consumer = broker.consume(1);
    let subscribed = next(&mut consumer).await?;
    submit(&broker, "taken").await?;
    let taken = broker.take().await.context("no job")?;
    let lost = async {
        tokio::select! { () = subscribed.lost() => (), () = taken.lost() => () }
    };
    // Several times the timeout and the longest between two looks at it.
    let held = timeout(Duration::from_secs(12), lost).await.is_err();
    assert_eq!(held, by_queue);
    if held {
        assert_eq!(subscribed.settle(Settlement::Ack).await, Settled::Done);
        assert_eq!(taken.settle(Settlement::Ack).await, Settled::Done);
    }
    broker.close().await;
    Ok(())
}
