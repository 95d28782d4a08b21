//! `comfy-worker convert`: UI workflows in, prompts out, one boot for all.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Context, Failed, display::Display, workflow};
use crate::{
    connector::ComfyConnector,
    job::{apply::is_ui_workflow, runner::Stops},
    lifecycle,
    store::Stores,
    text::one_line,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// UI workflows: files, addresses, or - for standard input.
    #[arg(required = true)]
    workflows: Vec<String>,
    /// One file of the same name each into DIR; else all to standard output.
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
}

pub(super) async fn convert(context: Context, args: Args) -> Result<(), Failed> {
    let config = context.config;
    if let Some(folder) = &args.output {
        check_names(&args.workflows)?;
        let made = std::fs::create_dir_all(folder);
        made.map_err(|error| Failed::Usage(format!("{}: {error}", folder.display())))?;
    }
    let stores = Stores::new(&config.store).await;
    let stops = Stops::default();
    let signals = lifecycle::on_signals(stops.clone(), std::time::Duration::ZERO, || std::process::exit(3));
    let _signals =
        signals.map_err(|error| Failed::Environment(format!("cannot listen for signals: {error}")))?;
    let display = Display::new("starting ComfyUI and a browser");
    let work = async {
        let connector =
            ComfyConnector::create(&config).await.map_err(|error| Failed::Environment(error.to_string()))?;
        let mut failed = 0;
        for name in &args.workflows {
            display.say(&format!("converting {name}"));
            if let Err(reason) = convert_one(&connector, &stores, name, args.output.as_deref()).await {
                failed += 1;
                eprintln!("{name}: {reason}");
            }
        }
        Ok(failed)
    };
    let outcome = tokio::select! {
        outcome = work => outcome,
        () = stops.stop.cancelled() => Err(Failed::Environment("interrupted".to_owned())),
    };
    ComfyConnector::shutdown_live().await;
    display.finish();
    match outcome? {
        0 => Ok(()),
        _ => Err(Failed::Job),
    }
}

/// Into one folder go workflows of different names only.
fn check_names(workflows: &[String]) -> Result<(), Failed> {
    let mut names: Vec<&str> = workflows.iter().map(|name| file_name(name)).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair.first() == pair.last()) {
        Some(pair) => {
            let name = pair.first().copied().unwrap_or_default();
            Err(Failed::Usage(format!("two workflows are called {name}: they would become one file")))
        }
        None => Ok(()),
    }
}

fn file_name(argument: &str) -> &str {
    match argument {
        "-" => "stdin.json",
        argument => argument.rsplit('/').next().unwrap_or(argument),
    }
}

async fn convert_one(
    connector: &ComfyConnector,
    stores: &Stores,
    name: &str,
    folder: Option<&Path>,
) -> Result<(), String> {
    let workflow = workflow::read(name, stores).await.map_err(|error| match error {
        Failed::Usage(reason) | Failed::Environment(reason) => reason,
        Failed::Job => String::new(),
    })?;
    if !is_ui_workflow(&workflow) {
        return Err("no UI workflow: it has no `nodes`".to_owned());
    }
    let conversion = connector.prompt_from_workflow(&workflow).await.map_err(|error| error.to_string())?;
    for warning in &conversion.warnings {
        eprintln!("{name}: warning: {}", one_line(warning, 500));
    }
    let text =
        serde_json::to_string_pretty(&Value::Object(conversion.prompt)).map_err(|error| error.to_string())?;
    match folder {
        None => println!("{text}"),
        Some(folder) => {
            let path = folder.join(file_name(name));
            let part = folder.join(format!(".{}.part", uuid::Uuid::new_v4().simple()));
            let written = std::fs::write(&part, text + "\n").and_then(|()| std::fs::rename(&part, &path));
            written.map_err(|error| format!("{}: {error}", path.display()))?;
        }
    }
    Ok(())
}
