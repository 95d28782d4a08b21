//! The command line: one file a subcommand. Exit codes: 0 done, 1 the job failed, 2 bad usage or
//! configuration, 3 the environment (ComfyUI, browser, broker, store) failed.
//!
//! With `--json` standard output holds JSON values only, one a line; of what ends with 2 or 3 the last
//! is `{"error": {"code": "usage" | "environment", "message": …}}`.

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod cancel;
mod check;
mod completions;
mod convert;
mod dead;
mod display;
mod fetch;
mod inputs;
mod letter;
mod man;
mod print;
mod run;
mod serve;
mod submit;
mod workflow;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Arg, ArgAction, ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::{
    config::{
        Config, LogFormat, Mistakes, Sources,
        settings::{PREFIX, SETTINGS},
    },
    queue::QueueError,
    telemetry,
};
use connector::{ConnectorError, child};

/// The serverless ComfyUI worker: workflow jobs from RabbitMQ, results to S3.
#[derive(Debug, Parser)]
#[command(name = "comfy-worker", version, max_term_width = 110)]
struct Cli {
    /// Configuration file, TOML or JSON (the Python ComfyConnector's file too).
    #[arg(long, global = true, value_name = "FILE", env = "COMFY_WORKER_CONFIG")]
    config: Option<PathBuf>,
    /// Print results for programs.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Take jobs from the queue until told to drain (SIGTERM, SIGINT). The container's entry point.
    ///
    /// A drain takes no more jobs, gives back what has not started, lets the running job finish within
    /// worker.grace, else interrupts it and gives it back, and ends all that was started. A second signal
    /// ends at once.
    Serve,
    /// Run one workflow here and now: no broker, no S3.
    ///
    /// ComfyUI and Chromium are started for it and ended after it.
    Run(run::Args),
    /// Publish a job; with --wait follow it and fetch its outputs.
    ///
    /// Local files travel by the store where one is configured, else in the message.
    Submit(submit::Args),
    /// Cancel a queued or running job.
    ///
    /// Within 12 seconds, also when ComfyUI ignores interrupts. A job that waits is answered as cancelled
    /// once a worker gets it; an id that nobody has used yet is cancelled beforehand.
    Cancel(cancel::Args),
    /// Turn UI workflows into prompts.
    ///
    /// One start of ComfyUI and Chromium for all of them; the failure of one does not stop the others.
    Convert(convert::Args),
    /// Check configuration, ComfyUI, browser, broker and bucket, a line each.
    Check,
    /// The dead letters: look at them, retry them, throw them away.
    Dead(dead::Args),
    /// Print a script by which a shell completes this command line.
    Completions(completions::Args),
    /// Print the manual, or write a page for each command.
    Man(man::Args),
}

/// How a command ended, beside success.
#[derive(Debug)]
pub(crate) enum Failed {
    /// 1: the job failed; its result has been shown.
    Job,
    /// 2: something about the call or the configuration must be changed.
    Usage(String),
    /// 3: ComfyUI, browser, broker or store failed.
    Environment(String),
}

impl From<Mistakes> for Failed {
    fn from(mistakes: Mistakes) -> Self {
        Self::Usage(mistakes.to_string())
    }
}

impl From<ConnectorError> for Failed {
    fn from(error: ConnectorError) -> Self {
        match error.to_string() {
            problem if error.is_misconfiguration() => Self::Usage(problem),
            problem => Self::Environment(problem),
        }
    }
}

impl From<QueueError> for Failed {
    fn from(error: QueueError) -> Self {
        match error {
            QueueError::Misconfigured(reason) => Self::Usage(reason),
            error => Self::Environment(error.to_string()),
        }
    }
}

/// What every command gets.
#[derive(Debug)]
struct Context {
    config: Config,
    json: bool,
}

