//! Results and events on their way out.

use std::time::Duration;

use anyhow::{Result, bail};
use bytes::Bytes;
use comfy_worker::queue::{
    Broker, Event, Followed, JobProperties, Preview, PublishError, ReplyWarning, ResultMessage, Settled,
    Settlement,
};
use serde_json::json;
use tokio::time::{Instant, timeout};

use super::{SOON, in_a_while, next, observer::Observer, shared, submit};

#[tokio::test]
async fn a_result_goes_to_the_reply_queue_or_is_a_warning() -> Result<()> {
    let mut config = shared("reply").await?;
    config.reply_to_allow = vec!["reply.*".into()];
    let broker = Broker::connect(&config, "worker-1").await?;
    let observer = Observer::connect(&config).await?;
    observer.queue("reply.here").await?;
    let result = |reply_to: &str| ResultMessage {
        job_id: "portrait-42".into(),
        body: Bytes::from_static(b"{\"version\":1}"),
        reply_to: Some(reply_to.into()),
        correlation_id: Some("corr".into()),
        reply_only: false,
    };
    assert_eq!(broker.publish_result(&result("reply.here"), in_a_while()).await?, []);
    let received = observer.take("reply.here").await?;
    assert_eq!(received.data, b"{\"version\":1}");
    let text = |property: &Option<lapin::types::ShortString>| property.as_ref().map(ToString::to_string);
    assert_eq!(text(received.properties.correlation_id()).as_deref(), Some("corr"));
    assert_eq!(text(received.properties.message_id()).as_deref(), Some("portrait-42"));
    assert_eq!(text(received.properties.content_type()).as_deref(), Some("application/json"));
    assert_eq!(*received.properties.delivery_mode(), Some(2));

    for (queue, warning) in [
        ("reply.gone", ReplyWarning::Unroutable("reply.gone".into())),
        ("other.queue", ReplyWarning::Forbidden("other.queue".into())),
        ("reply.jobs", ReplyWarning::Forbidden("reply.jobs".into())),
        ("reply.jobs.dead", ReplyWarning::Forbidden("reply.jobs.dead".into())),
    ] {
        assert_eq!(broker.publish_result(&result(queue), in_a_while()).await?, [warning]);
    }
    let long = ResultMessage { correlation_id: Some("x".repeat(256)), ..result("reply.here") };
    let refused = broker.publish_result(&long, in_a_while()).await;
    assert!(matches!(refused, Err(PublishError::TooLarge(_))), "{refused:?}");
    assert_eq!(
        broker.publish_result(&result("reply.here"), in_a_while()).await?,
        [],
        "the session is unharmed"
    );
    broker.close().await;
    Ok(())
}

#[tokio::test]
async fn a_result_must_find_a_queue_at_the_results_exchange() -> Result<()> {
    let mut config = shared("results").await?;
    config.results_exchange = Some("results.out".into());
    let broker = Broker::connect(&config, "worker-1").await?;
    let result = ResultMessage {
        job_id: "a.b-1".into(),
        body: Bytes::from_static(b"{}"),
        reply_to: None,
        correlation_id: None,
        reply_only: false,
    };
    let lost = broker.publish_result(&result, Instant::now() + Duration::from_secs(1)).await;
    let expected = PublishError::Unroutable { exchange: "results.out".into(), routing_key: "a.b-1".into() };
    assert_eq!(lost, Err(expected));

    // It is tried again: a queue bound meanwhile gets it.
    let observer = Observer::connect(&config).await?;
    observer.queue("results.queue").await?;
    let (published, bound) = tokio::join!(
        broker.publish_result(&result, in_a_while()),
        observer.bind("results.queue", "results.out", "#")
    );
    bound?;
    assert_eq!(published?, []);
    assert_eq!(observer.take("results.queue").await?.routing_key.as_str(), "a.b-1");
    broker.close().await;
    Ok(())
}

