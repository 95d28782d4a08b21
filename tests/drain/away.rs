//! Dependencies that are away for long, and what a job's own place or input does by being away: no verdict on a job
//! that nothing is wrong with, and no execution twice.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use testbed::{Fault, Front, Gate, RawMessage, Signal, Spoil, Worker, wait_for};
use tokio::time::sleep;

use super::{
    BOOT, JOB, SOON,
    bed::{Bed, slow_job, staged_job},
    site::{Site, end, status, wait_running},
};

/// Seconds: longer than a delivery limit of three lasted by hand-backs of five seconds each. `STORE_AWAY_SECONDS=200` is as
/// long as the outage that was reported.
const OUTAGE: u64 = 40;
/// How soon a worker must say that its store is away.
const NOTICED: Duration = Duration::from_secs(15);

/// Two workers whose store is behind `address`.
fn sites(bed: &Bed, address: std::net::SocketAddr) -> Result<[Site; 2]> {
    let site = |name| {
        Ok::<_, anyhow::Error>(
            Site::standin(bed, name)?
                .set("store.endpoint", format!("http://{address}"))
                .set("amqp.delivery_limit", "3"),
        )
    };
    Ok([site("a")?, site("b")?])
}

async fn boot(sites: &[Site; 2]) -> Result<[Worker; 2]> {
    let (a, b) = tokio::join!(sites[0].boot(), sites[1].boot());
    Ok([a?, b?])
}

/// How often ComfyUI ran a job's prompt here, the self-test's aside.
fn executions(worker: &Worker) -> usize {
    worker.log().matches("got prompt").count() - 1
}

/// How many of them run a job.
async fn running(workers: &[Worker]) -> usize {
    let mut running = 0;
    for worker in workers {
        let event = status(worker).await.map(|status| status["job"]["event"].clone());
        running += usize::from(event.is_ok_and(|event| event == "started" || event == "progress"));
    }
    running
}

async fn wait_away(worker: &Worker, limit: Duration) -> Result<()> {
    wait_for("the worker to say that its store is away", limit, || async {
        let ready = reqwest::get(worker.admin_url("/readyz")).await;
        ready.is_ok_and(|answer| answer.status() == 503)
            && status(worker).await.is_ok_and(|status| status["state"] == "store_away")
    })
    .await
    .with_context(|| worker.log())
}

/// Every job succeeded at its first attempt, which alone left a marker.
async fn ensure_all_ran_once(bed: &Bed, ids: &[&str], workers: &[Worker]) -> Result<()> {
    for (id, result) in bed.answers(ids).await? {
        ensure!(result["status"] == "succeeded" && result["attempt"] == 1, "{id}: {result:#}");
        ensure!(bed.attempts(&id).await? == 1, "{id} has more than one marker");
    }
    let ran: usize = workers.iter().map(executions).sum();
    ensure!(ran == ids.len(), "{ran} executions of {} jobs", ids.len());
    Ok(())
}

/// With a backlog, and with jobs that run meanwhile: nothing is taken, passed around or run twice, and the finished
/// outputs of those that ran are stored when the store is back.
#[tokio::test]
async fn a_store_that_is_away_for_long_costs_no_job_anything() -> Result<()> {
    let outage = match std::env::var("STORE_AWAY_SECONDS") {
        Ok(seconds) => seconds.parse().context("STORE_AWAY_SECONDS is no number")?,
        Err(_) => OUTAGE,
    };
    let bed = Bed::new("away-long").await?;
    let gate = Gate::start(bed.s3.address()).await?;
    let sites = sites(&bed, gate.address())?;
    let workers = boot(&sites).await?;
    let ids = ["r1", "r2", "w1", "w2", "w3", "w4"];
    // They end during the outage, but not before it is noticed: near the end of one, a worker looks ahead for another.
    for id in ["r1", "r2"] {
        bed.publish(&staged_job(id, 25.0)).await?;
    }
    wait_for("both to run", JOB, || async { running(&workers).await == 2 }).await?;
    gate.set(Fault::Reset, "");
    let begin = Instant::now();
    for id in ["w1", "w2", "w3", "w4"] {
        bed.publish(&staged_job(id, 0.1)).await?;
    }
    for worker in &workers {
        wait_away(worker, NOTICED.saturating_sub(begin.elapsed())).await?;
    }
    // Stays so until the end of the outage, and nothing comes back or is taken.
    while begin.elapsed() < Duration::from_secs(outage) {
        for worker in &workers {
            let status = status(worker).await?;
            ensure!(status["state"] == "store_away", "{status:#}");
            ensure!(status["jobs"]["handed_back"] == 0, "{status:#}");
        }
        ensure!(bed.ready("").await == Some(4), "jobs were taken while the store was away");
        sleep(Duration::from_millis(500)).await;
    }
    gate.lift();
    ensure_all_ran_once(&bed, &ids, &workers).await?;
    ensure!(bed.ready(".dead").await == Some(0) && bed.ready(".later").await == Some(0));
    for (site, worker) in sites.iter().zip(workers) {
        site.finish(worker, site.initial()).await?;
    }
    bed.wait_queued(0).await
}

