//! SIGKILL of the worker: its children die, the job is run elsewhere, the next start cleans up.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use testbed::{Signal, Worker, wait_for};

use super::{
    SOON,
    bed::{Bed, slow_job, staged_job},
    site::{Site, end, status, wait_running},
};

const DEATH: Duration = Duration::from_secs(2);
/// From the SIGKILL to the redelivery to a worker that is idle.
const REDELIVERY: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_killed_workers_job_is_run_by_another_and_only_its_files_are_swept() -> Result<()> {
    let bed = Bed::new("killed").await?;
    let site = Site::new(&bed, "a")?;
    // Somebody's own: beside ours, and under the very name that the job's folder would get.
    let theirs = site.folder("input").join("theirs");
    fs::create_dir(&theirs)?;
    fs::write(theirs.join("cat.png"), "theirs")?;
    fs::create_dir(site.folder("input").join("j"))?;
    fs::write(site.folder("input/j").join("mine.txt"), "theirs")?;
    fs::write(site.folder("input").join("k"), "theirs, and no folder")?;
    fs::write(site.folder("output").join("old.png"), "theirs")?;
    let before = site.snapshot()?;

    let mut worker = site.boot().await?;
    bed.publish(&staged_job("j", 4.0)).await?;
    wait_running(&worker, "j").await?;
    let seen = worker.descendants();
    ensure!(site.snapshot()? != before, "nothing was staged: then this test shows nothing");
    worker.signal(Signal::KILL)?;
    end(&mut worker, Duration::ZERO).await?;
    site.wait_no_process(&seen, DEATH).await?;
    let left = site.snapshot()?;
    ensure!(before.iter().all(|(path, kept)| left.get(path) == Some(kept)));
    bed.wait_queued(1).await?;

    let other = Site::new(&bed, "b")?;
    let second = other.boot().await?;
    let result = bed.answer("j").await?;
    ensure!(result["status"] == "succeeded" && result["attempt"] == 2, "{result:#}");
    ensure!(result["worker"]["id"] == "b");
    ensure!(bed.marker("j", 1).await?["closed"].is_null(), "nobody closed the first attempt");
    other.finish(second, other.initial()).await?;
    bed.wait_queued(0).await?;

    // Profiles younger than 5 s may be somebody's who starts just now: the other's boot took longer.
    let third = site.boot().await?;
    ensure!(site.snapshot()? == before, "the start swept too little, or too much");
    ensure!(site.scratch() == 2, "the killed worker's browser profile or temporary files are left");
    bed.publish(&staged_job("k", 0.1)).await?;
    ensure!(bed.answer("k").await?["status"] == "succeeded");
    site.finish(third, &before).await
}

/// The broker learns of the end by the closed connection, not by a heartbeat.
#[tokio::test]
async fn an_idle_worker_has_a_killed_ones_job_within_two_seconds() -> Result<()> {
    let bed = Bed::new("redelivered").await?;
    let sites = [Site::new(&bed, "a")?, Site::new(&bed, "b")?];
    let [mut killed, mut other] = [sites[0].boot().await?, sites[1].boot().await?];
    bed.publish(&staged_job("j", 3.0)).await?;
    let has_it = async |worker: &Worker| status(worker).await.is_ok_and(|status| status["job"]["id"] == "j");
    wait_for("a worker to take the job", SOON, || async { has_it(&killed).await || has_it(&other).await })
        .await?;
    let mut idle = 1;
    if has_it(&other).await {
        std::mem::swap(&mut killed, &mut other);
        idle = 0;
    }
    wait_running(&killed, "j").await?;
    killed.signal(Signal::KILL)?;
    wait_for("the redelivery", REDELIVERY, || has_it(&other)).await?;
    end(&mut killed, Duration::ZERO).await?;
    let result = bed.answer("j").await?;
    ensure!(result["status"] == "succeeded" && result["attempt"] == 2, "{result:#}");
    sites[idle].finish(other, sites[idle].initial()).await?;
    bed.wait_queued(0).await
}

/// What a node starts does not get the parent-death signal: neither a child, nor one with a session
/// of its own, nor an orphan, nor one that has emptied its environment as well.
#[tokio::test]
async fn what_nodes_started_dies_with_a_killed_worker_and_with_a_drained_one() -> Result<()> {
    let bed = Bed::new("strays").await?;
    let site = Site::standin(&bed, "a")?;
    let before = site.snapshot()?;
    for signal in [Signal::KILL, Signal::TERM] {
        let mut worker = site.boot().await?;
        let mut pids = Vec::new();
        for how in ["child", "session", "orphan", "stray"] {
            let id = format!("{how}-{}", signal.as_raw());
            let seed = signal.as_raw();
            bed.publish(&json!({"version": 1, "id": id, "workflow": {
                "1": {"class_type": "StandinSpawn", "inputs": {"seconds": 600.0, "how": how, "seed": seed}}}}))
                .await?;
            let result = bed.answer(&id).await?;
            let pid = text_of(&result).and_then(|pid| pid.parse::<u32>().ok());
            pids.push(pid.with_context(|| format!("no pid in {result:#}"))?);
        }
        let strays: Vec<_> =
            site.processes().into_iter().filter(|process| pids.contains(&process.pid)).collect();
        ensure!(strays.len() == 4, "{pids:?} of {:?}", site.processes());
        // Until the last answer is acked, a kill brings the job back.
        wait_for("the worker to be idle", SOON, || async {
            status(&worker).await.is_ok_and(|status| status["job"].is_null())
        })
        .await?;
        // Nothing but its parent tells of the last one: that has to be seen before a kill.
        wait_for("the stray to be seen", SOON, || async { worker.log().contains("without its environment") })
            .await?;
        let mut seen = worker.descendants();
        seen.extend(strays);
        worker.signal(signal)?;
        end(&mut worker, Duration::ZERO).await?;
        site.wait_no_process(&seen, DEATH).await?;
        bed.wait_queued(0).await?;
    }
    site.ensure_no_job_file(&before)
}

fn text_of(result: &Value) -> Option<&str> {
    result["outputs"].as_array()?.iter().find_map(|output| output["text"].as_str())
}

/// A job that kills its worker is given up after `job.max_attempts` crashes.
#[tokio::test]
async fn a_job_whose_workers_are_killed_is_answered_as_poison() -> Result<()> {
    let bed = Bed::new("poison").await?;
    let site = Site::new(&bed, "a")?.set("job.max_attempts", "2");
    let before = site.snapshot()?;
    for attempt in 1..=2 {
        let mut worker = site.boot().await?;
        if attempt == 1 {
            bed.publish(&slow_job("j", 600.0)).await?;
        }
        wait_running(&worker, "j").await?;
        let seen = worker.descendants();
        worker.signal(Signal::KILL)?;
        end(&mut worker, Duration::ZERO).await?;
        site.wait_no_process(&seen, DEATH).await?;
        bed.wait_queued(1).await?;
    }
    let worker = site.boot().await?;
    let result = bed.answer("j").await?;
    ensure!(result["status"] == "failed" && result["error"]["code"] == "poison", "{result:#}");
    ensure!(result["attempt"] == 3, "{result:#}");
    worker_done(&site, worker, &before).await?;
    bed.wait_queued(0).await
}

async fn worker_done(site: &Site, mut worker: Worker, before: &super::site::Snapshot) -> Result<()> {
    worker.signal(Signal::TERM)?;
    let (status, _) = end(&mut worker, Duration::ZERO).await?;
    ensure!(status.code() == Some(0), "{status}");
    site.ensure_no_job_file(before)
}
