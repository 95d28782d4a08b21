//! `comfy-worker convert`: UI workflows in, prompts out, one boot for all.

use std::path::{Path, PathBuf};

use contract::{prompt::is_ui_workflow, text::one_line};
use serde_json::{Value, json};

use super::{Context, Failed, display::Display, print, workflow};
use crate::{
    lifecycle::{self, ShutdownTokens},
    store::Stores,
};
use connector::ComfyConnector;

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
    let Context { config, json } = context;
    if args.workflows.iter().filter(|name| *name == "-").count() > 1 {
        return Err(Failed::Usage("- (standard input) can stand for one workflow only".to_owned()));
    }
    if let Some(folder) = &args.output {
        check_names(&args.workflows)?;
        let made = std::fs::create_dir_all(folder);
        made.map_err(|error| Failed::Usage(format!("{}: {error}", folder.display())))?;
    }
    let stores = Stores::new(&config.store).await;
    let shutdown = ShutdownTokens::default();
    let signals =
        lifecycle::on_signals(shutdown.clone(), std::time::Duration::ZERO, || std::process::exit(3));
    let _signals =
        signals.map_err(|error| Failed::Environment(format!("cannot listen for signals: {error}")))?;
    let display = Display::new("starting ComfyUI and a browser");
    let work = async {
        let connector = ComfyConnector::create(config.connector().await).await?;
        let mut failed = 0_u32;
        for name in &args.workflows {
            display.say(&format!("converting {name}"));
            let converted = convert_one(&connector, &stores, name, args.output.as_deref()).await;
            failed += u32::from(converted.is_err());
            show(name, converted, json);
        }
        Ok(failed)
    };
    let outcome = tokio::select! {
        outcome = work => outcome,
        () = shutdown.stop.cancelled() => Err(Failed::Environment("interrupted".to_owned())),
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

struct Converted {
    prompt: Value,
    /// Where it is, unless it goes to standard output.
    path: Option<PathBuf>,
    warnings: Vec<String>,
}

/// Prompts as they are; with `--json` one line a workflow, failures too.
fn show(name: &str, converted: Result<Converted, String>, as_json: bool) {
    let warnings = converted.as_ref().map(|converted| converted.warnings.as_slice()).unwrap_or_default();
    for warning in warnings {
        print::note(format!("{name}: warning: {}", one_line(warning, 500)));
    }
    match converted {
        Err(reason) => {
            print::note(format!("{name}: {reason}"));
            if as_json {
                print::result(
                    json!({"workflow": name, "error": {"code": "conversion_failed", "message": reason}}),
                );
            }
        }
        Ok(Converted { prompt, path, warnings }) if as_json => {
            print::result(match path {
                Some(path) => json!({"workflow": name, "path": path, "warnings": warnings}),
                None => json!({"workflow": name, "prompt": prompt, "warnings": warnings}),
            });
        }
        Ok(Converted { prompt, path: None, .. }) => print::result(format!("{prompt:#}")),
        Ok(_) => {}
    }
}

async fn convert_one(
    connector: &ComfyConnector,
    stores: &Stores,
    name: &str,
    folder: Option<&Path>,
) -> Result<Converted, String> {
    let workflow = workflow::read(name, stores).await.map_err(|error| match error {
        // The name is said before the reason.
        Failed::Usage(reason) | Failed::Environment(reason) => {
            reason.strip_prefix(&format!("{name}: ")).unwrap_or(&reason).to_owned()
        }
        Failed::Job => String::new(),
    })?;
    if !is_ui_workflow(&workflow) {
        return Err("no UI workflow: it has no `nodes`".to_owned());
    }
    let conversion = connector.prompt_from_workflow(&workflow).await.map_err(|error| error.to_string())?;
    let prompt = Value::Object(conversion.prompt);
    let path = folder.map(|folder| write(folder, file_name(name), &prompt)).transpose()?;
    Ok(Converted { prompt, path, warnings: conversion.warnings })
}

/// Whole or not at all.
fn write(folder: &Path, name: &str, prompt: &Value) -> Result<PathBuf, String> {
    let path = folder.join(name);
    let part = folder.join(format!(".{}.part", uuid::Uuid::new_v4().simple()));
    let written = std::fs::write(&part, format!("{prompt:#}\n")).and_then(|()| std::fs::rename(&part, &path));
    if let Err(error) = written {
        let _ = std::fs::remove_file(&part);
        return Err(format!("{}: {error}", path.display()));
    }
    Ok(path)
}