/// Keys that are exchanged: for a while the store forbids everything.
#[tokio::test]
async fn a_store_that_forbids_everything_for_a_while_is_waited_for() -> Result<()> {
    let bed = Bed::new("away-keys").await?;
    let front = Front::start(bed.s3.address()).await?;
    let site = Site::standin(&bed, "a")?.set("store.endpoint", format!("http://{}", front.address()));
    let worker = site.boot().await?;
    bed.publish(&staged_job("r", 3.0)).await?;
    wait_running(&worker, "r").await?;
    front.spoil("", Spoil::Refuse(403), usize::MAX);
    wait_away(&worker, NOTICED).await?;
    bed.publish(&staged_job("w", 0.1)).await?;
    sleep(Duration::from_secs(10)).await;
    ensure!(status(&worker).await?["state"] == "store_away");
    front.lift();
    let workers = [worker];
    ensure_all_ran_once(&bed, &["r", "w"], &workers).await?;
    let [worker] = workers;
    site.finish(worker, site.initial()).await
}

/// A drain while finished outputs wait for the store: the job is handed back when the grace ends, and another worker
/// does it once the store is there.
#[tokio::test]
async fn a_drain_while_the_store_is_away() -> Result<()> {
    let bed = Bed::new("away-drain").await?;
    let gate = Gate::start(bed.s3.address()).await?;
    let site = Site::standin(&bed, "a")?
        .set("store.endpoint", format!("http://{}", gate.address()))
        .set("worker.grace", "5s");
    let mut worker = site.boot().await?;
    bed.publish(&staged_job("j", 2.0)).await?;
    wait_running(&worker, "j").await?;
    gate.set(Fault::Reset, "");
    wait_away(&worker, NOTICED).await?;
    worker.signal(Signal::TERM)?;
    site.wait_drained(&mut worker, site.initial(), Duration::from_secs(5)).await?;
    bed.wait_queued(1).await?;
    gate.lift();
    let other = Site::standin(&bed, "b")?;
    let worker = other.boot().await?;
    ensure!(bed.answer("j").await?["status"] == "succeeded");
    other.finish(worker, other.initial()).await
}

/// Parts of an upload would be kept, unseen and paid for. A worker that is killed in the middle of one, or
/// drained while the store forbids to abort it, leaves that to its next start.
#[tokio::test]
async fn an_upload_that_a_worker_leaves_open_is_aborted_by_the_next_start() -> Result<()> {
    let bed = Bed::new("away-upload").await?;
    let front = Front::start(bed.s3.address()).await?;
    let site = Site::standin(&bed, "a")?
        .set("store.endpoint", format!("http://{}", front.address()))
        .set("worker.grace", "1s");
    let large = json!({"class_type": "StandinWriteLarge",
        "inputs": {"megabytes": 20.0, "filename_prefix": "large", "seed": 1}});
    for (id, signal) in [("killed", Signal::KILL), ("drained", Signal::TERM)] {
        let mut worker = site.boot().await?;
        let mut job = slow_job(id, 0.5);
        job["workflow"]["large"] = large.clone();
        front.spoil(format!("PUT /results/jobs/{id}/1/outputs/"), Spoil::Refuse(403), usize::MAX);
        front.spoil(format!("DELETE /results/jobs/{id}/"), Spoil::Refuse(403), usize::MAX);
        bed.publish(&job).await?;
        let is_open = || async { bed.s3.open_uploads().is_ok_and(|open| !open.is_empty()) };
        wait_for("an upload", JOB, is_open).await?;
        worker.signal(signal)?;
        end(&mut worker, Duration::from_secs(30)).await?;
        ensure!(is_open().await, "nothing is left: then this test shows nothing");
        front.lift();
        let worker = site.boot().await?;
        ensure!(bed.answer(id).await?["status"] == "succeeded");
        let is_noted =
            || std::fs::read_dir(site.state("uploads")).is_ok_and(|mut notes| notes.next().is_some());
        let gone = || async { !is_open().await && !is_noted() };
        wait_for("the abort", SOON, gone).await.with_context(|| worker.log())?;
        site.finish(worker, site.initial()).await?;
    }
    bed.wait_queued(0).await
}

