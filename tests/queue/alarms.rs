//! A broker that is short of memory or disk takes no messages, for minutes.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use comfy_worker::queue::{Broker, Event, ResultMessage, Settled, Settlement};
use serde_json::json;
use testbed::{RabbitMq, wait_for};
use tokio::time::{Instant, sleep_until, timeout};

use super::{SOON, config, next, observer::Observer, submit};

/// Many times the heartbeat, and the longest wait for a confirm.
const ALARM: Duration = Duration::from_secs(65);

/// The worker's connections as the broker lists them: what each is called, and its process.
async fn connections(rabbitmq: &RabbitMq) -> Result<Vec<(&'static str, String)>> {
    let list = rabbitmq.ctl(&["list_connections", "--no-table-headers", "pid", "client_properties"]).await?;
    let mut found = Vec::new();
    for line in list.lines() {
        let process = line.split_whitespace().next().unwrap_or_default();
        for name in ["worker-1 consume", "worker-1 publish"] {
            if line.contains(name) {
                found.push((name, process.to_owned()));
            }
        }
    }
    found.sort();
    Ok(found)
}

#[tokio::test]
async fn a_job_in_hand_outlives_an_alarm_on_its_connection_and_is_answered_once() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let rabbitmq = Arc::new(RabbitMq::start(folder.path()).await?);
    let config = config(rabbitmq.url(), "alarm");
    let broker = Broker::connect(&config, "worker-1").await?;
    let observer = Observer::connect(&config).await?;
    observer.queue("alarm.replies").await?;
    for body in ["long", "short", "back"] {
        submit(&broker, body).await?;
    }
    let mut consumer = broker.consume(3);
    let (long, short) = (next(&mut consumer).await?, next(&mut consumer).await?);
    let back = next(&mut consumer).await?;
    let before = connections(&rabbitmq).await?;
    let names: Vec<_> = before.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["worker-1 consume", "worker-1 publish"]);

    let mut health = broker.health();
    rabbitmq.ctl(&["set_disk_free_limit", "1000000000000000"]).await?;
    let (start, over) = (Instant::now(), Instant::now() + ALARM);
    let answer = tokio::spawn({
        let broker = broker.clone();
        let result = ResultMessage {
            job_id: "long".into(),
            body: Bytes::from_static(b"{}"),
            reply_to: Some("alarm.replies".into()),
            ..ResultMessage::default()
        };
        async move { broker.publish_result(&result, start + ALARM + SOON).await }
    });
    // The first message that is sent shows it.
    broker.events().send(Event::Json { job_id: "long".into(), name: "progress", body: json!({}) });
    let blocked =
        health.wait_for(|health| health.trouble().is_some_and(|trouble| trouble.contains("blocked")));
    ensure!(timeout(SOON, blocked).await??.is_connected());
    // Everything but answers goes on meanwhile.
    assert_eq!(short.settle(Settlement::Ack).await, Settled::Done);
    assert_eq!(back.settle(Settlement::HandBack).await, Settled::Done);
    let again = timeout(SOON, consumer.next()).await?.context("no job")?;
    assert_eq!(again.message.body, "back");
    assert_eq!(again.settle(Settlement::Ack).await, Settled::Done);
    tokio::select! {
        () = sleep_until(over) => {}
        () = long.lost() => anyhow::bail!("disowned after {:?}", start.elapsed()),
        changed = health.wait_for(|health| !health.is_connected()) => {
            anyhow::bail!("{:?} after {:?}", changed?.trouble(), start.elapsed())
        }
    }
    ensure!(!answer.is_finished(), "answered during the alarm");

    rabbitmq.ctl(&["set_disk_free_limit", "1000000"]).await?;
    assert_eq!(timeout(SOON, answer).await???, []);
    timeout(SOON, health.wait_for(|health| health.trouble().is_none())).await??;
    assert_eq!(connections(&rabbitmq).await?, before, "connected again");
    ensure!((long.epoch(), long.is_stale()) == (1, false));
    assert_eq!(long.settle(Settlement::Ack).await, Settled::Done);
    observer.take("alarm.replies").await?;
    assert_eq!(observer.count("alarm.replies").await, Some((0, 0)), "answered twice");
    broker.close().await;
    wait_for("the end of both connections", SOON, || async {
        connections(&rabbitmq).await.is_ok_and(|left| left.is_empty())
    })
    .await?;
    assert_eq!(observer.count(&config.queue).await, Some((0, 0)), "a job came back");
    Ok(())
}
