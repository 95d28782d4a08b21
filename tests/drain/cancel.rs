//! `comfy-worker cancel` and orders by the control exchange, at every stage of a job.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use testbed::{Fault, Gate, wait_for};

use super::{
    ENDING, SOON,
    bed::{Bed, slow_job, staged_job},
    site::{Site, end, wait_running},
};

/// The promise, and what a machine that builds and tests beside it may add.
const CANCEL_LIMIT: Duration = Duration::from_secs(12 + 5);

fn is_cancelled(result: &Value) -> bool {
    result["status"] == "cancelled" && result["error"]["code"] == "cancelled"
}

#[tokio::test]
async fn a_queued_job_is_cancelled_in_the_store_and_never_run() -> Result<()> {
    let bed = Bed::new("cancel-queued").await?;
    let site = Site::new(&bed, "a")?;
    let worker = site.boot().await?;
    bed.publish(&slow_job("over", 0.01)).await?;
    ensure!(bed.answer("over").await?["status"] == "succeeded");
    bed.publish(&slow_job("first", 600.0)).await?;
    wait_running(&worker, "first").await?;
    bed.publish(&slow_job("second", 600.0)).await?;
    let (code, out, err) = site.command(&["cancel", "second"]).await?;
    ensure!((code, out.as_str()) == (0, "second: cancelled"), "{code} {out} {err}");
    // Twice is once.
    let (code, out, _) = site.command(&["cancel", "second", "--json"]).await?;
    ensure!(
        code == 0 && serde_json::from_str::<Value>(&out)? == json!({"id": "second", "status": "cancelled"})
    );
    let (code, out, err) = site.command(&["cancel", "first"]).await?;
    ensure!((code, out.as_str()) == (0, "first: cancelled"), "{code} {out} {err}");
    let results = bed.answers(&["first", "second"]).await?;
    ensure!(results.values().all(is_cancelled), "{results:#?}");
    ensure!(results["first"]["error"]["stage"] == "run", "{results:#?}");
    ensure!(results["second"]["error"]["stage"] == "accept", "a worker began it: {results:#?}");

    let (code, out, err) = site.command(&["cancel", "over"]).await?;
    ensure!(
        code == 1 && out.is_empty() && err.contains("finished before it was cancelled (succeeded)"),
        "{err}"
    );
    let (code, _, err) = site.command(&["cancel", "../first"]).await?;
    ensure!(code == 2 && err.contains("../first"), "{err}");
    site.finish(worker, site.initial()).await?;
    bed.wait_queued(0).await
}

/// A publisher that has nothing but AMQP.
#[tokio::test]
async fn an_order_cancels_a_job_that_waits_and_one_that_runs() -> Result<()> {
    let bed = Bed::new("cancel-order").await?;
    let site = Site::new(&bed, "a")?;
    let worker = site.boot().await?;
    bed.publish(&slow_job("running", 600.0)).await?;
    wait_running(&worker, "running").await?;
    bed.publish(&slow_job("waiting", 600.0)).await?;
    for order in [json!({"cancel": ["waiting"]}), json!("drain"), json!({"cancel": "not here"})] {
        bed.order(&order).await?;
    }
    bed.order(&json!({"cancel": "waiting"})).await?;
    let stored = bed.s3.path("results", "jobs/waiting/result.json");
    wait_for("the result of the job that waits", SOON, || async { stored.is_file() }).await?;
    bed.order(&json!({"cancel": "running"})).await?;
    let results = bed.answers(&["running", "waiting"]).await?;
    ensure!(results.values().all(is_cancelled), "{results:#?}");
    site.finish(worker, site.initial()).await?;
    bed.wait_queued(0).await
}

#[tokio::test]
async fn a_job_that_ignores_interrupts_is_cancelled_within_12_seconds() -> Result<()> {
    let bed = Bed::new("cancel-deaf").await?;
    let site = Site::standin(&bed, "a")?;
    let worker = site.boot().await?;
    let mut job = slow_job("deaf", 600.0);
    job["workflow"]["2"]["class_type"] = json!("StandinIgnoreInterrupt");
    job["metadata"] = json!({"mine": 1});
    bed.publish(&job).await?;
    wait_running(&worker, "deaf").await?;
    let begin = Instant::now();
    let (code, out, err) = site.command(&["cancel", "deaf"]).await?;
    let took = begin.elapsed();
    println!("cancelled after {took:?}");
    ensure!(code == 0 && took < CANCEL_LIMIT, "{code} after {took:?}: {out} {err}");
    let result = bed.answer("deaf").await?;
    ensure!(is_cancelled(&result) && result["metadata"] == json!({"mine": 1}), "{result:#}");
    ensure!(result["error"]["stage"] == "run" && result["worker"]["id"] == "a", "{result:#}");
    // A new ComfyUI runs the next one.
    bed.publish(&slow_job("next", 0.1)).await?;
    ensure!(bed.answer("next").await?["status"] == "succeeded");
    site.finish(worker, site.initial()).await?;
    bed.wait_queued(0).await
}

/// While its input is staged, and while its output is uploaded.
#[tokio::test]
async fn a_job_is_cancelled_while_the_store_is_slow() -> Result<()> {
    let bed = Bed::new("cancel-staged").await?;
    let gate = Gate::start(bed.s3.address()).await?;
    let site = Site::new(&bed, "a")?;
    let through_gate = Site::new(&bed, "b")?.set("store.endpoint", format!("http://{}", gate.address()));
    let worker = through_gate.boot().await?;
    for (id, says, stage) in [
        ("staging", "GET /inputs/cat.png", "stage"),
        ("uploading", "PUT /results/jobs/uploading/1/", "upload"),
    ] {
        gate.set(Fault::Hold, says);
        let caught = gate.caught();
        bed.publish(&staged_job(id, 0.1)).await?;
        gate.wait_caught_more(caught, SOON).await?;
        let (code, out, err) = site.command(&["cancel", id]).await?;
        ensure!(code == 0, "{out} {err}");
        let result = bed.answer(id).await?;
        ensure!(is_cancelled(&result) && result["error"]["stage"] == stage, "{result:#}");
        gate.lift();
    }
    through_gate.finish(worker, through_gate.initial()).await?;
    bed.wait_queued(0).await
}

#[tokio::test]
async fn an_order_drains_the_worker_that_it_names() -> Result<()> {
    let bed = Bed::new("drain-order").await?;
    let site = Site::new(&bed, "a")?;
    let mut worker = site.boot().await?;
    bed.order(&json!({"drain": "b"})).await?;
    bed.publish(&slow_job("j", 2.0)).await?;
    wait_running(&worker, "j").await?;
    bed.order(&json!({"drain": "a"})).await?;
    site.wait_drained(&mut worker, site.initial(), ENDING).await?;
    ensure!(bed.answer("j").await?["status"] == "succeeded", "a drain lets the running job finish");
    let mut second = site.boot().await?;
    bed.order(&json!({"drain": true})).await?;
    let (status, _) = end(&mut second, ENDING).await?;
    ensure!(status.code() == Some(0), "{status}");
    bed.wait_queued(0).await
}
