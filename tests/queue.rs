//! The queue module against a real, private RabbitMQ.

use std::{
    net::{Ipv4Addr, TcpListener},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use comfy_worker::{
    config::AmqpConfig,
    queue::{
        Broker, Consumer, Delivery, Event, Followed, JobProperties, Preview, PublishError, QueueError,
        ReplyWarning, ResultMessage, Settled, Settlement,
    },
};
use lapin::{
    Channel, Connection, ConnectionProperties, ExchangeKind,
    options::{
        BasicGetOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
    },
    types::FieldTable,
};
use serde_json::json;
use testbed::{RabbitMq, wait_for, wait_for_value};
use tokio::{
    io::{AsyncReadExt as _, copy_bidirectional},
    net::TcpStream,
    sync::watch,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

/// For what takes milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(20);

/// A configuration of the test's own: nothing but `comfy.dead` is shared.
fn config(url: String, name: &str) -> AmqpConfig {
    AmqpConfig {
        url: url.into(),
        queue: format!("{name}.jobs"),
        declare: true,
        delivery_limit: 20,
        results_exchange: None,
        events_exchange: format!("{name}.events"),
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

/// A second client, which looks at the broker without the code under test.
struct Observer {
    channel: Channel,
    connection: Connection,
}

impl Observer {
    async fn connect(config: &AmqpConfig) -> Result<Self> {
        use secrecy::ExposeSecret as _;
        let properties = ConnectionProperties::default();
        let connection = Connection::connect(config.url.expose_secret(), properties).await?;
        Ok(Self { channel: connection.create_channel().await?, connection })
    }

    /// An exclusive queue of this test's.
    async fn queue(&self, name: &str) -> Result<()> {
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(name.into(), options, FieldTable::default()).await?;
        Ok(())
    }

    async fn bind(&self, queue: &str, exchange: &str, key: &str) -> Result<()> {
        let options = QueueBindOptions::default();
        Ok(self
            .channel
            .queue_bind(queue.into(), exchange.into(), key.into(), options, FieldTable::default())
            .await?)
    }

    async fn exchange(&self, name: &str, kind: ExchangeKind) -> Result<()> {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        Ok(self.channel.exchange_declare(name.into(), kind, options, FieldTable::default()).await?)
    }

    /// `(messages ready, consumers)`; `None` when there is no such queue.
    async fn count(&self, queue: &str) -> Option<(u32, u32)> {
        // A missing queue closes the channel.
        let channel = self.connection.create_channel().await.ok()?;
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare(queue.into(), options, FieldTable::default()).await.ok()?;
        Some((queue.message_count(), queue.consumer_count()))
    }

    async fn delete(&self, queue: &str) -> Result<()> {
        self.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
        Ok(())
    }

    /// The next message of `queue`, acked.
    async fn take(&self, queue: &str) -> Result<lapin::message::Delivery> {
        wait_for_value(&format!("a message in {queue}"), SOON, || async {
            let options = BasicGetOptions { no_ack: true };
            let got = self.channel.basic_get(queue.into(), options).await.ok()??;
            Some(got.delivery)
        })
        .await
    }
}

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

#[tokio::test]
async fn a_job_handed_back_comes_again_and_counts() -> Result<()> {
    let broker = Broker::connect(&shared("handback").await?, "worker-1").await?;
    submit(&broker, "job").await?;
    let mut consumer = broker.consume(1);
    assert_eq!(next(&mut consumer).await?.settle(Settlement::HandBack).await, Settled::Done);
    let again = next(&mut consumer).await?;
    assert_eq!((again.message.redelivered, again.message.delivery_count), (true, 1));
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
async fn what_differs_or_is_missing_is_named() -> Result<()> {
    let mut config = shared("differs").await?;
    config.declare = false;
    let text = misconfigured(Broker::connect(&config, "w").await)?;
    assert!(text.contains("does not exist") && text.contains("amqp.declare"), "{text}");

    config.declare = true;
    Broker::connect(&config, "w").await?.close().await;
    config.declare = false;
    config.delivery_limit = 5;
    Broker::connect(&config, "w").await.context("only checked, so taken as it is")?.close().await;

    config.declare = true;
    let text = misconfigured(Broker::connect(&config, "w").await)?;
    for part in
        ["\"differs.jobs\"", "x-delivery-limit: it has 20, this worker wants 5", "amqp.delivery_limit = 20"]
    {
        assert!(text.contains(part), "{part} is not in {text}");
    }

    let observer = Observer::connect(&config).await?;
    let mut config = shared("differs.kind").await?;
    observer.exchange(&config.events_exchange, ExchangeKind::Direct).await?;
    let text = misconfigured(Broker::connect(&config, "w").await)?;
    assert!(text.contains("another type: it has direct") && text.contains("amqp.events_exchange"), "{text}");

    config.declare = false;
    config.queue = "differs.missing".into();
    let text = misconfigured(Broker::connect(&config, "w").await)?;
    assert!(text.contains("\"differs.missing.dead\" does not exist"), "{text}");
    Ok(())
}

#[tokio::test]
async fn bad_credentials_and_addresses_are_told_apart_from_a_broker_that_is_away() -> Result<()> {
    let good = RabbitMq::shared().await?.url();
    let stop = CancellationToken::new();
    let wrong = config(good.replace("guest:guest", "guest:hunter2"), "access");
    let text = misconfigured(Broker::connect(&wrong, "w").await)?;
    assert!(text.contains("password") && !text.contains("hunter2"), "{text}");
    let retried = timeout(SOON, Broker::connect_retrying(&wrong, "w", &stop)).await?;
    misconfigured(retried)?;

    let text = misconfigured(Broker::connect(&config(good.replace("%2f", "nowhere"), "access"), "w").await)?;
    assert!(text.contains("\"nowhere\""), "{text}");
    let text = misconfigured(Broker::connect(&config(good.replace("%2f", ""), "access"), "w").await)?;
    assert!(text.contains("%2f"), "{text}");

    let port = testbed::free_port()?;
    let away = config(format!("amqp://guest:hunter2@127.0.0.1:{port}"), "access");
    match Broker::connect(&away, "w").await {
        Err(QueueError::Unavailable(text)) => assert!(!text.contains("hunter2"), "{text}"),
        other => bail!("{:?}", other.err()),
    }
    let waiting = {
        let stop = stop.clone();
        tokio::spawn(async move { Broker::connect_retrying(&away, "w", &stop).await })
    };
    stop.cancel();
    assert_eq!(timeout(SOON, waiting).await??.err(), Some(QueueError::Stopped));
    Ok(())
}

#[tokio::test]
async fn a_peer_that_never_answers_is_given_up_and_its_socket_closed() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let config = config(format!("amqp://127.0.0.1:{}", listener.local_addr()?.port()), "silent");
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let (outcome, peer) = tokio::join!(Broker::connect(&config, "w"), listener.accept());
    assert!(matches!(outcome.err(), Some(QueueError::Unavailable(_))));
    // lapin's thread would hold it for ever: end of file within the limit is what is tested.
    timeout(SOON, peer?.0.read_to_end(&mut Vec::new())).await??;
    Ok(())
}

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
        seen.push((delivery.message.body.clone(), delivery.message.delivery_count));
        delivery.settle(Settlement::Ack).await;
    }
    seen.sort();
    assert_eq!(seen, [("2".into(), 1), ("3".into(), 1), ("4".into(), 0)]);
    broker.close().await;
    assert_eq!(observer.count(&config.queue).await, Some((0, 0)));
    Ok(())
}

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
    eprintln!("subscribed again after {:?}", start.elapsed());
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
    let unready = timeout(SOON, health.wait_for(|health| health.trouble().is_some())).await??.clone();
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
    let result = ResultMessage {
        job_id: "x".into(),
        body: Bytes::from_static(b"{}"),
        reply_to: None,
        correlation_id: None,
    };
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
