//! `comfy-worker submit`: publish a job; with `--wait` follow it and fetch what it made.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use base64::Engine;
use bytes::Bytes;
use contract::{JobId, ObjectUri, event::JobEvent, request::JobRequest, result::JobResult};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{
    Context, Failed,
    display::Display,
    fetch,
    inputs::{self, ArgValue, InputArg},
    print, workflow,
};
use crate::{
    config::Config,
    queue::{Broker, Followed, JobProperties, PublishError},
    store::{Content, ObjectStore, StoreError, Stores},
    telemetry::Traces,
};
use connector::stage::FileName;

/// Longest publishing.
const PUBLISH_LIMIT: Duration = Duration::from_secs(30);
/// How often the store is asked for the result when the broker's answer may have been lost.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How a job becomes small enough for the broker.
const SMALLER: &str = "put the workflow into a bucket and submit its s3:// address (the job's workflow_uri), give \
                       files by an s3:// address, or set store.uri and files are uploaded";
/// Largest result read.
const LARGEST_RESULT: u64 = 64 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// UI workflow or prompt: a file, an address, or - for standard input.
    workflow: String,
    /// Set an input of a node: NODE.NAME=VALUE (a file, an address, a number, a text), NODE.NAME:=JSON.
    #[arg(long = "input", value_name = "NODE.NAME=VALUE")]
    inputs: Vec<InputArg>,
    /// The job's id; default: the workflow's name and a random part.
    #[arg(long)]
    id: Option<JobId>,
    /// Longest execution, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = inputs::timeout_seconds, allow_negative_numbers = true)]
    timeout: Option<f64>,
    /// Where outputs go instead of the worker's store.
    #[arg(long, value_name = "URI")]
    output_uri: Option<ObjectUri>,
    /// Outputs in ComfyUI's temp folder (previews) too.
    #[arg(long)]
    include_temp: bool,
    /// Follow the job to its end and fetch its outputs.
    #[arg(long)]
    wait: bool,
    /// Where fetched outputs go.
    #[arg(short, long, value_name = "DIR", default_value = ".", requires = "wait")]
    output: PathBuf,
}

pub(super) async fn submit(context: Context, args: Args) -> Result<(), Failed> {
    let Context { config, json } = context;
    inputs::check(&args.workflow, &args.inputs)?;
    let stores = Stores::new(&config.store).await;
    let stem = workflow::stem(&args.workflow);
    let id =
        args.id.clone().map_or_else(|| format!("{stem}-{}", Uuid::new_v4().simple()), |id| id.to_string());
    let mut job = Map::new();
    job.insert("version".into(), json!(1));
    job.insert("id".into(), json!(id));
    if args.workflow.starts_with("s3://") {
        job.insert("workflow_uri".into(), json!(args.workflow));
    } else {
        job.insert("workflow".into(), workflow::read(&args.workflow, &stores).await?);
    }
    job.insert("inputs".into(), Value::Object(publishable(&args.inputs, &config, &stores, &id).await?));
    job.insert("output".into(), json!({"uri": args.output_uri, "include_temp": args.include_temp}));
    if let Some(seconds) = args.timeout {
        job.insert("timeout_seconds".into(), json!(seconds));
    }
    let body = serde_json::to_vec(&job).map_err(|error| Failed::Usage(error.to_string()))?;
    if let Err(refused) = JobRequest::parse(&body, None) {
        return Err(Failed::Usage(refused.failure.to_string()));
    }
    if body.len() as u64 > config.job.max_message_bytes {
        return Err(Failed::Usage(format!(
            "the job has {} bytes, more than job.max_message_bytes; {SMALLER}",
            body.len()
        )));
    }

    let traces = Traces::start(&config).map_err(Failed::Usage)?;
    let broker = Broker::connect(&config.amqp, &config.worker.id).await?;
    let outcome = publish_and_wait(&broker, &traces, &config, &args, &stores, &id, body.into()).await;
    tokio::join!(broker.close(), traces.close());
    match outcome? {
        None if json => print::result(json!({"id": id})),
        None => print::result(id),
        Some(result) => {
            let result: JobResult = serde_json::from_slice(&result)
                .map_err(|error| Failed::Environment(format!("the result cannot be read: {error}")))?;
            let places = fetch::outputs(&result, &stores, &args.output).await?;
            return fetch::show(&result, &places, json);
        }
    }
    Ok(())
}