/// The bucket of `output.uri` is not there, or closed: found before the GPU works, and answered by its name.
#[tokio::test]
async fn outputs_that_cannot_go_where_the_job_wants_them_are_told_before_the_work() -> Result<()> {
    let bed = Bed::new("away-outputs").await?;
    let front = Front::start(bed.s3.address()).await?;
    front.spoil("PUT /typo/", Spoil::Refuse(404), usize::MAX);
    front.spoil("PUT /closed/", Spoil::Refuse(403), usize::MAX);
    let site = Site::standin(&bed, "a")?
        .set("store.endpoint", format!("http://{}", front.address()))
        .set("outputs.allow", "s3://typo/,s3://closed/,s3://inputs/");
    let worker = site.boot().await?;
    let job = |id: &str, uri: &str| {
        let mut job = slow_job(id, 0.1);
        job["output"] = json!({"uri": uri});
        job
    };
    for (id, uri, code) in
        [("t", "s3://typo/out", "output_not_found"), ("c", "s3://closed/out", "output_forbidden")]
    {
        let begin = Instant::now();
        bed.publish(&job(id, uri)).await?;
        let result = bed.answer(id).await.with_context(|| worker.log())?;
        ensure!(result["status"] == "failed" && result["error"]["code"] == code, "{result:#}");
        ensure!(result["error"]["message"].to_string().contains(uri), "{result:#}");
        ensure!(begin.elapsed() < SOON && bed.attempts(id).await? == 1);
    }
    ensure!(executions(&worker) == 0, "the GPU worked for outputs that nobody can have");
    bed.publish(&job("good", "s3://inputs/out")).await?;
    ensure!(bed.answer("good").await?["status"] == "succeeded");

    // One that was there a moment ago: one execution, and no more.
    front.spoil("PUT /inputs/out/", Spoil::Refuse(403), usize::MAX);
    bed.publish(&job("late", "s3://inputs/out")).await?;
    let result = bed.answer("late").await?;
    ensure!(result["error"]["code"] == "output_forbidden", "{result:#}");
    ensure!(executions(&worker) == 2, "{}", executions(&worker));
    site.finish(worker, site.initial()).await?;
    bed.wait_queued(0).await
}

/// As many jobs as workers, whose inputs are away: the others pass, and those are answered in the end.
#[tokio::test]
async fn inputs_that_are_away_hold_up_nobody() -> Result<()> {
    let bed = Bed::new("away-inputs").await?;
    let front = Front::start(bed.s3.address()).await?;
    front.spoil("GET /inputs/far.png", Spoil::Refuse(503), usize::MAX);
    let mut sites = sites(&bed, front.address())?;
    for site in &mut sites {
        *site = site.clone().set("inputs.retry_for", "30s");
    }
    let workers = boot(&sites).await?;
    // Somebody's own, without an expiration: it must not stay, or nothing behind it would come out.
    let plug = RawMessage { routing_key: format!("{}.later", bed.queue()).into(), ..RawMessage::default() };
    bed.broker.publish_raw(&plug).await?;
    let hopeless = ["h1", "h2"];
    for id in hopeless {
        let mut job = staged_job(id, 0.1);
        job["inputs"] = json!({"1.image": "s3://inputs/far.png"});
        bed.publish(&job).await?;
    }
    wait_for("both to be met", JOB, || async {
        workers.iter().any(|worker| worker.log().contains("giving the job back until later"))
    })
    .await?;
    let good: Vec<_> = (0..20).map(|n| format!("g{n}")).collect();
    for id in &good {
        bed.publish(&staged_job(id, 0.1)).await?;
    }
    let all: Vec<_> = good.iter().map(String::as_str).chain(hopeless).collect();
    let answers = bed.answers(&all).await?;
    ensure!(good.iter().all(|id| answers[id]["status"] == "succeeded"), "{answers:#?}");
    let stored_at =
        |id: &str| bed.s3.path("results", &format!("jobs/{id}/result.json")).metadata()?.modified();
    for id in &good {
        for hopeless in hopeless {
            ensure!(stored_at(id)? < stored_at(hopeless)?, "{id} was held up until {hopeless} was given up");
        }
    }
    for id in hopeless {
        let error = &answers[id]["error"];
        ensure!(error["code"] == "input_unavailable", "{error:#}");
        ensure!(error["message"].to_string().contains("far.png"), "{error:#}");
    }
    ensure!(bed.ready(".dead").await == Some(1) && bed.ready(".later").await == Some(0));
    for (site, worker) in sites.iter().zip(workers) {
        site.finish(worker, site.initial()).await?;
    }
    bed.wait_queued(0).await
}

