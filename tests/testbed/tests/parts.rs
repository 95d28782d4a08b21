//! The test bed's own promises: parts start, keep their data, and leave nothing behind.

use std::{
    env,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions},
    types::FieldTable,
};
use testbed::{Engine, RabbitMq, S3Server, processes_with_env_or_cwd_beneath, scratch_root, wait_for};

/// Tells this test program, started again by itself, to hold a RabbitMQ in that folder.
const HOLD: &str = "TESTBED_HOLD";

fn scratch() -> Result<tempfile::TempDir> {
    let root = scratch_root()?;
    std::fs::create_dir_all(&root)?;
    Ok(tempfile::tempdir_in(root)?)
}

async fn durable_queue(url: &str) -> Result<lapin::Channel> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare("kept".into(), durable, FieldTable::default()).await?;
    Ok(channel)
}

#[tokio::test]
async fn rabbitmq_keeps_a_durable_message_over_a_restart_and_leaves_no_process() -> Result<()> {
    let dir = scratch()?;
    let begin = Instant::now();
    let broker = RabbitMq::start(dir.path()).await?;
    println!("RabbitMQ started in {:?}", begin.elapsed());

    let channel = durable_queue(&broker.url()).await?;
    let persistent = BasicProperties::default().with_delivery_mode(2);
    let publish =
        channel.basic_publish("".into(), "kept".into(), BasicPublishOptions::default(), b"hello", persistent);
    ensure!(publish.await?.await?.is_ack(), "the broker did not take the message");

    let url = broker.url();
    let begin = Instant::now();
    broker.restart().await?;
    println!("RabbitMQ restarted in {:?}", begin.elapsed());
    ensure!(broker.url() == url, "the restart moved it to another port");
    let channel = durable_queue(&url).await?;
    let message = channel.basic_get("kept".into(), BasicGetOptions { no_ack: true }).await?;
    ensure!(message.context("the message is gone")?.data == b"hello");
    ensure!(broker.ctl(&["list_queues", "name"]).await?.contains("kept"));

    let begin = Instant::now();
    broker.stop().await?;
    println!("RabbitMQ stopped in {:?}", begin.elapsed());
    let left = processes_with_env_or_cwd_beneath(dir.path());
    ensure!(left.is_empty(), "left: {left:?}");
    Ok(())
}

#[tokio::test]
async fn rabbitmq_comes_back_after_a_kill() -> Result<()> {
    let dir = scratch()?;
    let broker = RabbitMq::start(dir.path()).await?;
    durable_queue(&broker.url()).await?;
    broker.kill().await?;
    ensure!(processes_with_env_or_cwd_beneath(dir.path()).is_empty());
    broker.restart().await?;
    durable_queue(&broker.url()).await?;
    broker.stop().await
}

/// Does nothing unless the test below starts it.
#[tokio::test]
async fn holder() -> Result<()> {
    let Some(dir) = env::var_os(HOLD).map(PathBuf::from) else { return Ok(()) };
    let broker = RabbitMq::start(&dir).await?;
    let engine = Engine::from_env(&dir.join("comfyui"))?.start().await?;
    std::fs::write(dir.join("holding"), broker.url() + &engine.url())?;
    std::future::pending().await
}

#[tokio::test]
async fn nothing_outlives_a_killed_test_process() -> Result<()> {
    let dir = scratch()?;
    // Not through `ProcessGroup`: only the holder itself is killed, none of what it started.
    let mut holder = Command::new(env::current_exe()?)
        .args(["--exact", "holder"])
        .env(HOLD, dir.path())
        .stdout(Stdio::null())
        .spawn()?;
    let holding = dir.path().join("holding");
    let ready = wait_for("the holder", Duration::from_secs(300), || async { holding.exists() }).await;
    let running: Vec<String> =
        processes_with_env_or_cwd_beneath(dir.path()).iter().map(ToString::to_string).collect();
    holder.kill()?;
    holder.wait()?;
    ready?;
    for part in ["beam", "epmd", "erl_child_setup", "inet_gethost", "main.py"] {
        ensure!(running.iter().any(|process| process.contains(part)), "{part} was not running: {running:#?}");
    }
    wait_for("the end of what the killed process had started", Duration::from_secs(10), || async {
        processes_with_env_or_cwd_beneath(dir.path()).is_empty()
    })
    .await
    .with_context(|| format!("left: {:#?}", processes_with_env_or_cwd_beneath(dir.path())))
}

#[tokio::test]
async fn s3_gives_back_what_it_was_given() -> Result<()> {
    let dir = scratch()?;
    let s3 = S3Server::start(dir.path()).await?;
    s3.create_bucket("pictures")?;
    let picture = testbed::landscape();
    s3.put("pictures", "in/landscape.png", picture.clone()).await?;
    ensure!(s3.get("pictures", "in/landscape.png").await? == picture);
    ensure!(std::fs::read(s3.path("pictures", "in/landscape.png"))? == picture);
    ensure!(s3.list("pictures", "in/").await? == [("in/landscape.png".to_owned(), picture.len() as u64)]);

    let again = s3.client().put_object().bucket("pictures").key("in/landscape.png").if_none_match("*");
    ensure!(again.body(b"other".to_vec().into()).send().await.is_err(), "If-None-Match was not honoured");

    let stranger = reqwest::get(format!("{}/pictures/in/landscape.png", s3.endpoint())).await?;
    ensure!(stranger.status() == 403, "read without credentials: {}", stranger.status());
    Ok(())
}

#[tokio::test]
async fn comfyui_starts_answers_and_leaves_no_process() -> Result<()> {
    let dir = scratch()?;
    let engine = Engine::from_env(dir.path())?;
    let begin = Instant::now();
    let running = engine.start().await?;
    println!("{} started in {:?}", engine.describe(), begin.elapsed());
    let nodes: serde_json::Value = reqwest::get(running.url() + "/object_info").await?.json().await?;
    ensure!(nodes.get("ImageInvert").is_some(), "no ImageInvert among its nodes");
    running.stop().await?;
    let left = processes_with_env_or_cwd_beneath(dir.path());
    ensure!(left.is_empty(), "left: {left:?}");
    Ok(())
}