/// The result, when it was to be waited for.
async fn publish_and_wait(
    broker: &Broker,
    traces: &Traces,
    config: &Config,
    args: &Args,
    stores: &Stores,
    id: &str,
    body: Bytes,
) -> Result<Option<Bytes>, Failed> {
    let environment = |error: &dyn std::fmt::Display| Failed::Environment(error.to_string());
    // Follow first: events are not kept.
    let mut follow = match args.wait {
        true => Some(broker.follow(id).await.map_err(|error| environment(&error))?),
        false => None,
    };
    let publishing = traces.publishing(&config.amqp.queue, id, body.len());
    let properties = JobProperties {
        message_id: Some(id.to_owned()),
        correlation_id: Some(id.to_owned()),
        reply_to: follow.as_ref().map(|follow| follow.reply_to().to_owned()),
        traceparent: publishing.traceparent(),
        tracestate: publishing.tracestate(),
        ..JobProperties::default()
    };
    let submitted = broker.submit(body, &properties, Instant::now() + PUBLISH_LIMIT).await;
    publishing.ended(&submitted);
    submitted.map_err(|error| match error {
        PublishError::TooLarge(why) => {
            Failed::Usage(format!("the broker does not take the job: {why}; {SMALLER}"))
        }
        error => environment(&error),
    })?;
    let Some(follow) = &mut follow else { return Ok(None) };
    let display = Display::new(&format!("job {id} is in the queue"));
    let mut lost = false;
    let result = loop {
        tokio::select! {
            followed = follow.next() => match followed {
                Some(Followed::Event(event)) => {
                    if let Ok(event) = serde_json::from_value::<JobEvent>(event) {
                        display.show(&event);
                    }
                }
                Some(Followed::Preview(_)) => {}
                Some(Followed::Result(result)) => break Ok(result),
                Some(Followed::Gap) => lost = true,
                None => break Err(Failed::Environment("the connection to the broker is gone".to_owned())),
            },
            // The broker's answer may have been lost with a connection; the store has it too.
            () = sleep(LOOK_EVERY), if lost && config.store.uri.is_some() => {
                if let Some(result) = stored_result(config, stores, id).await {
                    break Ok(result);
                }
            }
            _ = tokio::signal::ctrl_c() => {
                break Err(Failed::Environment(format!("no longer waiting; the job {id} stays in the queue")));
            }
        }
    };
    display.finish();
    result.map(Some)
}

async fn stored_result(config: &Config, stores: &Stores, id: &str) -> Option<Bytes> {
    let uri = config.store.uri.as_ref()?.join(&format!("{id}/result.json")).ok()?;
    match stores.read(&uri, LARGEST_RESULT).await {
        Ok(result) => Some(result),
        Err(StoreError::NotFound { .. }) => None,
        Err(error) => {
            tracing::warn!(%error, "cannot look for the result");
            None
        }
    }
}

/// The job's `inputs`. Local files travel by the store where there is one, else in the message.
async fn publishable(
    args: &[InputArg],
    config: &Config,
    stores: &Stores,
    id: &str,
) -> Result<Map<String, Value>, Failed> {
    let mut inputs = Map::new();
    for InputArg { address, value } in args {
        let wrong = |error: &dyn std::fmt::Display| Failed::Usage(format!("--input {address}: {error}"));
        let (name, content) = match value {
            ArgValue::Value(value) => {
                inputs.insert(address.to_string(), value.clone());
                continue;
            }
            ArgValue::Stdin => {
                let bytes = workflow::read_stdin().await.map_err(|error| wrong(&error))?;
                ("stdin".to_owned(), Content::Bytes(bytes.into()))
            }
            ArgValue::File(path) => {
                let size = std::fs::metadata(path)
                    .map_err(|error| wrong(&format!("{}: {error}", path.display())))?
                    .len();
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                (name, Content::File { path: path.clone(), size })
            }
        };
        let name = FileName::parse(&name).map_err(|error| wrong(&error))?;
        let source = match &config.store.uri {
            Some(base) => upload(base, stores, id, &address.to_string(), name.as_str(), content).await?,
            None => data_uri(content).map_err(|error| wrong(&error))?,
        };
        inputs.insert(address.to_string(), json!({"source": source, "name": name.as_str()}));
    }
    Ok(inputs)
}

async fn upload(
    base: &ObjectUri,
    stores: &Stores,
    id: &str,
    address: &str,
    name: &str,
    content: Content,
) -> Result<String, Failed> {
    let place = format!("{id}/inputs/{}/{name}", address.replace(':', "-"));
    let uri = base.join(&place).map_err(|error| Failed::Usage(error.to_string()))?;
    let content_type = mime_guess::from_path(Path::new(name)).first_or_octet_stream();
    let stored = stores.put(&uri, content, content_type.essence_str()).await;
    stored.map_err(|error| Failed::Environment(error.to_string()))?;
    Ok(uri.to_string())
}

fn data_uri(content: Content) -> std::io::Result<String> {
    let bytes = match content {
        Content::Bytes(bytes) => bytes,
        Content::File { path, .. } => std::fs::read(path)?.into(),
    };
    Ok(format!("data:;base64,{}", base64::engine::general_purpose::STANDARD.encode(bytes)))
}
