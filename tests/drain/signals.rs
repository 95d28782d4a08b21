//! SIGTERM and SIGINT at every stage: nothing left running, nothing left on disk, nothing lost.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use testbed::{Fault, Gate, Signal, wait_for};

use super::{
    ENDING, JOB, SOON,
    bed::{Bed, slow_job, staged_job},
    site::{Site, wait_running, wait_unready},
};

#[tokio::test]
async fn sigterm_while_comfyui_boots() -> Result<()> {
    let bed = Bed::new("booting").await?;
    let site = Site::standin(&bed, "a")?.env("STANDIN_BOOT_DELAY", "600");
    let before = site.snapshot()?;
    let mut worker = site.start().await?;
    wait_for("ComfyUI's process", SOON, || async {
        worker.descendants().iter().any(|child| child.command.contains("main.py"))
    })
    .await?;
    wait_unready(&worker, "booting").await?;
    worker.signal(Signal::TERM)?;
    site.wait_drained(&mut worker, &before, Duration::ZERO).await?;
    Ok(())
}

#[tokio::test]
async fn sigterm_while_the_browser_boots() -> Result<()> {
    let bed = Bed::new("browser-booting").await?;
    let site = Site::new(&bed, "a")?;
    let before = site.snapshot()?;
    let mut worker = site.start().await?;
    wait_for("Chromium's process", JOB, || async {
        worker.descendants().iter().any(|child| child.command.contains("--user-data-dir"))
    })
    .await?;
    worker.signal(Signal::TERM)?;
    site.wait_drained(&mut worker, &before, Duration::ZERO).await?;
    Ok(())
}

/// SIGTERM while idle ends most of the other tests.
#[tokio::test]
async fn sigint_while_idle() -> Result<()> {
    let bed = Bed::new("idle").await?;
    let site = Site::new(&bed, "a")?;
    let before = site.snapshot()?;
    let mut worker = site.boot().await?;
    bed.wait_subscribed().await?;
    worker.signal(Signal::INT)?;
    site.wait_drained(&mut worker, &before, Duration::ZERO).await?;
    bed.wait_queued(0).await
}

#[tokio::test]
async fn sigterm_while_an_input_is_staged() -> Result<()> {
    let bed = Bed::new("staging").await?;
    let gate = Gate::start(bed.s3.address()).await?;
    let site = Site::new(&bed, "a")?.set("store.endpoint", format!("http://{}", gate.address()));
    let before = site.snapshot()?;
    let mut worker = site.boot().await?;
    gate.set(Fault::Hold, "GET /inputs/cat.png");
    bed.publish(&staged_job("j", 0.1)).await?;
    gate.wait_caught(SOON).await?;
    ensure!(site.inputs_of("j").is_some(), "nothing is being staged");
    worker.signal(Signal::TERM)?;
    site.wait_drained(&mut worker, &before, Duration::ZERO).await?;
    bed.wait_queued(1).await?;
    ensure!(bed.marker("j", 1).await?["closed"] == "the worker is shutting down");
    drop(gate);

    let next = Site::new(&bed, "b")?;
    let worker = next.boot().await?;
    let result = bed.answer("j").await?;
    ensure!(result["status"] == "succeeded" && result["attempt"] == 2, "{result:#}");
    next.finish(worker, next.initial()).await?;
    bed.wait_queued(0).await
}

/// The grace is over before the job is: interrupted, handed back, finished by another worker.
#[tokio::test]
async fn sigterm_while_a_long_job_runs() -> Result<()> {
    let bed = Bed::new("running").await?;
    let site = Site::new(&bed, "a")?.set("worker.grace", "1s");
    let before = site.snapshot()?;
    let mut worker = site.boot().await?;
    // So long that only an interrupt ends it in time; the second worker has to sit it out.
    bed.publish(&staged_job("j", 6.0)).await?;
    wait_running(&worker, "j").await?;
    ensure!(site.journal()?.contains("/input/j"), "not journalled:\n{}", site.journal()?);
    worker.signal(Signal::TERM)?;
    wait_unready(&worker, "draining").await?;
    let took = site.wait_drained(&mut worker, &before, Duration::from_secs(1)).await?;
    ensure!(took < Duration::from_secs(1) + ENDING, "{took:?}");
    bed.wait_queued(1).await?;
    ensure!(bed.marker("j", 1).await?["closed"] == "the worker is shutting down");

    let next = Site::new(&bed, "b")?;
    let worker = next.boot().await?;
    let result = bed.answer("j").await?;
    ensure!(result["status"] == "succeeded" && result["attempt"] == 2, "{result:#}");
    ensure!(result["worker"]["id"] == "b" && bed.attempts("j").await? == 2);
    next.finish(worker, next.initial()).await?;
    bed.wait_queued(0).await
}

