//! Runs a workflow on a picture through comfy-worker: publish, follow, fetch.
//!
//! The picture goes to S3, the job into the queue; progress is shown, outputs are fetched, Ctrl-C
//! cancels. The same call is the same job: it is run once, however often it is published.
//!
//! Exit codes: 0 done, 1 the job failed, 2 wrong call, 3 broker or store failed, 130 cancelled.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use contract::{
    event::{EventKind, JobEvent},
    request::JobRequest,
    result::{JobResult, Status},
};
use futures_util::StreamExt as _;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ErrorKind,
    message::Delivery,
    options::{
        BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions, QueueDeclareOptions,
    },
    types::FieldTable,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::{
    fs,
    sync::watch,
    time::{Instant, MissedTickBehavior, interval_at, sleep},
};
use uuid::Uuid;

const QUEUE: &str = "comfy.jobs";
const EVENTS: &str = "comfy.events";
const CONTROL: &str = "comfy.control";
/// Connections in a row that fail before this gives up.
const TRIES: u32 = 8;
/// An order that no worker heard is lost.
const CANCEL_EVERY: Duration = Duration::from_secs(5);
/// Once the line was cut, the answer may lie in the store alone.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Runs a workflow on a picture through comfy-worker.
#[derive(Parser)]
struct Args {
    /// UI workflow or prompt.
    workflow: PathBuf,
    /// NODE.INPUT that gets the picture.
    input: String,
    /// The picture.
    picture: PathBuf,
    /// The job's id; default: made of the workflow and the picture.
    #[arg(long)]
    id: Option<String>,
    /// Where outputs go.
    #[arg(long, default_value = ".")]
    out: PathBuf,
    /// s3://bucket/folder where pictures go.
    #[arg(long, env = "INPUTS")]
    inputs: String,
    /// The workers' store.uri.
    #[arg(long, env = "RESULTS")]
    results: String,
    /// The broker.
    #[arg(long, env = "AMQP_URL", default_value = "amqp://localhost", hide_env_values = true)]
    amqp_url: String,
}

/// A job on its way: what stays the same over lost connections.
struct Letter {
    id: String,
    body: Vec<u8>,
    replies: String,
    correlation_id: String,
    /// The broker has it: publishing it again could only run it twice.
    confirmed: bool,
    failures: u32,
}

#[tokio::main]
async fn main() -> ExitCode {
    match publish(Args::parse()).await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(3)
        }
    }
}

async fn publish(args: Args) -> Result<u8> {
    // The first Ctrl-C asks for a cancel, the second one ends the program.
    let (ask, cancel) = watch::channel(false);
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            ask.send_replace(true);
        }
        if tokio::signal::ctrl_c().await.is_ok() {
            std::process::exit(130);
        }
    });
    let s3 = s3_client().await;
    let letter = make_job(&s3, &args).await?;
    let result: JobResult = serde_json::from_slice(&run(&args, &s3, letter, &cancel).await?)?;
    match result.status {
        Status::Succeeded => {
            fetch(&s3, &result, &args.out).await?;
            Ok(0)
        }
        Status::Cancelled => {
            eprintln!("cancelled");
            Ok(130)
        }
        Status::Failed => {
            let error = result.error.context("a failed job without an error")?;
            let [code, stage] = [serde_json::to_value(error.code)?, serde_json::to_value(error.stage)?];
            let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            eprintln!("failed: {} in {}: {}", word(&code), word(&stage), error.message);
            Ok(1)
        }
    }
}

