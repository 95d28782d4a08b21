//! Two jobs in hand: the next one is taken near the end of the one that runs, and not before.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use testbed::{Signal, Worker, wait_for};

use super::{
    JOB, SOON,
    bed::{Bed, slow_job, staged_job},
    site::{Site, child, end, kill, status, wait_running},
};

/// A job of the same kind as another one of so many seconds.
fn like(id: &str, seconds: f64, seed: u64) -> Value {
    let mut job = slow_job(id, seconds);
    job["workflow"]["2"]["inputs"]["seed"] = json!(seed);
    job
}

/// Waits until the worker has that job posted behind the one that runs.
async fn wait_behind(worker: &Worker, id: &str) -> Result<()> {
    let behind = || async {
        let Ok(status) = status(worker).await else { return false };
        status["next_jobs"][0]["id"] == id && status["next_jobs"][0]["event"] == "queued"
    };
    wait_for("a job behind the one that runs", JOB, behind).await
}

/// Two jobs in ComfyUI, the first of them running: `always`, so that it takes no luck.
async fn two_in_hand(bed: &Bed, site: &Site, first: &Value, second: &Value) -> Result<Worker> {
    let worker = site.boot().await?;
    bed.publish(first).await?;
    let id = first["id"].as_str().unwrap_or_default();
    wait_running(&worker, id).await?;
    bed.publish(second).await?;
    wait_behind(&worker, second["id"].as_str().unwrap_or_default()).await?;
    ensure!(status(&worker).await?["job"]["id"] == id, "the first one is over");
    Ok(worker)
}

#[tokio::test]
async fn a_worker_takes_no_job_that_an_idle_one_could_run() -> Result<()> {
    let bed = Bed::new("lookahead-fair").await?;
    let sites = [Site::new(&bed, "a")?, Site::new(&bed, "b")?];
    let workers = [sites[0].boot().await?, sites[1].boot().await?];
    bed.publish(&slow_job("long", 600.0)).await?;
    let runs =
        async |worker: &Worker| status(worker).await.is_ok_and(|status| status["job"]["event"] == "progress");
    wait_for("the long job to run", JOB, || async { runs(&workers[0]).await || runs(&workers[1]).await })
        .await?;
    let (busy, idle) = if runs(&workers[0]).await { (0, 1) } else { (1, 0) };
    let jobs: Vec<Value> = (0..6).map(|n| like(&format!("short-{n}"), 0.3, n)).collect();
    for job in &jobs {
        bed.publish(job).await?;
    }
    let results = bed.answers(&["short-0", "short-1", "short-2", "short-3", "short-4", "short-5"]).await?;
    let name = ["a", "b"][idle];
    ensure!(results.values().all(|result| result["worker"]["id"] == name), "{results:#?}");
    ensure!(status(&workers[busy]).await?["next_jobs"] == json!([]), "it holds another");
    let (code, _, err) = sites[busy].command(&["cancel", "long"]).await?;
    ensure!(code == 0, "{err}");
    ensure!(bed.answer("long").await?["status"] == "cancelled");
    for (site, worker) in sites.iter().zip(workers) {
        site.finish(worker, site.initial()).await?;
    }
    bed.wait_queued(0).await
}

/// Of a kind that is known: the first one of it is the only one that nobody waits behind.
#[tokio::test]
async fn the_next_job_is_posted_before_the_end_of_the_one_that_runs() -> Result<()> {
    let bed = Bed::new("lookahead-near").await?;
    let site = Site::new(&bed, "a")?;
    let worker = site.boot().await?;
    let ids: Vec<String> = (0..8).map(|n| format!("j{n}")).collect();
    for (seed, id) in (0..).zip(&ids) {
        bed.publish(&like(id, 1.0, seed)).await?;
    }
    let both = || async {
        let Ok(status) = status(&worker).await else { return false };
        status["job"]["event"] == "progress" && status["next_jobs"][0]["event"] == "queued"
    };
    wait_for("a job behind the one that runs", JOB, both).await?;
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let results = bed.answers(&ids).await?;
    ensure!(results.values().all(|result| result["status"] == "succeeded"), "{results:#?}");
    site.finish(worker, site.initial()).await?;
    bed.wait_queued(0).await
}

