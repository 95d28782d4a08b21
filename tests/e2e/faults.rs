//! What only the stand-in can be told to do: memory, hangs, crashes. After each the next job works.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    answer::{Answer, ask},
    bench::Bench,
    prompts::{alone, save},
    refusals::says,
    suite::Suite,
};

/// A seed that no earlier test used.
fn seed() -> u64 {
    u64::from(Uuid::new_v4().as_fields().0)
}

async fn ask_node(bench: &Bench, class: &str, inputs: Value, timeout: f64) -> Result<Answer> {
    ask(bench, json!({"workflow": alone(class, inputs), "timeout_seconds": timeout})).await
}

async fn next_job_works(bench: &Bench) -> Result<()> {
    let answer = ask(bench, json!({"workflow": save(0x01_02_03, "next")})).await?.succeeded()?;
    answer.only_picture(bench).await?.ensure_color(0x01_02_03, 0)
}

pub(crate) async fn out_of_memory(suite: &Suite) -> Result<()> {
    let bench = suite.standin().await?;
    // It passes only after POST /free.
    let inputs = json!({"mode": "until_free", "seed": seed()});
    ask_node(&bench, "StandinOutOfMemory", inputs, 60.0).await?.succeeded()?;

    let before = bench.stats().await?;
    let answer =
        ask_node(&bench, "StandinOutOfMemory", json!({"mode": "always", "seed": seed()}), 60.0).await?;
    let error = answer.failed("out_of_memory", "run")?;
    says(error, &["torch.OutOfMemoryError", "Allocation on device"])?;
    ensure!(error["node"] == "1" && error["traceback"].is_array(), "{error}");
    ensure!(answer.result["history"].is_string(), "{:#}", answer.result);
    let executed = |stats: &Value| stats["prompts"].as_array().map_or(0, Vec::len);
    let count = executed(&bench.stats().await?) - executed(&before);
    ensure!(count == 2, "{count} executions");
    next_job_works(&bench).await
}

pub(crate) async fn hanging_nodes(suite: &Suite) -> Result<()> {
    let bench = suite.standin().await?;
    let before = bench.stats().await?;
    let answer = ask_node(&bench, "StandinHang", json!({"seed": seed()}), 0.5).await?;
    says(answer.failed("timeout", "run")?, &["0.5 s"])?;
    let executed = answer.result["timings"]["total_ms"].as_u64().unwrap_or(0);
    ensure!((500..5_000).contains(&executed), "{}", answer.result["timings"]);
    ensure!(bench.stats().await?["pid"] == before["pid"], "ComfyUI was restarted though it let go");
    next_job_works(&bench).await
}

pub(crate) async fn nodes_that_ignore_an_interrupt(suite: &Suite) -> Result<()> {
    let bench = suite.standin().await?;
    let before = bench.stats().await?;
    let begin = Instant::now();
    let inputs = json!({"seconds": 300.0, "seed": seed()});
    let answer = ask_node(&bench, "StandinIgnoreInterrupt", inputs, 0.5).await?;
    says(answer.failed("timeout", "run")?, &["0.5 s"])?;
    ensure!(begin.elapsed() < Duration::from_secs(60), "after {:?}", begin.elapsed());
    next_job_works(&bench).await?;
    ensure!(bench.stats().await?["pid"] != before["pid"], "ComfyUI was not restarted");
    Ok(())
}

pub(crate) async fn crashes(suite: &Suite) -> Result<()> {
    let bench = suite.standin().await?;
    let inputs = json!({"how": "kill", "exit_code": 1, "after_seconds": 0.3, "seed": seed()});
    let answer = ask_node(&bench, "StandinCrash", inputs, 60.0).await?;
    let error = answer.failed("engine_crashed", "run")?;
    says(error, &["ComfyUI ended while it ran the prompt"])?;
    // Once, and once more after a restart.
    let queued = answer.event_names().iter().filter(|name| **name == "queued").count();
    ensure!(queued == 2, "{:?}", answer.event_names());
    next_job_works(&bench).await
}

/// A failure of another kind has its own try here: the first one says nothing about it.
pub(crate) async fn failures_of_two_kinds(suite: &Suite) -> Result<()> {
    let bench = suite.standin().await?;
    let workflow = json!({
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
        "2": {"class_type": "StandinOutOfMemory", "inputs": {"image": ["1", 0], "mode": "once", "seed": seed()}},
        "3": {"class_type": "StandinCrash", "inputs": {
            "image": ["2", 0], "how": "exit", "exit_code": 1, "after_seconds": 0.5, "seed": seed()}},
    });
    let answer = ask(&bench, json!({"workflow": workflow, "timeout_seconds": 60.0})).await?;
    // Out of memory, a crash, and a new process that has forgotten the first.
    answer.failed("out_of_memory", "run")?;
    let queued = answer.event_names().iter().filter(|name| **name == "queued").count();
    ensure!(queued == 3, "{:?}", answer.event_names());
    next_job_works(&bench).await
}

/// After a CUDA error every node of that process fails: only another process helps.
pub(crate) async fn lost_devices(suite: &Suite) -> Result<()> {
    let bench = suite.standin().await?;
    let before = bench.stats().await?;
    // Words are no proof, not even the right ones: ComfyUI is tried before it is killed.
    for exception_type in ["KeyError", "RuntimeError"] {
        let said = json!({"message": "CUDA error: said a publisher", "exception_type": exception_type, "seed": seed()});
        ask_node(&bench, "StandinFail", said, 60.0).await?.failed("execution_error", "run")?;
        next_job_works(&bench).await?;
    }
    ensure!(bench.stats().await?["pid"] == before["pid"], "ComfyUI was restarted for some words");
    let answer = ask_node(&bench, "StandinCudaError", json!({"sticky": true, "seed": seed()}), 60.0).await?;
    says(answer.failed("engine_crashed", "run")?, &["CUDA error: an illegal memory access"])?;
    next_job_works(&bench).await?;
    ensure!(bench.stats().await?["pid"] != before["pid"], "ComfyUI was not restarted");
    Ok(())
}
