//! The two proxies' own promises: each fault does what its name says, and no more.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aws_sdk_s3::{Client, config::retry::RetryConfig, error::ProvideErrorMetadata as _};
use testbed::{Fault, Front, Gate, S3Server, Spoil};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

const SOON: Duration = Duration::from_secs(10);

/// Says everything again, and `eof` when it is told no more.
async fn echo() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = socket.into_split();
                tokio::io::copy(&mut from, &mut to).await?;
                to.write_all(b"eof").await
            });
        }
    });
    Ok(address)
}

async fn connected() -> Result<(Gate, TcpStream)> {
    let gate = Gate::start(echo().await?).await?;
    let mut socket = TcpStream::connect(gate.address()).await?;
    say(&mut socket, "first").await?;
    ensure!(hear(&mut socket, 5).await? == "first");
    Ok((gate, socket))
}

async fn say(socket: &mut TcpStream, text: &str) -> Result<()> {
    Ok(socket.write_all(text.as_bytes()).await?)
}

async fn hear(socket: &mut TcpStream, bytes: usize) -> Result<String> {
    let mut heard = vec![0; bytes];
    timeout(SOON, socket.read_exact(&mut heard)).await.context("nothing was heard")??;
    Ok(String::from_utf8(heard)?)
}

/// What is heard until the connection ends, and whether it was reset.
async fn hear_all(socket: &mut TcpStream) -> Result<(String, bool)> {
    let mut heard = Vec::new();
    let end = timeout(SOON, socket.read_to_end(&mut heard)).await.context("the connection stays")?;
    Ok((String::from_utf8(heard)?, end.is_err()))
}

#[tokio::test]
async fn swallowed_bytes_vanish_and_the_connection_stays() -> Result<()> {
    let (gate, mut socket) = connected().await?;
    gate.set(Fault::Swallow, "lost");
    say(&mut socket, "lost").await?;
    gate.wait_caught(SOON).await?;
    gate.lift();
    say(&mut socket, "kept").await?;
    ensure!(hear(&mut socket, 4).await? == "kept");
    Ok(())
}

#[tokio::test]
async fn a_throttled_connection_is_as_slow_as_said_until_the_fault_is_lifted() -> Result<()> {
    let (gate, mut socket) = connected().await?;
    gate.set(Fault::Throttle(1000), "");
    let begin = Instant::now();
    say(&mut socket, &"x".repeat(200)).await?;
    hear(&mut socket, 200).await?;
    let took = begin.elapsed();
    ensure!(took >= Duration::from_millis(400), "200 bytes there and back took {took:?}");

    gate.set(Fault::Throttle(1), "");
    let caught = gate.caught();
    say(&mut socket, &"x".repeat(100)).await?;
    testbed::wait_for("the slow bytes", SOON, || async { gate.caught() > caught }).await?;
    gate.lift();
    hear(&mut socket, 100).await.map(drop)
}

#[tokio::test]
async fn a_half_open_connection_is_closed_one_way_only() -> Result<()> {
    let (gate, mut socket) = connected().await?;
    gate.set(Fault::HalfOpen, "bye");
    say(&mut socket, "bye").await?;
    ensure!(hear_all(&mut socket).await? == ("eof".to_owned(), false));
    Ok(())
}

#[tokio::test]
async fn a_connection_is_cut_after_so_many_bytes() -> Result<()> {
    let (gate, mut socket) = connected().await?;
    gate.set(Fault::CutAfter(12), "");
    say(&mut socket, "12345678").await?;
    ensure!(hear_all(&mut socket).await? == ("1234".to_owned(), true));
    Ok(())
}

#[tokio::test]
async fn a_cut_resets_idle_connections_and_lets_new_ones_through() -> Result<()> {
    let (gate, mut socket) = connected().await?;
    gate.cut();
    ensure!(hear_all(&mut socket).await? == (String::new(), true));
    let mut next = TcpStream::connect(gate.address()).await?;
    say(&mut next, "again").await?;
    ensure!(hear(&mut next, 5).await? == "again");
    Ok(())
}

