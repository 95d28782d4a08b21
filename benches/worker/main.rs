//! What docs/performance.md claims, measured: `scripts/bench [ROW …]`.
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

use std::{fs, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum as _};
use connector::ComfyConnector;
use testbed::{Machine, build_folder, checkout, nothing_left, stopped};

use crate::{
    bed::{Bed, Sizes},
    figure::Figure,
    report::Conditions,
    rows::Row,
};

/// Measures what docs/performance.md claims.
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
    /// Puts the figures into docs/performance.md and docs/figures.svg, too: measured whole, on a quiet machine
    #[arg(long, conflicts_with_all = ["rows", "quick", "megabytes"])]
    update: bool,
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
    let conditions = Conditions { machine: Machine::here(), quick: arguments.quick };
    let wanted: &[Row] = if arguments.rows.is_empty() { Row::value_variants() } else { &arguments.rows };
    let measured = tokio::select! {
        measured = Box::pin(rows::measure_all(&bed, wanted)) => Some(measured),
        () = stopped() => None,
    };
    // Ended here, not with the process: whatever has a folder under ours must be gone before it is.
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
    publish(&figures, &conditions)?;
    if arguments.update && failed.is_empty() {
        let (document, plot) = (checkout().join("docs/performance.md"), checkout().join("docs/figures.svg"));
        fs::write(&document, report::in_document(&fs::read_to_string(&document)?, &figures, &conditions)?)?;
        fs::write(&plot, plot::svg(&figures, &conditions.to_string()))?;
        println!("{}\n{}", document.display(), plot.display());
    }
    for row in &failed {
        eprintln!("{row} could not be measured, see above");
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints the table and writes the files.
fn publish(figures: &[Figure], conditions: &Conditions) -> Result<()> {
    println!("\n{conditions}\n\n{}", report::table(figures));
    let bounds = report::bounds(figures);
    if !bounds.is_empty() {
        println!("What bounds those that miss their goal:\n\n{bounds}");
    }
    let target = build_folder()?;
    let json = target.join("bench.json");
    fs::write(&json, format!("{:#}\n", report::json(figures, conditions)))?;
    let svg = target.join("bench.svg");
    fs::write(&svg, plot::svg(figures, &conditions.to_string()))?;
    println!("{}\n{}", json.display(), svg.display());
    Ok(())
}
