//! Jobs that are given back until later, and jobs whose count begins again.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use comfy_worker::{
    config::AmqpConfig,
    queue::{Broker, Consumer, LONGEST_DELAY, Postponement, PublishError, Settled, Settlement},
    requeue::RequeueHistory,
};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldArray, FieldTable, ShortString},
};
use testbed::wait_for;
use tokio::time::Instant;

use super::{SOON, in_a_while, misconfigured, next, observer::Observer, shared, submit};

fn until(delay: Duration, count: u32) -> Postponement {
    let returns = RequeueHistory { count, cause: "store_away".into(), since: now() };
    Postponement { delay, returns, expires_at: None }
}

/// In the milliseconds that a header holds.
fn now() -> SystemTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(since.as_millis()).unwrap_or(0))
}

/// Postpones the next job and acks it.
async fn put_off(broker: &Broker, consumer: &mut Consumer, postponement: &Postponement) -> Result<()> {
    let delivery = next(consumer).await?;
    broker.postpone(&delivery, postponement, in_a_while()).await?;
    ensure!(delivery.settle(Settlement::Ack).await == Settled::Done);
    Ok(())
}

async fn bed(name: &str) -> Result<(AmqpConfig, Broker, Observer)> {
    let config = shared(name).await?;
    let broker = Broker::connect(&config, "worker-1").await?;
    let observer = Observer::connect(&config).await?;
    Ok((config, broker, observer))
}