/// A store, its front, and a client that comes through it and tries nothing twice.
async fn fronted(folder: &std::path::Path) -> Result<(S3Server, Front, Client)> {
    let s3 = S3Server::start(folder).await?;
    s3.create_bucket("bucket")?;
    s3.put("bucket", "object", "0123456789").await?;
    let front = Front::start(s3.address()).await?;
    let config = s3.client().config().to_builder();
    let config = config.endpoint_url(format!("http://{}", front.address()));
    let client = Client::from_conf(config.retry_config(RetryConfig::disabled()).build());
    ensure!(read(&client).await? == b"0123456789", "without a rule it changes something");
    Ok((s3, front, client))
}

async fn read(client: &Client) -> Result<Vec<u8>> {
    let object = client.get_object().bucket("bucket").key("object").send().await?;
    Ok(object.body.collect().await?.to_vec())
}

#[tokio::test]
async fn so_many_requests_that_match_are_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (_s3, front, client) = fronted(folder.path()).await?;
    for (status, code) in
        [(503, "SlowDown"), (409, "ConditionalRequestConflict"), (412, "PreconditionFailed")]
    {
        front.spoil("PUT /bucket/new", Spoil::Refuse(status), 1);
        let put = || client.put_object().bucket("bucket").key("new").body(b"x".to_vec().into()).send();
        ensure!(read(&client).await.is_ok(), "another request is refused");
        let error = put().await.err().context("not refused")?;
        ensure!(error.code() == Some(code), "{error:?}");
        put().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_request_whose_answer_is_lost_was_carried_out() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (s3, front, client) = fronted(folder.path()).await?;
    front.spoil("PUT /bucket/once", Spoil::LoseAnswer, 1);
    let create = client.put_object().bucket("bucket").key("once").if_none_match("*");
    let error = create.body(b"x".to_vec().into()).send().await.err().context("answered")?;
    ensure!(error.raw_response().is_some_and(|answer| answer.status().as_u16() == 500), "{error:?}");
    ensure!(s3.get("bucket", "once").await? == b"x");
    Ok(())
}

#[tokio::test]
async fn answers_are_cut_short_falsified_and_late() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (_s3, front, client) = fronted(folder.path()).await?;
    front.spoil("GET /bucket/object", Spoil::Truncate(4), 1);
    ensure!(read(&client).await.is_err(), "nothing is missing");

    front.spoil("GET /bucket/object", Spoil::Corrupt, 1);
    let plain = client.get_object().bucket("bucket").key("object").send().await;
    let body = plain?.body.collect().await;
    ensure!(body.is_err(), "the checksum did not show it");

    let delay = Duration::from_millis(300);
    front.spoil("GET /bucket/object", Spoil::Delay(delay), 1);
    let begin = Instant::now();
    read(&client).await?;
    ensure!(begin.elapsed() >= delay && front.left() == 0);

    front.spoil("", Spoil::Refuse(503), 5);
    front.lift();
    read(&client).await.map(drop)
}

#[tokio::test]
async fn everything_is_forbidden_until_that_is_lifted_and_other_faults_stay() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (_s3, front, client) = fronted(folder.path()).await?;
    front.spoil("", Spoil::Refuse(403), usize::MAX);
    front.spoil("GET /bucket/object", Spoil::Refuse(503), 1);
    for _ in 0..2 {
        let error = client.get_object().bucket("bucket").key("object").send().await.err();
        ensure!(error.as_ref().and_then(|error| error.code()) == Some("AccessDenied"), "{error:?}");
    }
    front.lift_all(Spoil::Refuse(403));
    ensure!(read(&client).await.is_err(), "the other fault is gone too");
    read(&client).await.map(drop)
}
