//! Jobs: delivered, settled, handed back.

use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use comfy_worker::queue::{Broker, Delivery, JobProperties, Settled, Settlement};
use testbed::wait_for;

use super::{SOON, in_a_while, next, observer::Observer, shared, submit};

#[tokio::test]
async fn a_job_is_delivered_and_acked_and_nothing_is_left() -> Result<()> {
    let config = shared("basic").await?;
    let broker = Broker::connect(&config, "worker-1").await?;
    assert!(broker.is_connected());
    let properties = JobProperties {
        message_id: Some("portrait-42".into()),
        correlation_id: Some("c".into()),
        reply_to: Some("r".into()),
        expiration: Some(Duration::from_secs(600)),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        tracestate: Some("vendor=1".into()),
    };
    broker.submit(Bytes::from_static(b"{}"), &properties, in_a_while()).await?;

    let mut consumer = broker.consume(1);
    let delivery = next(&mut consumer).await?;
    let message = &delivery.message;
    assert_eq!(message.body, "{}");
    assert_eq!(message.message_id.as_deref(), Some("portrait-42"));
    assert_eq!(message.correlation_id.as_deref(), Some("c"));
    assert_eq!(message.reply_to.as_deref(), Some("r"));
    assert_eq!(message.expiration, properties.expiration);
    assert_eq!(message.traceparent, properties.traceparent);
    assert_eq!(message.tracestate, properties.tracestate);
    assert_eq!((message.redelivered, message.delivery_count), (false, 0));
    assert!(message.published_at.is_some());
    assert_eq!(delivery.settle(Settlement::Ack).await, Settled::Done);

    consumer.stop().await;
    broker.close().await;
    let metrics = tokio::runtime::Handle::current().metrics();
    // lapin's heartbeat task looks every 5 s whether its connection is still there.
    wait_for("the end of every task", SOON, || async { metrics.num_alive_tasks() == 0 }).await?;
    let observer = Observer::connect(&config).await?;
    assert_eq!(observer.count(&config.queue).await, Some((0, 0)), "an unacked job would be back");
    Ok(())
}

/// From RabbitMQ 4.3 on a hand-back counts in another header, and not to the delivery limit.
fn came_back(delivery: &Delivery) -> u64 {
    delivery.message.delivery_count.max(delivery.message.acquired_count)
}

#[tokio::test]
async fn a_job_handed_back_comes_again_and_counts() -> Result<()> {
    let broker = Broker::connect(&shared("handback").await?, "worker-1").await?;
    submit(&broker, "job").await?;
    let mut consumer = broker.consume(1);
    assert_eq!(next(&mut consumer).await?.settle(Settlement::HandBack).await, Settled::Done);
    let again = next(&mut consumer).await?;
    assert_eq!((again.message.redelivered, came_back(&again)), (true, 1));
    assert_eq!(again.settle(Settlement::Ack).await, Settled::Done);
    broker.close().await;
    Ok(())
}

#[tokio::test]
async fn a_rejected_job_arrives_in_the_dead_letters() -> Result<()> {
    let config = shared("dead").await?;
    let broker = Broker::connect(&config, "worker-1").await?;
    submit(&broker, "poison").await?;
    let mut consumer = broker.consume(1);
    assert_eq!(next(&mut consumer).await?.settle(Settlement::DeadLetter).await, Settled::Done);
    let dead = Observer::connect(&config).await?.take("dead.jobs.dead").await?;
    assert_eq!(dead.data, b"poison");
    broker.close().await;
    Ok(())
}

#[tokio::test]
async fn a_stopped_consumer_hands_back_what_it_did_not_give_out() -> Result<()> {
    let config = shared("stop").await?;
    let broker = Broker::connect(&config, "worker-1").await?;
    for body in ["1", "2", "3", "4"] {
        submit(&broker, body).await?;
    }
    let mut consumer = broker.consume(3);
    let in_hand = next(&mut consumer).await?;
    let observer = Observer::connect(&config).await?;
    wait_for("two more prefetched", SOON, || async { observer.count(&config.queue).await == Some((1, 1)) })
        .await?;
    consumer.stop().await;
    // A quorum queue counts a cancelled consumer while a job of its is unsettled.
    wait_for("their return", SOON, || async { observer.count(&config.queue).await == Some((3, 1)) }).await?;
    assert_eq!(in_hand.message.body, "1");
    assert_eq!(in_hand.settle(Settlement::Ack).await, Settled::Done);
    wait_for("its end", SOON, || async { observer.count(&config.queue).await == Some((3, 0)) }).await?;

    let mut consumer = broker.consume(1);
    let mut seen = Vec::new();
    for _ in 0..3 {
        let delivery = next(&mut consumer).await?;
        seen.push((delivery.message.body.clone(), came_back(&delivery)));
        delivery.settle(Settlement::Ack).await;
    }
    seen.sort();
    assert_eq!(seen, [("2".into(), 1), ("3".into(), 1), ("4".into(), 0)]);
    broker.close().await;
    assert_eq!(observer.count(&config.queue).await, Some((0, 0)));
    Ok(())
}

#[tokio::test]
async fn a_dropped_handle_ends_its_connection() -> Result<()> {
    let config = shared("dropped").await?;
    let observer = Observer::connect(&config).await?;
    let broker = Broker::connect(&config, "worker-1").await?;
    let consumer = broker.consume(1);
    wait_for("a consumer", SOON, || async { observer.count(&config.queue).await == Some((0, 1)) }).await?;
    drop(broker);
    wait_for("its end", SOON, || async { observer.count(&config.queue).await == Some((0, 0)) }).await?;
    drop(consumer);
    Ok(())
}