/// A workflow comes within `inputs.timeout` as inputs do, or four jobs whose hosts are slow would hold a worker.
#[tokio::test]
async fn a_workflow_that_does_not_come_is_an_input_that_is_away() -> Result<()> {
    let bed = Bed::new("away-workflow").await?;
    let front = Front::start(bed.s3.address()).await?;
    front.spoil("GET /inputs/workflow.json", Spoil::Delay(Duration::from_secs(600)), usize::MAX);
    bed.s3.put("inputs", "workflow.json", slow_job("x", 0.1)["workflow"].to_string()).await?;
    let site = Site::light(&bed, "a")?.set("inputs.timeout", "2s").set("inputs.retry_for", "5s");
    let site = site.set("store.endpoint", format!("http://{}", front.address()));
    let worker = site.boot().await?;
    for n in 0..5 {
        let id = format!("slow-{n}");
        bed.publish(&json!({"version": 1, "id": id, "workflow_uri": "s3://inputs/workflow.json"})).await?;
    }
    bed.publish(&slow_job("honest", 0.1)).await?;
    let answer = bed.answer("honest").await.with_context(|| worker.log())?;
    ensure!(answer["status"] == "succeeded", "{answer:#}");
    let slow = bed.answer("slow-0").await.with_context(|| worker.log())?;
    ensure!(slow["error"]["code"] == "input_unavailable", "{slow:#}");
    let said = slow["error"]["message"].to_string();
    ensure!(said.contains("workflow_uri was not here within 2s (inputs.timeout)"), "{said}");
    site.finish(worker, site.initial()).await
}

/// Copies that are published while a job runs wait for its end: one execution, equal answers.
#[tokio::test]
async fn copies_of_a_job_that_runs_elsewhere_wait_for_it() -> Result<()> {
    let bed = Bed::new("away-copies").await?;
    let sites = [Site::standin(&bed, "a")?, Site::standin(&bed, "b")?];
    let workers = boot(&sites).await?;
    let job = staged_job("j", 12.0);
    bed.publish(&job).await?;
    wait_for("one to run it", JOB, || async { running(&workers).await == 1 }).await?;
    for _ in 0..3 {
        bed.publish(&job).await?;
    }
    let result = bed.answer("j").await?;
    ensure!(result["status"] == "succeeded" && result["attempt"] == 1, "{result:#}");
    wait_for("the copies' answers", JOB, || async {
        bed.queued().await.is_ok_and(|(ready, _)| ready == 0)
            && bed.ready(".later").await == Some(0)
            && workers.iter().map(|worker| worker.log().matches("answered").count()).sum::<usize>() >= 4
    })
    .await?;
    bed.no_other_answer("j").await?;
    ensure!(bed.attempts("j").await? == 1);
    ensure!(workers.iter().map(executions).sum::<usize>() == 1);
    for (site, worker) in sites.iter().zip(workers) {
        site.finish(worker, site.initial()).await?;
    }
    bed.wait_queued(0).await
}

/// A worker that loses its connection goes on; a worker that gets the job meanwhile leaves it to that one.
#[tokio::test]
async fn a_job_whose_worker_lost_its_connection_is_not_run_a_second_time() -> Result<()> {
    let bed = Bed::new("away-owner").await?;
    let gate = Gate::start(bed.broker_address()?).await?;
    let url = format!("amqp://guest:guest@{}/%2f", gate.address());
    let sites = [Site::standin(&bed, "a")?.set("amqp.url", url), Site::standin(&bed, "b")?];
    let owner = sites[0].boot().await?;
    bed.publish(&staged_job("j", 600.0)).await?;
    wait_running(&owner, "j").await?;
    let other = sites[1].boot().await?;
    // It gets no connection again before the other one has the job.
    gate.set(Fault::Reset, "");
    wait_for("the other one to meet the job", JOB, || async {
        other.log().contains("another delivery of this job is being run")
    })
    .await
    .with_context(|| other.log())?;
    gate.lift();
    let mut workers = [owner, other];
    for worker in &mut workers {
        worker.wait_ready(BOOT).await?;
    }
    ensure!(bed.attempts("j").await? == 1, "the other one began it, too");
    // Each worker listens for orders again a moment after it is ready.
    let cancelled = bed.s3.path("results", "jobs/j/result.json");
    wait_for("the cancel", JOB, || async {
        let _ = bed.order(&json!({"cancel": "j"})).await;
        cancelled.is_file()
    })
    .await?;
    let result = bed.answer("j").await?;
    ensure!(result["status"] == "cancelled" && result["attempt"] == 1, "{result:#}");
    ensure!(workers.iter().map(executions).sum::<usize>() == 1);
    for (site, worker) in sites.iter().zip(workers) {
        site.finish(worker, site.initial()).await?;
    }
    bed.wait_queued(0).await
}