#[tokio::test]
async fn a_message_over_the_brokers_limit_is_an_error_and_harms_nothing() -> Result<()> {
    let broker = Broker::connect(&shared("large").await?, "worker-1").await?;
    let body = Bytes::from(vec![b' '; (128 << 20) + 1]);
    let refused = broker.submit(body, &JobProperties::default(), in_a_while() + SOON).await;
    assert!(matches!(refused, Err(PublishError::TooLarge(_))), "{refused:?}");
    submit(&broker, "small").await?;
    broker.close().await;
    Ok(())
}

#[tokio::test]
async fn a_followed_job_sends_its_events_in_order_and_its_result() -> Result<()> {
    let config = shared("follow").await?;
    let worker = Broker::connect(&config, "worker-1").await?;
    let client = Broker::connect(&config, "client").await?;
    let id = "portrait.v1-42";
    let mut follow = client.follow(id).await?;
    let properties = JobProperties {
        message_id: Some(id.into()),
        correlation_id: Some("c".into()),
        reply_to: Some(follow.reply_to().into()),
        ..JobProperties::default()
    };
    client.submit(Bytes::from_static(b"{}"), &properties, in_a_while()).await?;

    let job = next(&mut worker.consume(1)).await?;
    let events = worker.events();
    let event = |seq: u64, name: &'static str, job_id: &str| Event::Json {
        job_id: job_id.into(),
        name,
        body: json!({"version": 1, "id": job_id, "event": name, "seq": seq}),
    };
    let preview = Preview {
        job_id: id.into(),
        image: Bytes::from_static(b"\xff\xd8raw"),
        content_type: "image/jpeg".into(),
        seq: 3,
        at: "2026-01-01T00:00:00Z".into(),
        attempt: 1,
        worker: "worker-1".into(),
        node: "9".into(),
    };
    events.send(event(1, "accepted", id));
    events.send(event(1, "accepted", "portrait"));
    events.send(event(1, "accepted", "portrait.v1-42.x"));
    events.send(event(2, "progress", id));
    events.send(Event::Preview(preview.clone()));
    events.send(event(4, "finished", id));
    for seq in [1, 2] {
        match timeout(SOON, follow.next()).await? {
            Some(Followed::Event(body)) => assert_eq!((&body["seq"], &body["id"]), (&json!(seq), &json!(id))),
            other => bail!("{other:?}"),
        }
    }
    assert_eq!(timeout(SOON, follow.next()).await?, Some(Followed::Preview(preview)));
    match timeout(SOON, follow.next()).await? {
        Some(Followed::Event(body)) => assert_eq!(body["event"], "finished"),
        other => bail!("{other:?}"),
    }
    assert_eq!(events.dropped(), 0);

    let result = ResultMessage {
        job_id: id.into(),
        body: Bytes::from_static(b"{\"status\":\"succeeded\"}"),
        reply_to: job.message.reply_to.clone(),
        correlation_id: job.message.correlation_id.clone(),
        reply_only: false,
    };
    assert_eq!(worker.publish_result(&result, in_a_while()).await?, []);
    assert_eq!(job.settle(Settlement::Ack).await, Settled::Done);
    assert_eq!(timeout(SOON, follow.next()).await?, Some(Followed::Result(result.body)));
    worker.close().await;
    client.close().await;
    assert_eq!(timeout(SOON, follow.next()).await?, None);
    Ok(())
}

#[tokio::test]
async fn closing_flushes_the_events_that_wait() -> Result<()> {
    let config = shared("flush").await?;
    let broker = Broker::connect(&config, "worker-1").await?;
    let observer = Observer::connect(&config).await?;
    observer.queue("flush.all").await?;
    observer.bind("flush.all", &config.events_exchange, "job.#").await?;
    let events = broker.events();
    for seq in 0..200 {
        events.send(Event::Json { job_id: "j".into(), name: "progress", body: json!({"seq": seq}) });
    }
    broker.close().await;
    assert_eq!((events.dropped(), observer.count("flush.all").await), (0, Some((200, 0))));
    events.send(Event::Json { job_id: "j".into(), name: "finished", body: json!({}) });
    assert_eq!(events.dropped(), 1, "after the end they are dropped");
    Ok(())
}
