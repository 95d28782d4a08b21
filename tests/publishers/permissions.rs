//! What docs/operating.md grants, granted here word for word: users that have no other permission.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use testbed::{RabbitMq, Worker, checkout};
use tokio::time::timeout;

use crate::bed::Bed;

/// Users as the document names them; each has its name for a password.
pub(crate) const WORKER: &str = "worker";
pub(crate) const LOCKED: &str = "locked-worker";
pub(crate) const PUBLISHER: &str = "publisher";

const COMMAND: Duration = Duration::from_secs(60);

pub(crate) async fn grant(broker: &RabbitMq) -> Result<()> {
    let document = std::fs::read_to_string(checkout().join("docs/operating.md"))?;
    let grants: Vec<Vec<String>> = document
        .lines()
        .filter(|line| line.starts_with("rabbitmqctl set_permissions "))
        .map(|line| shell_words::split(line).with_context(|| line.to_owned()))
        .collect::<Result<_>>()?;
    let users: Vec<&str> = grants.iter().filter_map(|words| Some(words.get(4)?.as_str())).collect();
    ensure!(users == [WORKER, LOCKED, PUBLISHER], "docs/operating.md grants permissions to {users:?}");
    for user in users {
        broker.ctl(&["add_user", user, user]).await?;
    }
    for words in &grants {
        let words: Vec<&str> = words[1..].iter().map(String::as_str).collect();
        broker.ctl(&words).await?;
    }
    Ok(())
}

pub(crate) fn url(url: &str, user: &str) -> String {
    url.replace("guest:guest", &format!("{user}:{user}"))
}

/// A command's standard output, once it has succeeded.
async fn call(bed: &Bed, user: &str, arguments: &[&str]) -> Result<String> {
    let builder = bed
        .builder()
        .set("amqp.url", url(&bed.broker().url(), user))
        .set("amqp.declare", (user == WORKER).to_string());
    let mut command = builder.command(arguments)?;
    let output = timeout(COMMAND, command.kill_on_drop(true).output()).await??;
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{arguments:?} as {user}: {}\n{said}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[tokio::test]
async fn every_command_works_with_the_permissions_of_the_guide() -> Result<()> {
    let bed = Bed::shared().await?;
    let workflow = checkout().join("tests/fixtures/workflows/invert-ui.json");
    let workflow = workflow.to_str().context("no UTF-8")?;
    bed.s3.put("inputs", "permissions.png", testbed::landscape()).await?;
    for user in [WORKER, LOCKED] {
        let id = format!("permissions-{user}");
        let out = tempfile::tempdir()?;
        let input = "1.image=s3://inputs/permissions.png";
        let arguments = [
            "submit",
            workflow,
            "--id",
            &id,
            "--input",
            input,
            "--wait",
            "-o",
            out.path().to_str().context("no UTF-8")?,
        ];
        call(bed, user, &arguments).await?;
        ensure!(std::fs::read_dir(out.path())?.count() == 1, "{user}: no picture");
        call(bed, user, &["cancel", &format!("{id}-before-it-came")]).await?;
        // A letter to look at, to send to work again, and to throw away.
        let broker = url(&bed.broker().url(), PUBLISHER);
        dead_letter(&broker, &format!("{id}-dead")).await?;
        let listed = call(bed, user, &["dead", "list"]).await?;
        ensure!(listed.contains(&format!("{id}-dead")), "{user}: {listed}");
        call(bed, user, &["dead", "drop", &format!("{id}-dead")]).await?;
    }
    // Another worker, which declares nothing. It would take others' jobs, and is killed in the end.
    let _alone = bed.turns.write().await;
    let dir = tempfile::tempdir()?;
    let engine = testbed::Engine::standin(&dir.path().join("comfyui"))?.with_small_frontend();
    let mut second = Worker::builder(env!("CARGO_BIN_EXE_comfy-worker"), dir.path())?
        .store(&bed.s3, "s3://results/jobs")
        .engine(&engine)
        .set("amqp.url", url(&bed.broker().url(), LOCKED))
        .set("amqp.declare", "false")
        .start()
        .await?;
    second.wait_ready(Duration::from_secs(180)).await
}

/// Puts a job where the broker puts those that it gave up.
async fn dead_letter(url: &str, id: &str) -> Result<()> {
    use lapin::{BasicProperties, Confirmation, Connection, ConnectionProperties, options};
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(options::ConfirmSelectOptions::default()).await?;
    let options = options::BasicPublishOptions { mandatory: true, ..Default::default() };
    let properties = BasicProperties::default().with_message_id(id.into()).with_delivery_mode(2);
    let body = br#"{"workflow": {}}"#;
    let sent =
        channel.basic_publish("".into(), "comfy.jobs.dead".into(), options, body, properties).await?.await?;
    ensure!(matches!(sent, Confirmation::Ack(None)), "there are no dead letters: {sent:?}");
    connection.close(200, "done".into()).await?;
    Ok(())
}

/// What the guide does not grant is refused.
#[tokio::test]
async fn publishers_may_not_take_jobs_or_declare_queues() -> Result<()> {
    use lapin::{Connection, ConnectionProperties, options, types::FieldTable};
    let bed = Bed::shared().await?;
    let connection =
        Connection::connect(&url(&bed.broker().url(), PUBLISHER), ConnectionProperties::default()).await?;
    let refused = |error: lapin::Error| error.to_string().contains("ACCESS_REFUSED");
    let channel = connection.create_channel().await?;
    let taken = channel.basic_get("comfy.jobs".into(), options::BasicGetOptions::default()).await;
    ensure!(taken.is_err_and(refused), "a publisher can take jobs");
    let channel = connection.create_channel().await?;
    let declare = channel.queue_declare(
        "comfy.mine".into(),
        options::QueueDeclareOptions::default(),
        FieldTable::default(),
    );
    ensure!(declare.await.is_err_and(refused), "a publisher can declare any queue");
    let channel = connection.create_channel().await?;
    let purge = channel.queue_purge("comfy.jobs".into(), options::QueuePurgeOptions::default());
    ensure!(purge.await.is_err_and(refused), "a publisher can purge the queue");
    Ok(())
}