/// Parses the arguments, runs the command, answers its exit code.
#[must_use]
pub fn run() -> ExitCode {
    let parsed = command().try_get_matches().and_then(|matches| {
        let cli = Cli::from_arg_matches(&matches)?;
        Ok((cli, matches))
    });
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return refuse_arguments(&error),
    };
    let json = cli.json;
    let (code, kind, message) = match dispatch(cli, &matches) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failed::Job) => return ExitCode::from(1),
        Err(Failed::Usage(message)) => (2, USAGE, message),
        Err(Failed::Environment(message)) => (3, "environment", message),
    };
    let message = telemetry::redact(&message);
    print::note(format!("comfy-worker: {message}"));
    if json {
        print::result(error_json(kind, &message));
    }
    ExitCode::from(code)
}

const USAGE: &str = "usage";
/// How long what blocks has to end after all else has.
const THREADS_LIMIT: Duration = Duration::from_secs(1);

fn error_json(code: &str, message: &str) -> serde_json::Value {
    serde_json::json!({"error": {"code": code, "message": message}})
}

/// Help and version too come as an "error" of the parser.
fn refuse_arguments(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    if !error.use_stderr() {
        return ExitCode::SUCCESS;
    }
    if std::env::args_os().any(|argument| argument == "--json") {
        let text = error.to_string();
        let problem = text.lines().take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
        print::result(error_json(USAGE, problem.trim_start_matches("error: ")));
    }
    ExitCode::from(2)
}

/// The command line with a flag for every setting.
fn command() -> clap::Command {
    SETTINGS.iter().fold(Cli::command(), |command, setting| {
        let help = format!("{} [{}{}]", setting.help, PREFIX, setting.key.replace('.', "_").to_uppercase());
        command.arg(
            Arg::new(setting.key)
                .long(setting.flag())
                .value_name("VALUE")
                .help(help)
                .help_heading("Settings")
                .global(true)
                .hide_short_help(true)
                .action(ArgAction::Set),
        )
    })
}

fn dispatch(cli: Cli, matches: &ArgMatches) -> Result<(), Failed> {
    // These need no configuration, and packaging has none.
    match &cli.command {
        Command::Completions(args) => {
            completions::completions(args, command());
            return Ok(());
        }
        Command::Man(args) => return man::man(args, Cli::command()),
        _ => {}
    }
    // Global flags may stand before or after a subcommand; clap hands them down.
    let deepest = std::iter::successors(Some(matches), |matches| Some(matches.subcommand()?.1)).last();
    let matches = deepest.unwrap_or(matches);
    let given = SETTINGS.iter().filter_map(|setting| {
        Some((setting.key.to_owned(), matches.get_one::<String>(setting.key)?.clone()))
    });
    let sources = Sources::of_process(cli.config.as_deref(), given.collect())?;
    let mut config = Config::load(&sources)?;
    // A container's log tells the whole story to programs; a person sees progress and warnings.
    let serving = matches!(cli.command, Command::Serve);
    if config.log.level.is_empty() {
        (if serving { "info" } else { "warn" }).clone_into(&mut config.log.level);
    }
    if config.log.format == LogFormat::Auto && !serving {
        config.log.format = LogFormat::Text;
    }
    telemetry::init(&config);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failed::Environment(format!("cannot start: {error}")))?;
    let context = Context { config, json: cli.json };
    let outcome = runtime.block_on(async {
        let _orphans = child::adopt_orphans();
        match cli.command {
            Command::Serve => Box::pin(serve::serve(context)).await,
            Command::Run(args) => run::run(context, args).await,
            Command::Submit(args) => submit::submit(context, args).await,
            Command::Cancel(args) => cancel::cancel(context, args).await,
            Command::Convert(args) => convert::convert(context, args).await,
            Command::Check => Box::pin(check::check(context)).await,
            Command::Dead(args) => Box::pin(dead::dead(context, args)).await,
            Command::Completions(_) | Command::Man(_) => Ok(()),
        }
    });
    // A thread that waits for a file system must not hold up the end.
    runtime.shutdown_timeout(THREADS_LIMIT);
    outcome
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        super::command().debug_assert();
    }
}
