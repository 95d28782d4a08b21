//! Results and events on their way out.

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use contract::result::JobResult;

use comfy_worker::queue::{
    Broker, Event, Followed, JobProperties, PreviewEvent, PublishError, ReplyWarning, ResultMessage, Settled,
    Settlement,
};
use serde_json::json;
use testbed::{RabbitMq, Worker};
use tokio::time::{Instant, timeout};

use super::{SOON, config, in_a_while, next, observer::Observer, shared, submit};

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
        ..ResultMessage::default()
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
async fn a_results_exchange_that_passes_nothing_on_is_said_once_and_stops_nothing() -> Result<()> {
    let mut config = shared("results").await?;
    config.results_exchange = Some("results.out".into());
    let broker = Broker::connect(&config, "worker-1").await?;
    let observer = Observer::connect(&config).await?;
    let result =
        ResultMessage { job_id: "a.b-1".into(), body: Bytes::from_static(b"{}"), ..ResultMessage::default() };
    let unheard = [ReplyWarning::Unheard("results.out".into())];
    let start = Instant::now();
    assert_eq!(broker.publish_result(&result, in_a_while()).await?, unheard);
    for _ in 0..20 {
        assert_eq!(broker.publish_result(&result, in_a_while()).await?, []);
    }
    assert!(start.elapsed() < SOON / 4, "{:?}", start.elapsed());
    let health = broker.health().borrow().clone();
    assert!(health.warning().is_some_and(|text| text.contains("results.out")), "{health:?}");
    assert_eq!(health.trouble(), None);

    // A queue that is bound meanwhile gets the next one, and if it goes that is said again.
    observer.queue("results.queue").await?;
    observer.bind("results.queue", "results.out", "#").await?;
    // What is for the one who asked alone does not come there.
    let alone =
        ResultMessage { body: Bytes::from_static(b"{\"alone\": 1}"), reply_only: true, ..result.clone() };
    assert_eq!(broker.publish_result(&alone, in_a_while()).await?, []);
    assert_eq!(broker.publish_result(&result, in_a_while()).await?, []);
    assert_eq!(observer.take("results.queue").await?.routing_key.as_str(), "a.b-1");
    assert_eq!(broker.health().borrow().warning(), None);
    observer.delete("results.queue").await?;
    assert_eq!(broker.publish_result(&result, in_a_while()).await?, unheard);

    // One that is gone, and one that is full.
    observer.full_queue("results.full").await?;
    observer.bind("results.full", "results.out", "#").await?;
    observer.publish("results.full", b"{}", lapin::BasicProperties::default()).await?;
    let full = broker.publish_result(&result, in_a_while()).await?;
    assert!(matches!(full.as_slice(), [ReplyWarning::Refused(name, _)] if name == "results.out"), "{full:?}");
    observer.delete_exchange("results.out").await?;
    assert_eq!(broker.publish_result(&result, in_a_while()).await?, unheard);
    broker.close().await;
    Ok(())
}

/// A whole result, of a job that failed at length.
fn long_result() -> serde_json::Value {
    json!({
        "version": 1, "id": "long", "status": "failed", "attempt": 2,
        "outputs": [{"node": "4", "key": "text", "index": 0, "kind": "text", "text": "x".repeat(5000), "temp": false}],
        "history": "s3://b/long/2/history.json", "prompt": "s3://b/long/2/prompt.json",
        "error": {"code": "execution_error", "stage": "run", "message": "y".repeat(5000),
                  "node": "4", "traceback": ["z".repeat(5000)]},
        "warnings": ["w".repeat(5000)],
        "timings": {"queued_ms": 1, "staged_ms": 1, "converted_ms": 1, "waited_ms": 1, "executed_ms": 1,
                    "uploaded_ms": 1, "total_ms": 6},
        "nodes": {"4": {"ms": 1.5, "cached": false}},
        "worker": {"id": "w", "version": "1", "comfyui_version": "1"},
        "metadata": {"m": "m".repeat(5000)},
    })
}

#[tokio::test]
async fn a_result_that_is_too_large_is_answered_in_short() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let rabbitmq = RabbitMq::start_with_settings(folder.path(), "max_message_size = 4096\n").await?;
    let mut config = config(rabbitmq.url(), "short");
    config.results_exchange = Some("short.out".into());
    let broker = Broker::connect(&config, "worker-1").await?;
    let observer = Observer::connect(&config).await?;
    for queue in ["short.reply", "short.all"] {
        observer.queue(queue).await?;
    }
    observer.bind("short.all", "short.out", "#").await?;
    let whole = long_result();
    // As the worker writes it.
    let parsed: JobResult = serde_json::from_value(whole.clone())?;
    let result = ResultMessage {
        job_id: "long".into(),
        body: serde_json::to_vec(&parsed)?.into(),
        stored_at: Some("s3://b/long/result.json".into()),
        reply_to: Some("short.reply".into()),
        correlation_id: Some("c".into()),
        reply_only: false,
    };
    let warnings = broker.publish_result(&result, in_a_while()).await?;
    let places: Vec<_> = warnings
        .iter()
        .map(|warning| match warning {
            ReplyWarning::TooLarge(place, _) => place.as_str(),
            _ => "",
        })
        .collect();
    assert_eq!(places, ["short.reply", "short.out"], "{warnings:?}");
    for queue in ["short.reply", "short.all"] {
        let received = observer.take(queue).await?;
        assert_eq!(received.properties.correlation_id().as_ref().map(|id| id.as_str()), Some("c"));
        let answer: JobResult = serde_json::from_slice(&received.data)?;
        assert_eq!((answer.version, answer.id.as_str(), answer.status), (1, "long", parsed.status));
        assert!(
            answer.outputs.is_empty() && answer.history == parsed.history && answer.prompt == parsed.prompt
        );
        assert!(answer.warnings.len() == 1 && answer.warnings[0].contains("s3://b/long/result.json"));
        let (error, long) = (answer.error.context("no error")?, parsed.error.as_ref().context("no error")?);
        assert_eq!((error.code, error.stage), (long.code, long.stage));
        assert!(long.message.starts_with(&error.message) && error.message.len() == 1000);
    }
    // One that is small passes whole, and the warning about the exchange is over.
    let small = ResultMessage { body: Bytes::from_static(b"{}"), ..result };
    assert_eq!(broker.publish_result(&small, in_a_while()).await?, []);
    assert_eq!(observer.take("short.reply").await?.data, b"{}");
    assert_eq!(broker.health().borrow().warning(), None);
    broker.close().await;

    // A job that the broker does not take is a mistake that names its cure.
    let builder = Worker::builder(env!("CARGO_BIN_EXE_comfy-worker"), folder.path())?
        .broker(&rabbitmq)
        .set("amqp.queue", &config.queue)
        .set("amqp.events_exchange", &config.events_exchange);
    let workflow = folder.path().join("large.json");
    std::fs::write(
        &workflow,
        json!({"1": {"class_type": "N", "inputs": {"text": "x".repeat(5000)}}}).to_string(),
    )?;
    let mut command = builder.command(&["submit", workflow.to_str().context("no UTF-8")?])?;
    let output = command.stdin(std::process::Stdio::null()).kill_on_drop(true).output().await?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("workflow_uri") && said.contains("larger than"), "{said}");
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
    let preview = PreviewEvent {
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
        ..ResultMessage::default()
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
