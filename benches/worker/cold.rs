//! From the start of the worker until it takes jobs, beside ComfyUI alone until it answers.

use std::time::Instant;

use anyhow::Result;
use testbed::{Worker, cpu_seconds, median};

use crate::{
    bed::{Bed, On, drain, seconds_until_ok},
    figure::Figure,
};

/// Seconds.
const IMPORTS: &str = "8";

pub(crate) async fn measure(bed: &Bed, on: On) -> Result<Vec<Figure>> {
    let name = format!("cold-{}", on.name().to_lowercase());
    let mut engine = bed.engine(on, &name)?;
    if on == On::Standin {
        // It imports nothing: as long as ComfyUI 0.3.64 without custom nodes takes on two cores.
        engine.command.extend(["--boot-delay".into(), IMPORTS.into()]);
    }
    let builder = bed.worker(&name, &name, &engine).await?;
    let (mut bare, mut ours, mut phases) = (Vec::new(), Vec::new(), String::new());
    let (mut bare_cpu, mut our_cpu) = (Vec::new(), Vec::new());
    // Once each to begin with, not counted: the disk's caches are warm for both.
    for round in 0..=bed.sizes.starts {
        let begin = Instant::now();
        let running = engine.spawn().await?;
        let alone = seconds_until_ok(&format!("{}/system_stats", running.url()), begin).await?;
        let alone_cpu = cpu_seconds(running.pid());
        running.stop().await?;
        let begin = Instant::now();
        let worker = builder.clone().start().await?;
        let ready = seconds_until_ok(&worker.admin_url("/readyz"), begin).await?;
        let ready_cpu = cpu_seconds(worker.pid());
        phases = boot_phases(&worker).await?;
        drain(worker).await?;
        if round > 0 {
            bare.push(alone);
            ours.push(ready);
            bare_cpu.push(alone_cpu);
            our_cpu.push(ready_cpu);
        }
    }
    let (ready, alone) = (median(&ours), median(&bare));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let bound = format!(
        "{:.1} s more than ComfyUI alone. {cores} cores share {:.1} s of CPU, of which ComfyUI's boot alone takes {:.1}: \
         ready is never earlier than after {:.1} s. And the page gets node definitions and extensions only when ComfyUI answers; \
         the last start: {phases}",
        ready - alone,
        median(&our_cpu),
        median(&bare_cpu),
        median(&our_cpu) / cores as f64,
    );
    let figure = Figure::new("cold", "start to ready ÷ ComfyUI alone", ready / alone, "")
        .on(on.name())
        .at_most(1.1)
        .beside(format!("{ready:.1} s, ComfyUI {alone:.1} s (medians of {})", ours.len()))
        .bound(bound);
    Ok(vec![figure])
}

/// When the phases of the worker's start were over, as it says itself.
async fn boot_phases(worker: &Worker) -> Result<String> {
    let text = reqwest::get(worker.admin_url("/metrics")).await?.text().await?;
    let phase = |line: &str| -> Option<String> {
        let (phase, seconds) = line.strip_prefix("comfy_worker_boot_seconds{phase=\"")?.split_once("\"} ")?;
        Some(format!("{phase} {:.1} s", seconds.parse::<f64>().ok()?))
    };
    Ok(text.lines().filter_map(phase).collect::<Vec<_>>().join(", "))
}
