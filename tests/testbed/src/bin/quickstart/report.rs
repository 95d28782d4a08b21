//! What the quick start prints: a line a step, and the table of times.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

/// Runs one step: a spinner on a terminal while it lasts, then a line with how long it took.
pub(crate) async fn step<T>(
    name: &str,
    work: impl Future<Output = Result<T>>,
    detail: impl FnOnce(&T) -> String,
) -> Result<T> {
    let begin = Instant::now();
    // Draws nothing where standard error is no terminal.
    let spinner = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg}  {elapsed}") {
        spinner.set_style(style);
    }
    spinner.set_message(name.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(100));
    let outcome = work.await;
    spinner.finish_and_clear();
    let value = outcome.with_context(|| name.to_owned())?;
    println!("  {name:<48} {:>8}  {}", duration(begin.elapsed()), detail(&value));
    Ok(value)
}

/// The stages in the order in which a job goes through them, as `result.json` names them.
const STAGES: [(&str, &str); 7] = [
    ("queued_ms", "in RabbitMQ's queue"),
    ("staged_ms", "input fetched from S3"),
    ("converted_ms", "UI workflow converted in Chromium"),
    ("waited_ms", "in ComfyUI's queue"),
    ("executed_ms", "executed by ComfyUI"),
    ("uploaded_ms", "outputs and history uploaded to S3"),
    ("total_ms", "the job in all"),
];

pub(crate) fn timings(timings: &Value, boot: Duration, all: Duration) {
    println!("\nHow long it took");
    println!("  {:<40} {:>10}", "the worker's boot", duration(boot));
    for (key, stage) in STAGES {
        if let Some(ms) = timings[key].as_f64() {
            println!("  {stage:<40} {:>10}", duration(Duration::from_secs_f64(ms.max(0.0) / 1000.0)));
        }
    }
    println!("  {:<40} {:>10}", "from the first server to here", duration(all));
}

fn duration(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{} ms", duration.as_millis())
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}