/// The job is done within the grace: finished, answered, acked; what comes on its heels stays.
#[tokio::test]
async fn signals_while_a_short_job_runs() -> Result<()> {
    let bed = Bed::new("short").await?;
    let site = Site::new(&bed, "a")?;
    let before = site.snapshot()?;
    for (signal, id) in [(Signal::TERM, "term"), (Signal::INT, "int")] {
        let mut worker = site.boot().await?;
        bed.publish(&staged_job(id, 2.0)).await?;
        wait_running(&worker, id).await?;
        let heel = format!("after-{id}");
        bed.publish(&slow_job(&heel, 0.1)).await?;
        worker.signal(signal)?;
        site.wait_drained(&mut worker, &before, Duration::from_secs(5)).await?;
        bed.wait_queued(1).await?;
        ensure!(bed.attempts(&heel).await? == 0, "a job was begun during the drain");
        bed.answers(if id == "term" { &["term"] } else { &["after-term", "int"] }).await?;
    }
    Ok(())
}

/// What is being uploaded is finished: GPU time is the dearest.
#[tokio::test]
async fn sigterm_while_outputs_are_uploaded() -> Result<()> {
    let bed = Bed::new("uploading").await?;
    let gate = Gate::start(bed.s3.address()).await?;
    let site = Site::new(&bed, "a")?.set("store.endpoint", format!("http://{}", gate.address()));
    let before = site.snapshot()?;
    let mut worker = site.boot().await?;
    gate.set(Fault::Hold, "PUT /results/jobs/j/1/outputs/");
    bed.publish(&staged_job("j", 0.1)).await?;
    gate.wait_caught(SOON).await?;
    worker.signal(Signal::TERM)?;
    wait_unready(&worker, "draining").await?;
    gate.lift();
    site.wait_drained(&mut worker, &before, Duration::from_secs(5)).await?;
    bed.wait_queued(0).await?;
    let result = bed.answer("j").await?;
    ensure!(result["status"] == "succeeded" && result["attempt"] == 1, "{result:#}");
    ensure!(result["outputs"][0]["kind"] == json!("image"));
    Ok(())
}

/// A store that takes nothing does not hold the worker beyond its grace.
#[tokio::test]
async fn sigterm_while_an_upload_hangs() -> Result<()> {
    let bed = Bed::new("upload-hangs").await?;
    let gate = Gate::start(bed.s3.address()).await?;
    let site = Site::new(&bed, "a")?
        .set("store.endpoint", format!("http://{}", gate.address()))
        .set("worker.grace", "1s");
    let before = site.snapshot()?;
    let mut worker = site.boot().await?;
    gate.set(Fault::Hold, "PUT /results/jobs/j/1/outputs/");
    bed.publish(&slow_job("j", 0.1)).await?;
    gate.wait_caught(SOON).await?;
    worker.signal(Signal::TERM)?;
    site.wait_drained(&mut worker, &before, Duration::from_secs(1)).await?;
    bed.wait_queued(1).await?;
    ensure!(bed.marker("j", 1).await?["closed"] == "the worker is shutting down");
    Ok(())
}

/// Nor does a broker that says nothing any more.
#[tokio::test]
async fn sigterm_while_the_broker_is_silent() -> Result<()> {
    let bed = Bed::new("silent").await?;
    let gate = Gate::start(bed.broker_address()?).await?;
    let url = format!("amqp://guest:guest@{}/%2f", gate.address());
    let site = Site::new(&bed, "a")?.set("amqp.url", url).set("worker.grace", "1s");
    let before = site.snapshot()?;
    let mut worker = site.boot().await?;
    bed.wait_subscribed().await?;
    gate.set(Fault::Hold, "");
    worker.signal(Signal::TERM)?;
    site.wait_drained(&mut worker, &before, Duration::from_secs(1)).await?;
    Ok(())
}
