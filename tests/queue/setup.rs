//! Connecting: what is missing, differs, is refused or away.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Context as _, Result, bail};
use comfy_worker::queue::{Broker, QueueError};
use lapin::ExchangeKind;
use testbed::RabbitMq;
use tokio::{io::AsyncReadExt as _, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{SOON, config, misconfigured, observer::Observer, shared};

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
    // lapin's thread would hold it forever: end of file within the limit is what is tested.
    timeout(SOON, peer?.0.read_to_end(&mut Vec::new())).await??;
    Ok(())
}