async fn s3_client() -> aws_sdk_s3::Client {
    let shared = aws_config::load_defaults(aws_config::BehaviorVersion::latest()).await;
    // Stores beside Amazon's have no host name for each bucket.
    let elsewhere = shared.endpoint_url().is_some() || std::env::var_os("AWS_ENDPOINT_URL_S3").is_some();
    let config = aws_sdk_s3::config::Builder::from(&shared).force_path_style(elsewhere);
    aws_sdk_s3::Client::from_conf(config.build())
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn split(uri: &str) -> Result<(&str, &str)> {
    uri.strip_prefix("s3://")
        .and_then(|rest| rest.split_once('/'))
        .with_context(|| format!("{uri}: no s3://bucket/key"))
}

/// The body, the same bytes for the same call: only then it is the same job.
async fn make_job(s3: &aws_sdk_s3::Client, args: &Args) -> Result<Letter> {
    let picture = fs::read(&args.picture).await.with_context(|| args.picture.display().to_string())?;
    let workflow = fs::read(&args.workflow).await.with_context(|| args.workflow.display().to_string())?;
    let workflow: Value = serde_json::from_slice(&workflow).context("the workflow is no JSON")?;
    // Named by its content: it can be uploaded again, and never changes under a job.
    let ending = args.picture.extension().map(|ending| format!(".{}", ending.display())).unwrap_or_default();
    let source = format!("{}/{}{ending}", args.inputs.trim_end_matches('/'), sha256(&picture));
    let mut job = json!({"version": 1, "workflow": workflow, "inputs": {&args.input: source}});
    let id =
        args.id.clone().unwrap_or_else(|| format!("picture-{}", &sha256(job.to_string().as_bytes())[..32]));
    job["id"] = json!(id);
    let body = job.to_string().into_bytes();
    // What is no job is told here and now, by the rules that the worker has.
    JobRequest::parse(&body, None)?;
    let (bucket, key) = split(&source)?;
    s3.put_object()
        .bucket(bucket)
        .key(key)
        .body(picture.into())
        .send()
        .await
        .context("the picture's upload")?;
    Ok(Letter {
        id,
        body,
        replies: format!("replies.{}", Uuid::new_v4().simple()),
        correlation_id: Uuid::new_v4().to_string(),
        confirmed: false,
        failures: 0,
    })
}

/// The result's bytes, over lost connections.
async fn run(
    args: &Args,
    s3: &aws_sdk_s3::Client,
    mut letter: Letter,
    cancel: &watch::Receiver<bool>,
) -> Result<Vec<u8>> {
    loop {
        let error = match Connection::connect(&args.amqp_url, ConnectionProperties::default()).await {
            Ok(connection) => {
                match publish_and_wait(&connection, &mut letter, args, s3, cancel.clone()).await {
                    Ok(result) => {
                        let _ = connection.close(200, "done".into()).await;
                        return Ok(result);
                    }
                    Err(error) => error,
                }
            }
            Err(error) => error.into(),
        };
        letter.failures += 1;
        if is_final(&error) || letter.failures == TRIES {
            return Err(error);
        }
        eprintln!("{error:#}: connecting again");
        sleep(Duration::from_millis(500) * 2_u32.pow(letter.failures)).await;
    }
}

/// What stays so, anyone who asks again: refused by the broker (403, 404), or found wrong here.
fn is_final(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<lapin::Error>().map(lapin::Error::kind) {
        Some(ErrorKind::ProtocolError(error)) => matches!(error.get_id(), 403 | 404),
        Some(_) => false,
        None => !error.is::<Again>(),
    }
}

/// Worth another try.
#[derive(Debug)]
struct Again(&'static str);

impl std::fmt::Display for Again {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Again {}

async fn publish_and_wait(
    connection: &Connection,
    letter: &mut Letter,
    args: &Args,
    s3: &aws_sdk_s3::Client,
    mut cancel: watch::Receiver<bool>,
) -> Result<Vec<u8>> {
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    // Listen first: events are not kept. The queue goes with the connection, and has its name again on the next.
    let (name, key) = (letter.replies.clone(), format!("job.{}.*", letter.id));
    let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(name.as_str().into(), options, FieldTable::default()).await?;
    let options = QueueBindOptions::default();
    channel
        .queue_bind(name.as_str().into(), EVENTS.into(), key.into(), options, FieldTable::default())
        .await?;
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let mut messages =
        channel.basic_consume(name.as_str().into(), "".into(), options, FieldTable::default()).await?;
    let was_cut = letter.confirmed;
    if !letter.confirmed {
        publish_once(&channel, letter).await?;
        letter.confirmed = true;
        eprintln!("{} is in the queue", letter.id);
    }
    letter.failures = 0;

    let [mut orders, mut looks] = [CANCEL_EVERY, LOOK_EVERY].map(|every| interval_at(Instant::now(), every));
    orders.set_missed_tick_behavior(MissedTickBehavior::Delay);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            message = messages.next() => {
                let message = message.ok_or(Again("the reply queue is gone"))??;
                let id = message.properties.correlation_id().as_ref();
                if message.exchange.as_str() == EVENTS {
                    show(&message)?;
                } else if id.is_some_and(|id| id.as_str() == letter.correlation_id) {
                    return Ok(message.data);
                }
            }
            _ = orders.tick(), if *cancel.borrow() => order(&channel, &letter.id).await?,
            _ = looks.tick(), if was_cut => {
                if let Some(result) = stored_result(s3, &args.results, &letter.id).await? {
                    return Ok(result);
                }
            }
            Ok(()) = cancel.changed() => {}
        }
    }
}

async fn publish_once(channel: &Channel, letter: &Letter) -> Result<()> {
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_delivery_mode(2)
        .with_message_id(letter.id.as_str().into())
        .with_correlation_id(letter.correlation_id.as_str().into())
        .with_reply_to(letter.replies.as_str().into())
        .with_timestamp(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs());
    // Mandatory: without it a message that no queue takes is confirmed, and gone.
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    match channel.basic_publish("".into(), QUEUE.into(), options, &letter.body, properties).await?.await? {
        Confirmation::Ack(None) => Ok(()),
        Confirmation::Ack(Some(_)) => bail!("there is no queue {QUEUE}: has a worker ever run?"),
        _ => Err(Again("the queue is full").into()),
    }
}

/// What the worker sends is this object, byte for byte; `None`: the job is not over.
async fn stored_result(s3: &aws_sdk_s3::Client, results: &str, id: &str) -> Result<Option<Vec<u8>>> {
    let uri = format!("{}/{id}/result.json", results.trim_end_matches('/'));
    let (bucket, key) = split(&uri)?;
    match s3.get_object().bucket(bucket).key(key).send().await {
        Ok(object) => Ok(Some(object.body.collect().await?.to_vec())),
        Err(error) if error.as_service_error().is_some_and(|error| error.is_no_such_key()) => Ok(None),
        Err(error) => Err(error).context("the stored result"),
    }
}

async fn order(channel: &Channel, id: &str) -> Result<()> {
    eprintln!("cancelling");
    let order = json!({"cancel": id}).to_string();
    let options = BasicPublishOptions::default();
    channel
        .basic_publish(CONTROL.into(), "".into(), options, order.as_bytes(), BasicProperties::default())
        .await?
        .await?;
    Ok(())
}

fn show(message: &Delivery) -> Result<()> {
    // A preview is a picture.
    if message.routing_key.as_str().ends_with(".preview") {
        return Ok(());
    }
    let event: JobEvent = serde_json::from_slice(&message.data)?;
    let name = event.kind.name();
    match event.kind {
        EventKind::Progress { fraction, title, .. } => eprintln!("  {name} {:.0}% {title}", fraction * 100.0),
        _ => eprintln!("  {name}"),
    }
    Ok(())
}

/// Stores each output as a file and prints its name.
async fn fetch(s3: &aws_sdk_s3::Client, result: &JobResult, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).await?;
    for output in &result.outputs {
        // Nodes may use the same name; a text has none.
        let name = output.file.as_ref().map_or("text.txt", |file| &file.filename);
        let name = Path::new(name).file_name().unwrap_or_default();
        let path = folder.join(format!("{}-{}-{}", output.node, output.index, name.display()));
        match &output.file {
            None => fs::write(&path, output.text.as_deref().unwrap_or_default()).await?,
            Some(file) => {
                let (bucket, key) = split(&file.uri)?;
                let object = s3.get_object().bucket(bucket).key(key).send().await.context("an output")?;
                let bytes = object.body.collect().await?.to_vec();
                ensure!(file.sha256 == sha256(&bytes), "{} is not what the result says", file.uri);
                fs::write(&path, bytes).await?;
            }
        }
        println!("{}", path.display());
    }
    Ok(())
}
