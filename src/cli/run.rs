//! `comfy-worker run`: one job here and now, through the same runner as in `serve`.

use std::{path::PathBuf, sync::Arc};

use contract::{ObjectUri, request::JobRequest, result::JobResult};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{
    Context, Failed,
    display::Display,
    fetch,
    inputs::{self, ArgValue, InputArg},
    workflow,
};
use crate::{
    job::{
        message::{JobMessage, JobOutcome},
        runner::Runner,
    },
    lifecycle::{self, ShutdownTokens},
    store::Stores,
};
use connector::{ComfyConnector, ConnectorError};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// UI workflow or prompt: a file, an address, or - for standard input.
    workflow: String,
    /// Set an input of a node: NODE.NAME=VALUE (a file, an address, a number, a text), NODE.NAME:=JSON.
    #[arg(long = "input", value_name = "NODE.NAME=VALUE")]
    inputs: Vec<InputArg>,
    /// Where outputs go.
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    output: PathBuf,
    /// Outputs in ComfyUI's temp folder (previews) too.
    #[arg(long)]
    include_temp: bool,
    /// Longest execution, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = inputs::timeout_seconds, allow_negative_numbers = true)]
    timeout: Option<f64>,
}

pub(super) async fn run(context: Context, args: Args) -> Result<(), Failed> {
    let Context { mut config, json } = context;
    inputs::check(&args.workflow, &args.inputs)?;
    config.inputs.allow.push("file://".to_owned());
    // Who runs it reads what they may read.
    config.inputs.allow.extend(config.store.uri.iter().map(ToString::to_string));
    let stores = Arc::new(Stores::new(&config.store).await);
    let workflow = workflow::read(&args.workflow, &stores).await?;
    let local = |error: std::io::Error| Failed::Environment(format!("{}: {error}", args.output.display()));
    tokio::fs::create_dir_all(&args.output).await.map_err(local)?;
    // The runner's store: on the outputs' own file system, gone with this value.
    let scratch =
        tempfile::Builder::new().prefix(".comfy-worker-").tempdir_in(&args.output).map_err(local)?;
    let scratch_path = std::path::absolute(scratch.path()).map_err(local)?;
    let body = json!({
        "workflow": workflow,
        "inputs": local_addresses(&args.inputs, &scratch_path).await?,
        "output": {"include_temp": args.include_temp},
        "timeout_seconds": args.timeout,
    });
    let body = serde_json::to_vec(&body).map_err(|error| Failed::Usage(error.to_string()))?;
    // Before ComfyUI is started for it.
    if let Err(refused) = JobRequest::parse(&body, None) {
        return Err(Failed::Usage(refused.failure.to_string()));
    }

    let shutdown = ShutdownTokens::default();
    let hard_exit = || std::process::exit(3);
    let signals = lifecycle::on_signals(shutdown.clone(), std::time::Duration::ZERO, hard_exit);
    let _signals =
        signals.map_err(|error| Failed::Environment(format!("cannot listen for signals: {error}")))?;
    let display = Display::new("starting ComfyUI and a browser");
    let boot_display = display.clone();
    let on_line = Arc::new(move |line: &str| boot_display.hint(&format!("starting ComfyUI: {line}")));
    let told = config.connector().await;
    let connector = tokio::select! {
        connector = ComfyConnector::create_watched(told, on_line) => connector,
        () = shutdown.stop.cancelled() => Err(ConnectorError::Killed),
    };
    let ending = match connector {
        Ok(connector) => {
            let runner = Runner::new(
                connector,
                stores.clone(),
                ObjectUri::File(scratch_path.join("store")),
                &config,
                shutdown.clone(),
            );
            let id = format!("{}-{}", workflow::stem(&args.workflow), Uuid::new_v4().simple());
            let incoming = JobMessage::local(body.into(), id);
            let (permit, span) = (runner.scheduler.join(), incoming.span.clone());
            Ok(span.around(runner.run(&incoming, &permit, Arc::new(display.clone()))).await)
        }
        Err(error) => Err(error),
    };
    display.say("stopping ComfyUI");
    ComfyConnector::shutdown_live().await;
    display.finish();
    match ending {
        _ if shutdown.stop.is_cancelled() => Err(Failed::Environment("interrupted".to_owned())),
        Err(error) => Err(error.into()),
        Ok(JobOutcome::Answered { body, .. }) => {
            let result: JobResult =
                serde_json::from_slice(&body).map_err(|error| Failed::Environment(error.to_string()))?;
            let places = fetch::outputs(&result, &stores, &args.output).await?;
            fetch::show(&result, &places, json)
        }
        Ok(JobOutcome::HandBack { reason, .. } | JobOutcome::Reject { reason }) => {
            Err(Failed::Environment(reason))
        }
    }
}

/// The job's `inputs`: local files by their address, standard input by way of a file.
async fn local_addresses(args: &[InputArg], scratch: &std::path::Path) -> Result<Map<String, Value>, Failed> {
    let mut inputs = Map::new();
    for InputArg { address, value } in args {
        let path = match value {
            ArgValue::Value(value) => {
                inputs.insert(address.to_string(), value.clone());
                continue;
            }
            ArgValue::File(path) => std::path::absolute(path),
            ArgValue::Stdin => {
                let path = scratch.join("stdin");
                let piped = async {
                    tokio::fs::write(&path, workflow::read_stdin().await?).await?;
                    Ok(path.clone())
                };
                piped.await
            }
        };
        let path = path.map_err(|error| Failed::Usage(format!("--input {address}: {error}")))?;
        if !path.is_file() {
            return Err(Failed::Usage(format!("--input {address}: there is no file {}", path.display())));
        }
        inputs.insert(address.to_string(), json!({"source": ObjectUri::File(path).to_string()}));
    }
    Ok(inputs)
}
