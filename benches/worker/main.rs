//! What the README claims, measured: `scripts/bench [ROW …]`.
//!
//! Each figure stands beside another one of the same run, on the stand-in ComfyUI and, with
//! `COMFYUI_DIR` set (and `COMFYUI_PYTHON`), on a real one. A row that does not hold is reported with
//! what bounds it; only a row that could not be measured makes the run fail.

mod bare;
mod bed;
mod binary;
mod busy;
mod cold;
mod conversion;
mod figure;
mod large;
mod memory;
mod overhead;
mod plot;
mod prompts;
mod queue;
mod report;
mod rows;
mod scale;
mod throughput;

// Shared with the longer benchmark of conversions alone.
#[allow(clippy::unwrap_used, reason = "that benchmark fails by panicking")]
#[path = "../conversion/page.rs"]
mod page;
#[allow(clippy::unwrap_used, dead_code, reason = "that benchmark fails by panicking")]
#[path = "../conversion/sight.rs"]
mod sight;
#[allow(clippy::unwrap_used, dead_code, reason = "that benchmark fails by panicking")]
#[path = "../conversion/templates.rs"]
mod templates;

use std::{fs, path::Path, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum as _};
use comfy_worker::ComfyConnector;
use testbed::{checkout, processes_with_env_or_cwd_beneath, scratch_root, wait_for};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    bed::{Bed, Sizes},
    figure::Figure,
    report::Machine,
    rows::Row,
};

/// What was started is gone by then.
const END: Duration = Duration::from_secs(30);

/// Measures what the README claims.
#[derive(Parser)]
#[command(name = "scripts/bench")]
struct Arguments {
    /// Rows to measure; none: all
    rows: Vec<Row>,
    /// Names the rows and ends
    #[arg(long)]
    list: bool,
    /// Small sizes: does it work, not how fast
    #[arg(long)]
    quick: bool,
    /// Size of the large file in MiB
    #[arg(long, value_name = "MIB")]
    megabytes: Option<u64>,
    /// Puts the figures into README.md and docs/figures.svg, too: measured whole, on a quiet machine
    #[arg(long, conflicts_with_all = ["rows", "quick", "megabytes"])]
    readme: bool,
    /// Cargo says so
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        for row in Row::value_variants() {
            println!("{:<11} {}", row.name(), row.about());
        }
        return ExitCode::SUCCESS;
    }
    match run(&arguments).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> Result<ExitCode> {
    let bed = Bed::new(Sizes::new(arguments.quick, arguments.megabytes))?;
    let machine = Machine::here(arguments.quick);
    let wanted: &[Row] = if arguments.rows.is_empty() { Row::value_variants() } else { &arguments.rows };
    let measured = tokio::select! {
        measured = Box::pin(rows::measure_all(&bed, wanted)) => Some(measured),
        () = stopped() => None,
    };
    // Ended here, not with the process: whatever has a folder beneath ours must be gone before it is.
    ComfyConnector::shutdown_live().await;
    let stopped = bed.stop().await;
    let folder = bed.folder.clone();
    drop(bed);
    let gone = nothing_left(&folder).await;
    fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    stopped.and(gone)?;
    let Some((figures, failed)) = measured else {
        eprintln!("stopped; nothing is left running");
        return Ok(ExitCode::from(130));
    };
    publish(&figures, &machine)?;
    if arguments.readme && failed.is_empty() {
        let (readme, plot) = (checkout().join("README.md"), checkout().join("docs/figures.svg"));
        fs::write(&readme, report::in_readme(&fs::read_to_string(&readme)?, &figures, &machine)?)?;
        fs::create_dir_all(checkout().join("docs"))?;
        fs::write(&plot, plot::svg(&figures, &machine.describe()))?;
        println!("{}\n{}", readme.display(), plot.display());
    }
    for row in &failed {
        eprintln!("{row} could not be measured, see above");
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints the table and writes the files.
fn publish(figures: &[Figure], machine: &Machine) -> Result<()> {
    println!("\n{}\n\n{}", machine.describe(), report::table(figures));
    let bounds = report::bounds(figures);
    if !bounds.is_empty() {
        println!("What bounds those that miss their goal:\n\n{bounds}");
    }
    let target = scratch_root()?;
    let target = target.parent().context("no build folder")?;
    let json = target.join("bench.json");
    fs::write(&json, format!("{:#}\n", report::json(figures, machine)))?;
    let svg = target.join("bench.svg");
    fs::write(&svg, plot::svg(figures, &machine.describe()))?;
    println!("{}\n{}", json.display(), svg.display());
    Ok(())
}

async fn stopped() {
    let (Ok(mut int), Ok(mut term)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = int.recv() => {}
        _ = term.recv() => {}
    }
}

/// Waits for the end of everything that has to do with our folder, but for the guard that ends with us.
async fn nothing_left(folder: &Path) -> Result<()> {
    let left = || {
        let mut left = processes_with_env_or_cwd_beneath(folder);
        left.retain(|process| !process.command.contains("comfy-worker-guard"));
        left
    };
    let gone = wait_for("the end of every process", END, || async { left().is_empty() }).await;
    gone.with_context(|| format!("left: {:#?}", left()))
}
