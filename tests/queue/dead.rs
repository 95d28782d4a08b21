//! The dead letters: looked at without harm, sent to work again, thrown away.

use std::{path::Path, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use comfy_worker::{
    config::AmqpConfig,
    queue::{Broker, DeadLetter, DeathRecord, Settlement},
};
use lapin::{BasicProperties, types::FieldTable};
use serde_json::{Value, json};
use testbed::{RabbitMq, Signal, Worker, WorkerBuilder, wait_for};

use super::{SOON, next, observer::Observer, shared, submit};

/// Jobs that a worker rejects.
async fn rejected(config: &AmqpConfig, bodies: &[&'static str]) -> Result<()> {
    let broker = Broker::connect(config, "worker-1").await?;
    let mut consumer = broker.consume(1);
    for body in bodies {
        submit(&broker, body).await?;
        next(&mut consumer).await?.settle(Settlement::DeadLetter).await;
    }
    broker.close().await;
    Ok(())
}

/// What is among the dead letters, by a look that leaves everything where it is.
async fn look(broker: &Broker) -> Result<Vec<(Bytes, Option<DeathRecord>)>> {
    let mut letters = broker.dead_letters().await?;
    let mut seen = Vec::new();
    while let Some(letter) = letters.next().await? {
        seen.push((letter.message.body.clone(), letter.message.death.clone()));
        letters.keep(letter).await?;
    }
    letters.give_back().await?;
    Ok(seen)
}

/// RabbitMQ 4 gives every quorum queue a limit, and the dead letters have no dead letters.
#[tokio::test]
async fn looking_at_the_dead_letters_again_and_again_loses_none() -> Result<()> {
    const LIMIT: i64 = 2;
    let mut config = shared("looked").await?;
    let observer = Observer::connect(&config).await?;
    Broker::connect(&config, "operator").await?.close().await;
    observer.delete("looked.jobs.dead").await?;
    observer.limited_queue("looked.jobs.dead", LIMIT).await?;
    observer.bind("looked.jobs.dead", "comfy.dead", "looked.jobs").await?;
    config.declare = false;
    let bodies = ["1", "2", "3", "4", "5"];
    rejected(&config, &bodies).await?;
    let all_there = || async { observer.count("looked.jobs.dead").await == Some((5, 0)) };
    wait_for("the dead letters", SOON, all_there).await?;

    let broker = Broker::connect(&config, "operator").await?;
    let first = look(&broker).await?;
    assert_eq!(first.iter().map(|(body, _)| body.as_ref()).collect::<Vec<_>>(), bodies.map(str::as_bytes));
    for (_, death) in &first {
        let death = death.as_ref().context("no reason")?;
        assert_eq!(
            (death.reason.as_str(), death.queue.as_str(), death.count),
            ("rejected", "looked.jobs", 1)
        );
        assert!(death.at.is_some());
    }
    for pass in 2..=25 {
        // The same letters in the same order, for the same reasons.
        assert_eq!(look(&broker).await?, first, "pass {pass}");
    }
    // A reader that dies does not lose them either, wherever it is.
    for read in [1, 3, 5] {
        let reader = Broker::connect(&config, "killed").await?;
        let mut letters = reader.dead_letters().await?;
        for _ in 0..read {
            let letter = letters.next().await?.context("a letter")?;
            letters.keep(letter).await?;
        }
        drop((letters, reader));
        wait_for("their return", SOON, all_there).await?;
        look(&broker).await?;
        look(&broker).await?;
    }
    broker.close().await;

    // The limit is real: a careless reader loses one at the latest when all have come back so often.
    for _ in 0..=LIMIT * 5 {
        if !observer.reject("looked.jobs.dead").await? {
            break;
        }
    }
    wait_for("a lost letter", SOON, || async {
        observer.count("looked.jobs.dead").await.is_some_and(|(ready, _)| ready < 5)
    })
    .await
}

#[tokio::test]
async fn a_retried_letter_is_the_job_that_was_published() -> Result<()> {
    let config = shared("revived").await?;
    let broker = Broker::connect(&config, "worker-1").await?;
    let observer = Observer::connect(&config).await?;
    let published = BasicProperties::default()
        .with_message_id("m".into())
        .with_correlation_id("c".into())
        .with_reply_to("r".into())
        .with_content_type("application/json".into())
        .with_timestamp(1_700_000_000)
        .with_priority(3)
        .with_user_id("guest".into())
        .with_headers(FieldTable::default());
    observer.publish(&config.queue, b"{}", published).await?;
    let mut consumer = broker.consume(1);
    next(&mut consumer).await?.settle(Settlement::DeadLetter).await;
    wait_for("the letter", SOON, || async { observer.count("revived.jobs.dead").await == Some((1, 0)) })
        .await?;

    let mut letters = broker.dead_letters().await?;
    let letter: DeadLetter = letters.next().await?.context("no letter")?;
    letters.retry(letter).await?;
    letters.give_back().await?;
    wait_for("its end", SOON, || async { observer.count("revived.jobs.dead").await == Some((0, 0)) }).await?;
    let again = next(&mut consumer).await?;
    let message = &again.message;
    assert_eq!(
        (message.body.as_ref(), message.redelivered, message.delivery_count),
        (b"{}".as_slice(), false, 0)
    );
    assert_eq!(message.death, None);
    assert_eq!(message.message_id.as_deref(), Some("m"));
    assert_eq!(message.correlation_id.as_deref(), Some("c"));
    assert_eq!(message.reply_to.as_deref(), Some("r"));
    assert!(message.published_at.is_some());
    again.settle(Settlement::Ack).await;
    broker.close().await;
    Ok(())
}

/// The command line, at a broker and a store of files.
struct Desk {
    builder: WorkerBuilder,
    folder: tempfile::TempDir,
}

struct Called {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Desk {
    async fn new(config: &AmqpConfig) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let builder = Worker::builder(env!("CARGO_BIN_EXE_comfy-worker"), folder.path())?
            .broker(RabbitMq::shared().await?)
            .set("store.uri", format!("file://{}", folder.path().join("results").display()))
            .set("amqp.queue", &config.queue)
            .set("amqp.events_exchange", &config.events_exchange);
        Ok(Self { builder, folder })
    }

    async fn call(&self, arguments: &[&str], code: i32) -> Result<Called> {
        let mut command = self.builder.command(&[&["dead"], arguments].concat())?;
        let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await?;
        let [out, err] =
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        let called = Called { code: output.status.code(), out, err };
        let ended = called.code == Some(code);
        ensure!(ended, "{arguments:?}: exit code {:?}\n{}\n{}", called.code, called.out, called.err);
        let steers = |c: char| c.is_control() && c != '\n';
        ensure!(!called.out.contains(steers) && !called.err.contains(steers), "{:?}", called.out);
        Ok(called)
    }

    async fn json(&self, arguments: &[&str], code: i32) -> Result<Vec<Value>> {
        let called = self.call(&[arguments, &["--json"]].concat(), code).await?;
        Ok(called.out.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
    }

    /// The ids of the letters, in their order.
    async fn ids(&self) -> Result<Vec<String>> {
        let letters = self.json(&["list"], 0).await?;
        Ok(letters.iter().filter_map(|letter| Some(letter["id"].as_str()?.to_owned())).collect())
    }

    fn answered(&self, job: &str) -> Result<std::path::PathBuf> {
        let result = self.folder.path().join("results").join(job).join("result.json");
        std::fs::create_dir_all(result.parent().unwrap_or(Path::new("/")).join("attempts"))?;
        std::fs::write(result.with_file_name("attempts").join("1.json"), "{}")?;
        std::fs::write(&result, "{}")?;
        Ok(result)
    }
}

#[tokio::test]
async fn the_command_shows_retries_and_drops_letters() -> Result<()> {
    let config = shared("command").await?;
    let desk = Desk::new(&config).await?;
    ensure!(desk.call(&["list"], 0).await?.out.is_empty());
    let observer = Observer::connect(&config).await?;
    let job = |id: &str| json!({"id": id, "workflow": {}, "api_key_comfy_org": "hunter2"}).to_string();
    let one = BasicProperties::default().with_reply_to("replies\u{1b}[31m".into());
    observer.publish(&config.queue, job("one").as_bytes(), one).await?;
    let named = BasicProperties::default().with_message_id("named".into());
    observer.publish(&config.queue, b"\x1b]0;title\x07 \xff\x9b31m no job", named).await?;
    for body in
        [b"\x1b[2Jnameless".as_slice(), job("two").as_bytes(), job("two").as_bytes(), job("three").as_bytes()]
    {
        observer.publish(&config.queue, body, BasicProperties::default()).await?;
    }
    let worker = Broker::connect(&config, "worker-1").await?;
    let mut consumer = worker.consume(1);
    for _ in 0..6 {
        next(&mut consumer).await?.settle(Settlement::DeadLetter).await;
    }
    wait_for("the letters", SOON, || async { observer.count("command.jobs.dead").await == Some((6, 0)) })
        .await?;

    let letters = desk.json(&["list"], 0).await?;
    ensure!(letters.len() == 6, "{letters:#?}");
    ensure!(letters[0]["id"] == "one" && letters[0]["reason"] == "rejected" && letters[0]["count"] == 1);
    ensure!(letters[0]["bytes"] == job("one").len() && letters[0]["reply_to"] == "replies\u{1b}[31m");
    ensure!(letters[0]["at"].as_str().is_some_and(|at| at.ends_with('Z')), "{}", letters[0]);
    let nameless = letters[2]["id"].as_str().context("an id")?.to_owned();
    ensure!(letters[1]["id"] == "named" && nameless.len() == 64, "{letters:#?}");
    let list = desk.call(&["list"], 0).await?;
    ensure!(list.out.lines().count() == 6 && list.out.contains("replies\\u{1b}[31m"), "{}", list.out);

    let shown = desk.call(&["show", "one"], 0).await?;
    ensure!(
        shown.out.contains("\"workflow\": {}") && shown.out.contains("rejected in command.jobs"),
        "{}",
        shown.out
    );
    ensure!(!shown.out.contains("hunter2"), "a credential is shown");
    let shown = desk.call(&["show", "named"], 0).await?;
    ensure!(shown.out.contains("\\u001b]0;title\\u0007"), "{}", shown.out);
    let both = desk.json(&["show", "two"], 0).await?;
    ensure!(both.len() == 2 && both.iter().all(|letter| letter["body"]["id"] == "two"), "{both:#?}");
    ensure!(both[0]["properties"]["headers"]["x-death"][0]["reason"] == "rejected", "{both:#?}");
    let raw = desk.json(&["show", &nameless], 0).await?;
    ensure!(raw[0]["body_base64"] == "G1sySm5hbWVsZXNz", "{raw:#?}");
    let unknown = desk.call(&["show", "four"], 1).await?;
    ensure!(unknown.err.contains("four: there is no such letter"), "{}", unknown.err);

    // What is not there does not stop the others; letters of one id go together.
    let retried = desk.json(&["retry", "four", "two", "five"], 1).await?;
    let count = |key: &str| retried.iter().filter(|line| line.get(key).is_some()).count();
    ensure!((count("action"), count("error")) == (2, 2), "{retried:#?}");
    for _ in 0..2 {
        let again = next(&mut consumer).await?;
        ensure!(again.message.body == job("two") && again.message.death.is_none());
        again.settle(Settlement::Ack).await;
    }
    // An answered job would only be answered again.
    let result = desk.answered("three")?;
    let refused = desk.call(&["retry", "three", "one"], 1).await?;
    ensure!(
        refused.err.contains("three: has a result already") && refused.err.contains("--again"),
        "{}",
        refused.err
    );
    ensure!(refused.out == "one: back in the queue\n", "{}", refused.out);
    next(&mut consumer).await?.settle(Settlement::Ack).await;
    ensure!(result.is_file() && desk.ids().await? == ["named", nameless.as_str(), "three"]);
    // Another body's result is not this letter's to remove.
    let marker = result.with_file_name("attempts").join("1.json");
    let others = json!({"version": 1, "attempt": 1, "worker": "w", "body_sha256": "00", "closed": null});
    std::fs::write(&marker, others.to_string())?;
    let refused = desk.call(&["retry", "--again", "three"], 1).await?;
    ensure!(refused.err.contains("three: the job of this id had another body"), "{}", refused.err);
    ensure!(result.is_file() && desk.ids().await? == ["named", nameless.as_str(), "three"]);
    std::fs::write(&marker, "{}")?;
    desk.call(&["retry", "--again", "three"], 0).await?;
    ensure!(!result.exists() && !result.with_file_name("attempts").join("1.json").exists());
    let again = next(&mut consumer).await?;
    ensure!(again.message.body == job("three"));
    again.settle(Settlement::Ack).await;

    let dropped = desk.call(&["drop", "named"], 0).await?;
    ensure!(dropped.out == "named: thrown away\n", "{}", dropped.out);
    ensure!(desk.ids().await? == [nameless.as_str()]);
    desk.call(&["retry", "--all"], 0).await?;
    next(&mut consumer).await?.settle(Settlement::DeadLetter).await;
    wait_for("it", SOON, || async { observer.count("command.jobs.dead").await == Some((1, 0)) }).await?;
    desk.call(&["drop", "--all"], 0).await?;
    wait_for("no letter", SOON, || async { observer.count("command.jobs.dead").await == Some((0, 0)) })
        .await?;
    worker.close().await;
    wait_for("no job", SOON, || async { observer.count(&config.queue).await == Some((0, 0)) }).await
}

#[tokio::test]
async fn a_look_that_is_interrupted_loses_nothing() -> Result<()> {
    const LETTERS: u32 = 1000;
    let config = shared("interrupted").await?;
    let desk = Desk::new(&config).await?;
    desk.call(&["list"], 0).await?;
    let observer = Observer::connect(&config).await?;
    for number in 0..LETTERS {
        let body = number.to_string();
        observer.publish("interrupted.jobs.dead", body.as_bytes(), BasicProperties::default()).await?;
    }
    let mut command = desk.builder.command(&["dead", "list"])?;
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn()?;
    let pid =
        rustix::process::Pid::from_raw(i32::try_from(child.id().context("its id")?)?).context("no id")?;
    let ready = || async { observer.count("interrupted.jobs.dead").await.map(|(ready, _)| ready) };
    wait_for("its first letters", SOON, || async { ready().await.is_some_and(|ready| ready < LETTERS) })
        .await?;
    rustix::process::kill_process(pid, Signal::INT)?;
    let output = child.wait_with_output().await?;
    ensure!(output.status.code() == Some(3), "{output:?}");
    ensure!(String::from_utf8_lossy(&output.stderr).contains("interrupted"), "{output:?}");
    wait_for("their return", SOON, || async { ready().await == Some(LETTERS) }).await?;
    Ok(())
}
