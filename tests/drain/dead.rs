//! Jobs that the broker itself gives up: their publisher is told, once.

use anyhow::{Result, ensure};
use lapin::BasicProperties;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use testbed::{Fault, Gate, wait_for};

use super::{
    JOB, SOON,
    bed::{Bed, slow_job},
    site::{Site, status, wait_running},
};

/// Killed workers, or any that hand back, before one could mark an attempt.
#[tokio::test]
async fn the_publisher_of_a_job_at_its_delivery_limit_is_told_once() -> Result<()> {
    let bed = Bed::new("dead").await?;
    let site = Site::new(&bed, "a")?.set("amqp.delivery_limit", "1");
    // Declares the queues.
    ensure!(dead(&site, &["list"], 0).await?.is_empty());
    bed.publish(&slow_job("j", 0.1)).await?;
    bed.publish(&json!({"version": 1, "id": "typo", "workflo": {}})).await?;
    // An answer that stands is not replaced.
    bed.publish(&slow_job("answered", 0.1)).await?;
    bed.s3.put("results", "jobs/answered/result.json", r#"{"stands": true}"#).await?;
    let body = serde_json::to_vec(&slow_job("answered", 0.1))?;
    let digest: String = Sha256::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect();
    let marker = json!({"version": 1, "attempt": 1, "worker": "w", "body_sha256": digest, "closed": null});
    bed.s3.put("results", "jobs/answered/attempts/1.json", serde_json::to_vec(&marker)?).await?;
    for _ in 0..2 {
        bed.hand_back(3).await?;
    }
    wait_for("the dead letters", SOON, || async {
        bed.ready(".dead").await == Some(3) && bed.ready(".dead.notices").await == Some(3)
    })
    .await?;

    let worker = site.boot().await?;
    let answers = bed.answers(&["j", "typo", "answered"]).await?;
    let error = &answers["j"]["error"];
    ensure!(answers["j"]["status"] == "failed" && error["code"] == "poison", "{:#}", answers["j"]);
    for words in ["delivery limit", "dead letters of drain-dead.jobs"] {
        ensure!(error["message"].as_str().is_some_and(|text| text.contains(words)), "{error}");
    }
    ensure!(answers["typo"]["error"]["code"] == "invalid_job", "{:#}", answers["typo"]);
    ensure!(answers["answered"] == json!({"stands": true}), "{:#}", answers["answered"]);
    wait_for("the notices' end", SOON, || async { bed.ready(".dead.notices").await == Some(0) }).await?;
    ensure!(bed.attempts("j").await? == 1, "one attempt: the one that told");

    // Jobs go on beside it. A rejected letter needs no answer.
    bed.publish_unasked(b"no job").await?;
    wait_for("the rejected letter", SOON, || async { bed.ready(".dead").await == Some(4) }).await?;
    bed.publish(&slow_job("k", 0.1)).await?;
    ensure!(bed.answer("k").await?["status"] == "succeeded");

    // The letter is still there, and its job can be run once the reason is fixed.
    let letters = dead(&site, &["list"], 0).await?;
    let reasons: Vec<_> =
        letters.iter().map(|letter| letter["reason"].as_str().unwrap_or_default()).collect();
    ensure!(reasons == ["delivery_limit", "delivery_limit", "delivery_limit", "rejected"], "{letters:#?}");
    ensure!(dead(&site, &["retry", "j"], 1).await?.iter().all(|line| line["error"].is_string()));
    bed.no_other_answer("j").await?;
    dead(&site, &["retry", "j", "--again"], 0).await?;
    let again = bed.answer("j").await?;
    ensure!(again["status"] == "succeeded" && again["attempt"] == 1, "{again:#}");
    ensure!(bed.ready(".dead").await == Some(3));
    wait_for("the worker to be idle", SOON, || async {
        status(&worker).await.is_ok_and(|status| status["job"].is_null())
    })
    .await?;
    site.finish(worker, site.initial()).await?;
    bed.wait_queued(0).await?;
    ensure!(bed.ready(".dead.notices").await == Some(0), "a notice came back");
    bed.no_other_answer("j").await
}

/// Its answer is that of the job that runs, which may take days.
#[tokio::test]
async fn the_copy_of_a_job_that_runs_holds_up_no_other_notice() -> Result<()> {
    let bed = Bed::new("dead-copy").await?;
    let site = Site::light(&bed, "a")?.set("amqp.lookahead", "0");
    let worker = site.boot().await?;
    let running = slow_job("long", 600.0);
    bed.publish(&running).await?;
    wait_running(&worker, "long").await?;
    let brief = || BasicProperties::default().with_expiration("300".into());
    bed.publish_with(&running, brief()).await?;
    let copy_waits =
        || async { worker.log().contains("the publisher of a dead-lettered job is answered later") };
    wait_for("the copy's notice", SOON, copy_waits).await?;
    bed.publish_with(&slow_job("honest", 0.1), brief()).await?;
    let answer = bed.answer("honest").await?;
    ensure!(answer["error"]["code"] == "timeout", "{answer:#}");
    let still = status(&worker).await?;
    ensure!(still["job"]["id"] == "long", "the job has ended, and so its copy's wait: {still:#}");
    let (code, out, err) = site.command(&["cancel", "long"]).await?;
    ensure!(code == 0, "{out} {err}");
    ensure!(bed.answer("long").await?["status"] == "cancelled");
    wait_for("the notices' end", JOB, || async { bed.ready(".dead.notices").await == Some(0) }).await?;
    site.finish(worker, site.initial()).await
}

/// It holds up neither jobs nor the drain, and is not lost.
#[tokio::test]
async fn a_notice_waits_for_the_store_while_jobs_go_on() -> Result<()> {
    let bed = Bed::new("dead-later").await?;
    let gate = Gate::start(bed.s3.address()).await?;
    let endpoint = format!("http://{}", gate.address());
    let site = Site::new(&bed, "a")?.set("amqp.delivery_limit", "1").set("store.endpoint", endpoint);
    dead(&site, &["list"], 0).await?;
    bed.publish(&slow_job("j", 0.1)).await?;
    for _ in 0..2 {
        bed.hand_back(1).await?;
    }
    wait_for("the notice", SOON, || async { bed.ready(".dead.notices").await == Some(1) }).await?;
    gate.set(Fault::Reset, "results/jobs/j/");
    let worker = site.boot().await?;
    gate.wait_caught(SOON).await?;
    bed.publish(&slow_job("k", 0.1)).await?;
    ensure!(bed.answer("k").await?["status"] == "succeeded");
    wait_for("word of it", SOON, || async { worker.log().contains("trying again after a pause") }).await?;
    ensure!(bed.ready(".dead.notices").await == Some(0), "the notice is kept in hand");
    site.finish(worker, site.initial()).await?;
    wait_for("its return", SOON, || async { bed.ready(".dead.notices").await == Some(1) }).await?;

    gate.lift();
    let worker = site.boot().await?;
    ensure!(bed.answer("j").await?["error"]["code"] == "poison");
    wait_for("the notice's end", SOON, || async { bed.ready(".dead.notices").await == Some(0) }).await?;
    site.finish(worker, site.initial()).await?;
    ensure!(bed.ready(".dead.notices").await == Some(0), "the notice came back");
    bed.no_other_answer("j").await
}

/// `comfy-worker dead …`: its lines.
async fn dead(site: &Site, arguments: &[&str], code: i32) -> Result<Vec<Value>> {
    let mut command = site.builder().command(&[&["dead"], arguments, &["--json"]].concat())?;
    let output = command.kill_on_drop(true).output().await?;
    ensure!(output.status.code() == Some(code), "{output:?}");
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
}
