//! Workers that end by themselves: without jobs, after so many, grown too large. And the first process
//! of a container.

use anyhow::{Result, ensure};
use serde_json::json;
use testbed::{Signal, wait_for, zombies};

use super::{
    SOON,
    bed::{Bed, slow_job},
    site::{Site, child, kill},
};

#[tokio::test]
async fn an_idle_worker_drains_and_one_with_a_job_does_not() -> Result<()> {
    let bed = Bed::new("idle-exit").await?;
    let site = Site::new(&bed, "a")?.set("worker.idle_exit", "2s");
    let mut worker = site.boot().await?;
    // Longer than it may idle.
    bed.publish(&slow_job("j", 4.0)).await?;
    ensure!(bed.answer("j").await?["status"] == "succeeded");
    site.wait_drained(&mut worker, site.initial(), SOON).await?;
    ensure!(worker.log().contains("no job for 2s (worker.idle_exit)"), "{}", worker.log());
    bed.wait_queued(0).await
}

#[tokio::test]
async fn after_its_last_job_a_worker_drains_and_leaves_the_rest() -> Result<()> {
    let bed = Bed::new("max-jobs").await?;
    // Even where it would take the next one while one runs.
    let site = Site::new(&bed, "a")?.set("worker.max_jobs", "2").set("amqp.lookahead", "1");
    let mut worker = site.boot().await?;
    for id in ["j0", "j1", "j2", "j3"] {
        bed.publish(&slow_job(id, 1.0)).await?;
    }
    site.wait_drained(&mut worker, site.initial(), SOON).await?;
    ensure!(worker.log().contains("it took 2 jobs (worker.max_jobs)"), "{}", worker.log());
    let results = bed.answers(&["j0", "j1"]).await?;
    ensure!(results.values().all(|result| result["status"] == "succeeded"), "{results:#?}");
    bed.wait_queued(2).await?;
    // Nobody was given them meanwhile: no delivery is used up.
    let next = Site::new(&bed, "b")?;
    let worker = next.boot().await?;
    let results = bed.answers(&["j2", "j3"]).await?;
    ensure!(results.values().all(|result| result["attempt"] == 1), "{results:#?}");
    next.finish(worker, next.initial()).await?;
    bed.wait_queued(0).await
}

#[tokio::test]
async fn a_worker_that_has_grown_drains_after_its_job() -> Result<()> {
    let bed = Bed::new("max-rss").await?;
    // Makes the queue.
    let first = Site::standin(&bed, "first")?;
    let worker = first.boot().await?;
    first.finish(worker, first.initial()).await?;
    for id in ["j", "k"] {
        bed.publish(&slow_job(id, 1.0)).await?;
    }
    // It takes one while ComfyUI still boots, and is too large by then.
    let site = Site::standin(&bed, "a")?.set("worker.max_rss", "1MiB");
    let mut worker = site.start().await?;
    ensure!(bed.answer("j").await?["status"] == "succeeded");
    site.wait_drained(&mut worker, site.initial(), SOON).await?;
    ensure!(worker.log().contains("(worker.max_rss)"), "{}", worker.log());
    bed.wait_queued(1).await
}

/// What ComfyUI's nodes leave behind comes to process 1, and would stay there dead.
#[tokio::test]
async fn process_1_of_a_container_reaps_orphans_and_drains_on_sigterm() -> Result<()> {
    let bed = Bed::new("process-1").await?;
    let words = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"];
    let site = Site::standin(&bed, "a")?.launcher(words.map(str::to_owned));
    let mut worker = site.boot().await?;
    let first = child(&worker, " serve")?;
    let mut job = slow_job("j", 0.1);
    job["workflow"]["4"] = json!({"class_type": "StandinSpawn",
        "inputs": {"seconds": 0.1, "how": "orphan", "image": ["2", 0], "seed": 1}});
    bed.publish(&job).await?;
    ensure!(bed.answer("j").await?["status"] == "succeeded");
    wait_for("an orphan that is dead", SOON, || async { !zombies(first).is_empty() }).await?;
    wait_for("its end", SOON, || async { zombies(first).is_empty() }).await?;
    kill(first, Signal::TERM)?;
    site.wait_drained(&mut worker, site.initial(), SOON).await?;
    bed.wait_queued(0).await
}