#[tokio::test]
async fn a_drain_hands_back_the_job_behind_and_finishes_the_one_that_runs() -> Result<()> {
    let bed = Bed::new("lookahead-drain").await?;
    let site = Site::new(&bed, "a")?.set("amqp.lookahead", "1");
    let mut worker = two_in_hand(&bed, &site, &slow_job("first", 4.0), &staged_job("second", 600.0)).await?;
    worker.signal(Signal::TERM)?;
    site.wait_drained(&mut worker, site.initial(), SOON).await?;
    ensure!(bed.answer("first").await?["status"] == "succeeded");
    bed.wait_queued(1).await?;
    ensure!(bed.marker("second", 1).await?["closed"].is_string(), "it would count as a crash");
    Ok(())
}

#[tokio::test]
async fn the_job_behind_is_cancelled_alone() -> Result<()> {
    let bed = Bed::new("lookahead-cancel").await?;
    let site = Site::new(&bed, "a")?.set("amqp.lookahead", "1");
    let worker = two_in_hand(&bed, &site, &slow_job("first", 5.0), &slow_job("second", 600.0)).await?;
    let (code, _, err) = site.command(&["cancel", "second"]).await?;
    ensure!(code == 0, "{err}");
    let results = bed.answers(&["first", "second"]).await?;
    ensure!(
        results["second"]["status"] == "cancelled" && results["first"]["status"] == "succeeded",
        "{results:#?}"
    );
    ensure!(results["first"]["attempt"] == 1);
    site.finish(worker, site.initial()).await?;
    bed.wait_queued(0).await
}

/// Its time counts from when nothing was before it, not from its post.
#[tokio::test]
async fn the_job_behind_has_its_whole_time() -> Result<()> {
    let bed = Bed::new("lookahead-time").await?;
    let site = Site::new(&bed, "a")?.set("amqp.lookahead", "1");
    let mut second = slow_job("second", 2.0);
    second["timeout_seconds"] = json!(5);
    let worker = two_in_hand(&bed, &site, &slow_job("first", 8.0), &second).await?;
    let results = bed.answers(&["first", "second"]).await?;
    ensure!(results.values().all(|result| result["status"] == "succeeded"), "{results:#?}");
    site.finish(worker, site.initial()).await?;
    bed.wait_queued(0).await
}

#[tokio::test]
async fn a_comfyui_that_dies_is_the_fault_of_the_job_that_ran() -> Result<()> {
    let bed = Bed::new("lookahead-engine").await?;
    let site = Site::new(&bed, "a")?.set("amqp.lookahead", "1");
    let worker = two_in_hand(&bed, &site, &slow_job("first", 20.0), &slow_job("second", 0.1)).await?;
    kill(child(&worker, "main.py")?, Signal::KILL)?;
    let tried_again = || async { worker.log().contains("job tried again here job=second") };
    wait_for("the second to be tried again", JOB, tried_again).await?;
    let results = bed.answers(&["first", "second"]).await?;
    ensure!(
        results.values().all(|result| result["status"] == "succeeded" && result["attempt"] == 1),
        "{results:#?}"
    );
    // Were it to blame, this would be its second crash and the last.
    ensure!(worker.log().contains("before it began the prompt"), "{}", worker.log());
    site.finish(worker, site.initial()).await?;
    bed.wait_queued(0).await
}

/// The worker dies with two jobs: which of them killed it is not known, so each has ComfyUI alone then.
#[tokio::test]
async fn two_jobs_of_a_killed_worker_run_again_one_after_the_other() -> Result<()> {
    let bed = Bed::new("lookahead-kill").await?;
    let site = Site::new(&bed, "a")?.set("amqp.lookahead", "1");
    let mut worker = two_in_hand(&bed, &site, &slow_job("first", 3.0), &slow_job("second", 3.0)).await?;
    worker.signal(Signal::KILL)?;
    end(&mut worker, std::time::Duration::ZERO).await?;
    bed.wait_queued(2).await?;
    let other = Site::new(&bed, "b")?.set("amqp.lookahead", "1");
    let second = other.boot().await?;
    let alone = || async {
        let Ok(status) = status(&second).await else { return false };
        ["started", "progress"].iter().any(|event| status["job"]["event"] == *event)
    };
    wait_for("one of them to run", SOON, alone).await?;
    let beside = status(&second).await?;
    ensure!(
        beside["next_jobs"].as_array().is_some_and(|next| next.iter().all(|job| job["event"] != "queued")),
        "{beside:#}"
    );
    let results = bed.answers(&["first", "second"]).await?;
    ensure!(
        results.values().all(|result| result["status"] == "succeeded" && result["attempt"] == 2),
        "{results:#?}"
    );
    other.finish(second, other.initial()).await?;
    bed.wait_queued(0).await
}