fn whole_job() -> BasicProperties {
    let text = |text: &str| AMQPValue::LongString(text.into());
    let mut headers = FieldTable::default();
    headers.insert("traceparent".into(), text("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
    headers.insert("timestamp_in_ms".into(), AMQPValue::LongLongInt(1_700_000_000_123));
    headers.insert("tenant".into(), text("a"));
    headers.insert("CC".into(), AMQPValue::FieldArray(FieldArray::default()));
    BasicProperties::default()
        .with_message_id("m".into())
        .with_correlation_id("c".into())
        .with_reply_to("r".into())
        .with_content_type("application/json".into())
        .with_content_encoding("identity".into())
        .with_timestamp(1_700_000_000)
        .with_priority(3)
        .with_type("job".into())
        .with_app_id("app".into())
        .with_user_id("guest".into())
        .with_delivery_mode(2)
        .with_headers(headers)
}

#[tokio::test]
async fn a_postponed_job_comes_back_in_time_with_all_it_carried() -> Result<()> {
    let (config, broker, observer) = bed("later").await?;
    observer.publish(&config.queue, b"{}", whole_job()).await?;
    let mut consumer = broker.consume(1);
    let delay = Duration::from_millis(1500);
    let postponement = Postponement { expires_at: Some(now() + 2 * SOON), ..until(delay, 1) };
    let start = Instant::now();
    put_off(&broker, &mut consumer, &postponement).await?;
    consumer.stop().await;

    let back = observer.take(&config.queue).await?;
    let took = start.elapsed();
    ensure!(took >= delay && took < delay + Duration::from_secs(3), "back after {took:?}");
    ensure!(back.data == b"{}" && !back.redelivered);
    let (sent, got) = (whole_job(), &back.properties);
    assert_eq!((got.message_id(), got.correlation_id()), (sent.message_id(), sent.correlation_id()));
    assert_eq!((got.reply_to(), got.content_type()), (sent.reply_to(), sent.content_type()));
    assert_eq!((got.content_encoding(), got.timestamp()), (sent.content_encoding(), sent.timestamp()));
    assert_eq!((got.priority(), got.kind()), (sent.priority(), sent.kind()));
    assert_eq!((got.app_id(), got.delivery_mode()), (sent.app_id(), sent.delivery_mode()));
    assert_eq!((got.user_id(), got.expiration()), (&None, &None::<ShortString>));
    let [sent, got] = [&sent, got].map(|of| of.headers().clone().unwrap_or_default());
    for name in ["traceparent", "timestamp_in_ms", "tenant"] {
        ensure!(got.inner().get(name).is_some() && got.inner().get(name) == sent.inner().get(name), "{name}");
    }
    ensure!(!got.inner().contains_key("CC"));

    // What it was told, read by the worker: twice, the second copy made of the first.
    observer.publish(&config.queue, b"{}", BasicProperties::default().with_headers(got)).await?;
    let mut consumer = broker.consume(1);
    let delivery = next(&mut consumer).await?;
    assert_eq!(delivery.message.returns.as_ref(), Some(&postponement.returns));
    assert_eq!(delivery.message.expires_at, postponement.expires_at);
    assert_eq!(delivery.message.expiry(delivery.received_at()), postponement.expires_at);
    let second = Postponement { expires_at: postponement.expires_at, ..until(Duration::ZERO, 2) };
    broker.postpone(&delivery, &second, in_a_while()).await?;
    delivery.settle(Settlement::Ack).await;
    let again = next(&mut consumer).await?;
    let message = &again.message;
    assert_eq!((message.returns.as_ref(), message.expires_at), (Some(&second.returns), second.expires_at));
    assert_eq!((message.redelivered, message.delivery_count, message.acquired_count), (false, 0, 0));
    assert_eq!((&message.death, message.expiration), (&None, None), "its return is no death");
    again.settle(Settlement::Ack).await;
    for queue in ["later.jobs", "later.jobs.later", "later.jobs.dead", "later.jobs.dead.notices"] {
        assert_eq!(observer.count(queue).await.map(|(ready, _)| ready), Some(0), "{queue}");
    }
    broker.close().await;
    Ok(())
}

/// The jobs behind one that waits are not held up, and what expires meanwhile comes in time to be told.
#[tokio::test]
async fn a_job_that_waits_holds_up_no_other_and_comes_when_it_expires() -> Result<()> {
    let (config, broker, observer) = bed("beside").await?;
    let mut consumer = broker.consume(1);
    submit(&broker, "hopeless").await?;
    let expires = now() + Duration::from_secs(2);
    let postponement = Postponement { expires_at: Some(expires), ..until(10 * LONGEST_DELAY, 1) };
    put_off(&broker, &mut consumer, &postponement).await?;
    for body in ["1", "2", "3", "4", "5"] {
        submit(&broker, body).await?;
        let good = next(&mut consumer).await?;
        assert_eq!(good.message.body, body);
        good.settle(Settlement::Ack).await;
    }
    ensure!(now() < expires, "five jobs took longer than the one that waits");
    assert_eq!(observer.count("beside.jobs.later").await, Some((1, 0)));
    let back = next(&mut consumer).await?;
    ensure!(now() >= expires && now() < expires + Duration::from_secs(5));
    assert_eq!((back.message.body.as_ref(), back.message.expires_at), (b"hopeless".as_ref(), Some(expires)));
    back.settle(Settlement::Ack).await;
    assert_eq!(observer.count(&config.queue).await.map(|(ready, _)| ready), Some(0));
    broker.close().await;
    Ok(())
}

#[tokio::test]
async fn a_job_that_dies_after_its_return_died_in_its_own_queue() -> Result<()> {
    let mut config = shared("returned").await?;
    config.delivery_limit = 1;
    let broker = Broker::connect(&config, "worker-1").await?;
    let observer = Observer::connect(&config).await?;
    let mut consumer = broker.consume(1);
    for body in ["rejected", "limit"] {
        submit(&broker, body).await?;
        put_off(&broker, &mut consumer, &until(Duration::from_millis(100), 1)).await?;
        if body == "rejected" {
            next(&mut consumer).await?.settle(Settlement::DeadLetter).await;
        }
    }
    consumer.stop().await;
    // Not by nack, which counts no more from RabbitMQ 4.3 on.
    for _ in 0..2 {
        wait_for("the job", SOON, || async { observer.reject(&config.queue).await.unwrap_or(false) }).await?;
    }
    let both = || async { observer.count("returned.jobs.dead").await == Some((2, 0)) };
    wait_for("the dead letters", SOON, both).await?;
    let mut notices = broker.notices(1);
    let mut letters = broker.dead_letters().await?;
    for reason in ["rejected", "delivery_limit"] {
        let notice = next(&mut notices).await?;
        let letter = letters.next().await?.context("a letter")?;
        for message in [&notice.message, &letter.message] {
            let death = message.death.as_ref().context("no reason")?;
            assert_eq!((death.reason.as_str(), death.queue.as_str()), (reason, "returned.jobs"));
        }
        notice.settle(Settlement::Ack).await;
        if reason == "rejected" {
            letters.discard(letter).await?;
        } else {
            letters.retry(letter).await?;
        }
    }
    letters.give_back().await?;
    // Sent to work again it begins afresh.
    let mut consumer = broker.consume(1);
    let again = next(&mut consumer).await?;
    assert_eq!((&again.message.returns, &again.message.death), (&None, &None));
    again.settle(Settlement::Ack).await;
    assert_eq!(observer.count("returned.jobs.dead.notices").await.map(|(ready, _)| ready), Some(0));
    broker.close().await;
    Ok(())
}

#[tokio::test]
async fn a_renewed_job_has_all_its_deliveries_again() -> Result<()> {
    let (config, broker, observer) = bed("renewed").await?;
    let job = whole_job().with_expiration("60000".into());
    observer.publish(&config.queue, b"{}", job).await?;
    // Counts everywhere.
    ensure!(observer.reject(&config.queue).await?);
    let mut consumer = broker.consume(1);
    let first = next(&mut consumer).await?;
    assert_eq!((first.message.delivery_count, first.message.redelivered), (1, true));
    broker.renew(&first, in_a_while()).await?;
    let received = first.received_at();
    assert_eq!(first.settle(Settlement::Ack).await, Settled::Done);
    let again = next(&mut consumer).await?;
    let message = &again.message;
    assert_eq!((message.delivery_count, message.acquired_count, message.redelivered), (0, 0, false));
    assert_eq!((message.message_id.as_deref(), message.returns.as_ref()), (Some("m"), None));
    // The publisher's clock is years behind: the whole expiration counts from the first delivery, once.
    let expires = message.expires_at.context("no expiration")?;
    let whole = expires.duration_since(received)?;
    ensure!(whole <= Duration::from_secs(60) && whole > Duration::from_secs(59), "{whole:?}");
    broker.renew(&again, in_a_while()).await?;
    again.settle(Settlement::Ack).await;
    let last = next(&mut consumer).await?;
    assert_eq!(last.message.expires_at, Some(expires));
    last.settle(Settlement::Ack).await;
    assert_eq!(observer.count(&config.queue).await.map(|(ready, _)| ready), Some(0));
    broker.close().await;
    Ok(())
}

/// The copy is there before the original goes, and there is none of what comes again by itself.
#[tokio::test]
async fn a_worker_that_ends_between_copy_and_ack_leaves_the_job_twice() -> Result<()> {
    let (config, broker, observer) = bed("between").await?;
    submit(&broker, "job").await?;
    let mut consumer = broker.consume(1);
    let held = next(&mut consumer).await?;
    broker.postpone(&held, &until(LONGEST_DELAY, 1), in_a_while()).await?;
    assert_eq!(observer.count("between.jobs.later").await, Some((1, 0)));
    consumer.stop().await;
    broker.close().await;
    wait_for("the original", SOON, || async { observer.count(&config.queue).await == Some((1, 0)) }).await?;
    let other = Broker::connect(&config, "worker-2").await?;
    for stale in [
        other.postpone(&held, &until(LONGEST_DELAY, 1), in_a_while()).await,
        other.renew(&held, in_a_while()).await,
    ] {
        ensure!(
            matches!(&stale, Err(PublishError::Unconfirmed(why)) if why.contains("comes again")),
            "{stale:?}"
        );
    }
    assert_eq!(observer.count("between.jobs.later").await, Some((1, 0)));
    assert_eq!(observer.count(&config.queue).await, Some((1, 0)));
    assert_eq!(held.settle(Settlement::Ack).await, Settled::Stale);
    other.close().await;
    Ok(())
}

#[tokio::test]
async fn a_delay_queue_that_is_gone_is_made_again_or_named() -> Result<()> {
    let (mut config, broker, observer) = bed("undelayed").await?;
    submit(&broker, "job").await?;
    let mut consumer = broker.consume(1);
    observer.delete("undelayed.jobs.later").await?;
    put_off(&broker, &mut consumer, &until(Duration::ZERO, 1)).await?;
    next(&mut consumer).await?.settle(Settlement::Ack).await;
    broker.close().await;

    // One of an earlier version is taken as it is.
    observer.delete("undelayed.jobs.later").await?;
    observer.delay_queue("undelayed.jobs.later", "undelayed.jobs").await?;
    let broker = Broker::connect(&config, "worker-1").await?;
    submit(&broker, "another").await?;
    let mut consumer = broker.consume(1);
    put_off(&broker, &mut consumer, &until(Duration::ZERO, 1)).await?;
    next(&mut consumer).await?.settle(Settlement::Ack).await;
    broker.close().await;

    observer.delete("undelayed.jobs.later").await?;
    config.declare = false;
    let text = misconfigured(Broker::connect(&config, "worker-1").await)?;
    ensure!(text.contains("\"undelayed.jobs.later\" does not exist"), "{text}");
    Ok(())
}
