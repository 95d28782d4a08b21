//! What the session must outlive.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use comfy_worker::{
    config::AmqpConfig,
    queue::{Broker, Event, Followed, JobProperties, PublishError, ResultMessage, Settled, Settlement},
};
use serde_json::json;
use testbed::{RabbitMq, wait_for};
use tokio::{
    io::copy_bidirectional,
    net::TcpStream,
    sync::watch,
    time::{Instant, timeout},
};

use super::{SOON, config, next, observer::Observer, shared, submit};

/// Until it is noticed that the broker ended a subscription.
pub(super) const NOTICED: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_deleted_queue_is_noticed_and_subscribed_again() -> Result<()> {
    let config = shared("cancelled").await?;
    let broker = Broker::connect(&config, "worker-1").await?;
    let observer = Observer::connect(&config).await?;
    let mut consumer = broker.consume(1);
    wait_for("a consumer", SOON, || async { observer.count(&config.queue).await == Some((0, 1)) }).await?;
    observer.delete(&config.queue).await?;
    let start = Instant::now();
    wait_for("a consumer again", SOON, || async { observer.count(&config.queue).await == Some((0, 1)) })
        .await?;
    assert!(start.elapsed() < NOTICED, "subscribed again after {:?}", start.elapsed());
    submit(&broker, "after").await?;
    let delivery = next(&mut consumer).await?;
    assert_eq!(delivery.epoch(), 1, "on the same connection");
    delivery.settle(Settlement::Ack).await;
    broker.close().await;
    Ok(())
}

#[tokio::test]
async fn without_declare_a_deleted_queue_makes_the_worker_unready_until_it_is_back() -> Result<()> {
    let mut config = shared("undeclared").await?;
    Broker::connect(&config, "operator").await?.close().await;
    config.declare = false;
    let broker = Broker::connect(&config, "worker-1").await?;
    let mut consumer = broker.consume(1);
    let observer = Observer::connect(&config).await?;
    wait_for("a consumer", SOON, || async { observer.count(&config.queue).await == Some((0, 1)) }).await?;
    let mut health = broker.health();
    observer.delete(&config.queue).await?;
    let start = Instant::now();
    let unready = timeout(SOON, health.wait_for(|health| health.trouble().is_some())).await??.clone();
    assert!(start.elapsed() < NOTICED, "unready after {:?}", start.elapsed());
    assert!(unready.trouble().is_some_and(|trouble| trouble.contains("undeclared.jobs")), "{unready:?}");
    assert!(broker.is_connected());

    config.declare = true;
    Broker::connect(&config, "operator").await?.close().await;
    timeout(SOON, health.wait_for(|health| health.trouble().is_none())).await??;
    submit(&broker, "after").await?;
    next(&mut consumer).await?.settle(Settlement::Ack).await;
    broker.close().await;
    Ok(())
}

/// A way to the broker that can go dead: what was connected before stays open and says nothing.
struct Relay {
    port: u16,
    frozen: watch::Sender<bool>,
}

impl Relay {
    async fn start(config: &AmqpConfig) -> Result<Self> {
        use secrecy::ExposeSecret as _;
        let broker = url::Url::parse(config.url.expose_secret())?.port().context("a port")?;
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let frozen = watch::Sender::new(false);
        let freezes = frozen.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                freezes.send_replace(false);
                let mut freeze = freezes.subscribe();
                tokio::spawn(async move {
                    let mut far = TcpStream::connect((Ipv4Addr::LOCALHOST, broker)).await?;
                    tokio::select! {
                        copied = copy_bidirectional(&mut near, &mut far) => copied.map(drop),
                        _ = async { freeze.wait_for(|frozen| *frozen).await.is_ok() } => {
                            // The broker loses it too, and the job in hand with it.
                            drop(far);
                            std::future::pending::<()>().await;
                            drop(near);
                            Ok(())
                        }
                    }
                });
            }
        });
        Ok(Self { port, frozen })
    }
}

