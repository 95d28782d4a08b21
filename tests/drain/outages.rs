//! Broker and store that go away.

use std::time::Duration;

use anyhow::{Result, ensure};
use testbed::{Fault, Gate, wait_for};

use super::{
    BOOT, SOON,
    bed::{Bed, slow_job, staged_job},
    site::{Site, status, wait_running, wait_unready},
};

/// The job goes on; its result is published once the broker is back, however often.
#[tokio::test]
async fn a_broker_that_is_killed_while_a_job_runs() -> Result<()> {
    let bed = Bed::with_own_broker("restart").await?;
    let site = Site::new(&bed, "a")?;
    let worker = site.boot().await?;
    bed.publish(&staged_job("j", 3.0)).await?;
    wait_running(&worker, "j").await?;
    bed.broker.kill().await?;
    // Done while the broker is away.
    let stored = bed.s3.path("results", "jobs/j/result.json");
    wait_for("the result", SOON, || async { stored.is_file() }).await?;
    bed.broker.restart().await?;
    let result = bed.answer("j").await?;
    ensure!(result["status"] == "succeeded" && result["attempt"] == 1, "{result:#}");
    // Redelivered, it was answered from its result, not run again.
    wait_for("the redelivered job's end", SOON, || async {
        status(&worker).await.is_ok_and(|status| status["job"].is_null())
            && bed.queued().await.is_ok_and(|queued| queued == (0, 1))
    })
    .await?;
    ensure!(bed.attempts("j").await? == 1);
    site.finish(worker, site.initial()).await?;
    bed.wait_queued(0).await?;
    bed.no_other_answer("j").await?;
    bed.broker.stop().await
}

#[tokio::test]
async fn a_store_that_is_away_at_boot_is_waited_for() -> Result<()> {
    let bed = Bed::new("store-away").await?;
    let gate = Gate::start(bed.s3.address()).await?;
    gate.set(Fault::Reset, "");
    let site = Site::new(&bed, "a")?.set("store.endpoint", format!("http://{}", gate.address()));
    let mut worker = site.start().await?;
    gate.wait_caught(SOON).await?;
    wait_for("the worker to say what it waits for", BOOT, || async {
        worker.log().contains("waiting for the store") && worker.log().contains("ComfyUI and browser ready")
    })
    .await?;
    wait_unready(&worker, "booting").await?;
    gate.lift();
    worker.wait_ready(BOOT).await?;
    bed.publish(&slow_job("j", 0.1)).await?;
    ensure!(bed.answer("j").await?["status"] == "succeeded");
    site.finish(worker, site.initial()).await?;
    bed.wait_queued(0).await
}

/// Told to stop while it waits for a broker that is not there.
#[tokio::test]
async fn sigterm_while_broker_and_store_are_away() -> Result<()> {
    let bed = Bed::new("all-away").await?;
    let gate = Gate::start(bed.s3.address()).await?;
    gate.set(Fault::Hold, "");
    let url = format!("amqp://guest:guest@{}/%2f", gate.address());
    let site = Site::new(&bed, "a")?
        .set("store.endpoint", format!("http://{}", gate.address()))
        .set("amqp.url", url);
    let before = site.snapshot()?;
    let mut worker = site.start().await?;
    gate.wait_caught(SOON).await?;
    wait_for("ComfyUI", BOOT, || async { worker.log().contains("ComfyUI and browser ready") }).await?;
    worker.signal(testbed::Signal::TERM)?;
    site.wait_drained(&mut worker, &before, Duration::ZERO).await?;
    Ok(())
}
