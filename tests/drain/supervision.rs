//! ComfyUI under watch: lost while idle, its prompt thread gone, worn out; and what is no crash.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use testbed::{Fault, Gate, Signal, Worker, alive, wait_for, wait_for_value};

use super::{
    BOOT, SOON,
    bed::{Bed, slow_job, staged_job},
    site::{Site, child, end, kill, wait_running, wait_unready},
};

/// Another ComfyUI than `before`, and a worker that takes jobs again.
async fn wait_another(worker: &mut Worker, before: u32) -> Result<u32> {
    let another = || async { child(worker, "main.py").ok().filter(|pid| *pid != before) };
    let found = wait_for_value("another ComfyUI", BOOT, another).await;
    let pid = found.with_context(|| worker.log())?;
    worker.wait_ready(BOOT).await?;
    ensure!(!alive(before), "the old one lives");
    Ok(pid)
}

/// Nobody sends a job: it is noticed all the same, and no job is taken until ComfyUI runs again.
#[tokio::test]
async fn an_idle_comfyui_that_dies_is_started_again_three_times() -> Result<()> {
    let bed = Bed::new("idle-dies").await?;
    let site = Site::standin(&bed, "a")?;
    let mut worker = site.boot().await?;
    let mut comfyui = child(&worker, "main.py")?;
    for _ in 0..3 {
        kill(comfyui, Signal::KILL)?;
        comfyui = wait_another(&mut worker, comfyui).await?;
    }
    let seen = worker.descendants();
    kill(comfyui, Signal::KILL)?;
    let (status, _) = end(&mut worker, SOON).await?;
    ensure!(status.code() == Some(3), "{status}\n{}", worker.log());
    ensure!(worker.log().contains("more than 3 times within 10 minutes"), "{}", worker.log());
    site.wait_no_process(&seen, SOON).await?;
    site.ensure_no_file(site.initial())?;
    bed.wait_queued(0).await
}

#[tokio::test]
async fn an_idle_comfyui_that_hangs_is_started_again() -> Result<()> {
    let bed = Bed::new("idle-hangs").await?;
    let site = Site::new(&bed, "a")?;
    let mut worker = site.boot().await?;
    let comfyui = child(&worker, "main.py")?;
    kill(comfyui, Signal::STOP)?;
    wait_unready(&worker, "booting").await?;
    wait_another(&mut worker, comfyui).await?;
    bed.publish(&slow_job("j", 0.1)).await?;
    ensure!(bed.answer("j").await?["status"] == "succeeded");
    site.finish(worker, site.initial()).await?;
    bed.wait_queued(0).await
}

/// The job is tried again on a new ComfyUI.
#[tokio::test]
async fn a_comfyui_that_is_stopped_while_it_runs_a_job_is_replaced() -> Result<()> {
    let bed = Bed::new("stopped").await?;
    let site = Site::new(&bed, "a")?;
    let worker = site.boot().await?;
    bed.publish(&slow_job("j", 2.0)).await?;
    wait_running(&worker, "j").await?;
    let comfyui = child(&worker, "main.py")?;
    kill(comfyui, Signal::STOP)?;
    let result = bed.answer("j").await?;
    ensure!(result["status"] == "succeeded" && result["attempt"] == 1, "{result:#}");
    ensure!(bed.attempts("j").await? == 1 && !alive(comfyui), "tried again here");
    site.finish(worker, site.initial()).await?;
    bed.wait_queued(0).await
}

#[tokio::test]
async fn a_worn_comfyui_is_started_anew_between_two_jobs() -> Result<()> {
    let bed = Bed::new("worn").await?;
    let site = Site::standin(&bed, "a")?.set("comfyui.max_jobs", "2").set("comfyui.max_rss", "600MiB");
    let mut worker = site.boot().await?;
    let mut comfyui = child(&worker, "main.py")?;
    for round in 0..4 {
        for job in 0..2 {
            ensure!(child(&worker, "main.py")? == comfyui, "started again too early");
            let id = format!("j{round}{job}");
            bed.publish(&slow_job(&id, 0.01)).await?;
            ensure!(bed.answer(&id).await.with_context(|| worker.log())?["status"] == "succeeded");
        }
        // Four times: more than it may be lost.
        comfyui = wait_another(&mut worker, comfyui).await?;
    }
    bed.publish(&json!({"version": 1, "id": "leak", "workflow": {
        "1": {"class_type": "StandinLeak", "inputs": {"megabytes": 700, "seed": 1}}}}))
        .await?;
    ensure!(bed.answer("leak").await?["status"] == "succeeded");
    wait_another(&mut worker, comfyui).await?;
    ensure!(worker.log().contains("(comfyui.max_rss)"), "{}", worker.log());
    site.finish(worker, site.initial()).await?;
    bed.wait_queued(0).await
}

/// A broker that comes and goes gives a job out again and again while it runs: none of that is a
/// crash, and the job is not poison.
#[tokio::test]
async fn lost_connections_are_no_crashes() -> Result<()> {
    let bed = Bed::new("no-crash").await?;
    let gate = Gate::start(bed.broker_address()?).await?;
    let site = Site::new(&bed, "a")?
        .set("amqp.url", format!("amqp://guest:guest@{}/%2f", gate.address()))
        .set("job.max_attempts", "1");
    let worker = site.boot().await?;
    bed.publish(&staged_job("j", 6.0)).await?;
    wait_running(&worker, "j").await?;
    gate.set(Fault::Reset, "");
    wait_for("the marker to say so", SOON, || async {
        bed.marker("j", 1).await.is_ok_and(|marker| marker["disowned"] == true)
    })
    .await?;
    // Another worker gets it meanwhile, and does not take it for poison.
    let other = Site::new(&bed, "b")?.set("job.max_attempts", "1");
    let second = other.boot().await?;
    gate.lift();
    let result = bed.answer("j").await?;
    ensure!(result["status"] == "succeeded", "{result:#}");
    wait_for("an empty queue", SOON, || async { bed.queued().await.is_ok_and(|queued| queued == (0, 2)) })
        .await?;
    site.finish(worker, site.initial()).await?;
    other.finish(second, other.initial()).await?;
    bed.wait_queued(0).await?;
    bed.no_other_answer("j").await
}