#[tokio::test]
async fn a_dead_connection_is_given_up_and_what_it_held_is_stale() -> Result<()> {
    let direct = shared("relay").await?;
    let relay = Relay::start(&direct).await?;
    let mut config = direct.clone();
    config.url = format!("amqp://guest:guest@127.0.0.1:{}", relay.port).into();
    let broker = Broker::connect(&config, "worker-1").await?;
    let mut consumer = broker.consume(1);
    submit(&broker, "before").await?;
    let held = next(&mut consumer).await?;

    relay.frozen.send_replace(true);
    let start = Instant::now();
    let deadline = Instant::now() + 3 * SOON;
    broker.submit(Bytes::from_static(b"after"), &JobProperties::default(), deadline).await?;
    eprintln!("published on a new connection after {:?}", start.elapsed());
    // Where nothing is sent the missing heartbeat shows it.
    wait_for("the end of what brought the job", 2 * SOON, || async { held.is_stale() }).await?;
    assert_eq!(held.settle(Settlement::Ack).await, Settled::Stale);
    let mut bodies = Vec::new();
    for _ in 0..2 {
        let delivery = next(&mut consumer).await?;
        assert_eq!(delivery.epoch(), 2);
        bodies.push(delivery.message.body.clone());
        assert_eq!(delivery.settle(Settlement::Ack).await, Settled::Done);
    }
    bodies.sort();
    assert_eq!(bodies, ["after", "before"]);

    // Nobody publishes: the missing heartbeat shows it.
    let mut health = broker.health();
    relay.frozen.send_replace(true);
    let start = Instant::now();
    timeout(2 * SOON, health.wait_for(|health| !health.is_connected())).await??;
    eprintln!("missed after {:?}", start.elapsed());
    timeout(SOON, health.wait_for(|health| health.is_connected())).await??;
    submit(&broker, "last").await?;
    next(&mut consumer).await?.settle(Settlement::Ack).await;
    broker.close().await;
    Ok(())
}

/// One broker of its own, put through everything that would disturb other tests.
#[tokio::test]
async fn the_session_outlives_closed_connections_restarts_and_alarms() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let rabbitmq = Arc::new(RabbitMq::start(folder.path()).await?);
    let mut config = config(rabbitmq.url(), "chaos");
    config.results_exchange = Some("chaos.results".into());
    let broker = Broker::connect(&config, "worker-1").await?;
    let mut health = broker.health();
    let mut consumer = broker.consume(1);
    submit(&broker, "job").await?;

    // The broker closes the connection while a job is in hand.
    let stale = next(&mut consumer).await?;
    assert_eq!(stale.epoch(), 1);
    rabbitmq.ctl(&["close_all_connections", "test"]).await?;
    let again = next(&mut consumer).await?;
    assert_eq!(stale.settle(Settlement::Ack).await, Settled::Stale);
    assert_eq!((again.epoch(), again.message.redelivered, again.message.delivery_count), (2, true, 1));

    // The broker restarts. Events are dropped and never wait; a publish waits until it is back.
    let mut follow = broker.follow("x").await?;
    let restart = tokio::spawn({
        let rabbitmq = Arc::clone(&rabbitmq);
        async move { rabbitmq.restart().await }
    });
    timeout(SOON, health.wait_for(|health| !health.is_connected())).await??;
    let events = broker.events();
    let start = Instant::now();
    for seq in 0..10_000 {
        events.send(Event::Json { job_id: "x".into(), name: "progress", body: json!({"seq": seq}) });
    }
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(events.dropped() >= 10_000 - 256, "{}", events.dropped());
    let result =
        ResultMessage { job_id: "x".into(), body: Bytes::from_static(b"{}"), ..ResultMessage::default() };
    let unconfirmed = broker.publish_result(&result, Instant::now() + Duration::from_millis(100)).await;
    assert!(matches!(unconfirmed, Err(PublishError::Unconfirmed(_))), "{unconfirmed:?}");
    let patient = Instant::now() + 3 * SOON;
    broker.submit(Bytes::from_static(b"while away"), &JobProperties::default(), patient).await?;
    restart.await??;
    assert_eq!(again.settle(Settlement::Ack).await, Settled::Stale);
    let mut bodies = Vec::new();
    for _ in 0..2 {
        let delivery = next(&mut consumer).await?;
        assert!(delivery.epoch() >= 3);
        bodies.push(delivery.message.body.clone());
        assert_eq!(delivery.settle(Settlement::Ack).await, Settled::Done);
    }
    bodies.sort();
    assert_eq!(bodies, ["job", "while away"]);

    // The follower has its queue again, under the same name.
    assert_eq!(timeout(SOON, follow.next()).await?, Some(Followed::Gap));
    events.send(Event::Json { job_id: "x".into(), name: "finished", body: json!({"seq": 1}) });
    assert_eq!(timeout(SOON, follow.next()).await?, Some(Followed::Event(json!({"seq": 1}))));

    // The memory alarm: publishers are blocked, which shows, and goes on afterwards.
    rabbitmq.ctl(&["set_vm_memory_high_watermark", "0.000001"]).await?;
    let blocked = tokio::spawn({
        let broker = broker.clone();
        async move { submit(&broker, "blocked").await }
    });
    timeout(SOON, health.wait_for(|health| health.trouble().is_some_and(|text| text.contains("blocked"))))
        .await??;
    rabbitmq.ctl(&["set_vm_memory_high_watermark", "0.8"]).await?;
    timeout(SOON, health.wait_for(|health| health.trouble().is_none())).await??;
    blocked.await??;
    next(&mut consumer).await?.settle(Settlement::Ack).await;

    // A killed broker does not hold the end up.
    rabbitmq.kill().await?;
    let start = Instant::now();
    consumer.stop().await;
    broker.close().await;
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    Ok(())
}
