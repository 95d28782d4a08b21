//! What a job leaves goes, whatever became of it; and a removal that takes long holds nobody up.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use testbed::{Signal, wait_for};

use super::{
    SOON,
    bed::{Bed, slow_job, staged_job},
    site::{Site, end, wait_running},
};

/// A file system that hangs: the jobs after it run and are answered, and so does a drain end.
#[tokio::test]
async fn a_removal_that_hangs_holds_up_neither_jobs_nor_the_drain() -> Result<()> {
    let bed = Bed::new("removal-hangs").await?;
    let phases = bed.folder.path().join("phases");
    fs::create_dir(&phases)?;
    let site =
        Site::new(&bed, "a")?.set("worker.grace", "2s").env("COMFY_PHASES", phases.display().to_string());
    let before = site.snapshot()?;
    let mut worker = site.boot().await?;
    for phase in ["removing", "removing-outputs"] {
        fs::write(phases.join(phase), "")?;
    }
    bed.publish(&with_a_preview(staged_job("first", 0.1))).await?;
    let result = bed.answer("first").await?;
    ensure!(result["status"] == "succeeded", "{result:#}");
    let held = || async { ["removing", "removing-outputs"].iter().all(|phase| is_held(&phases, phase)) };
    wait_for("the removals to be held", SOON, held).await?;

    bed.publish(&staged_job("second", 3.0)).await?;
    // Frames of the websocket come and are told.
    wait_running(&worker, "second").await?;
    let result = bed.answer("second").await?;
    ensure!(result["status"] == "succeeded" && result["attempt"] == 1, "{result:#}");
    for id in ["first", "second"] {
        ensure!(site.inputs_of(id).is_some(), "{id} is removed: nothing was held");
    }

    worker.signal(Signal::TERM)?;
    let (status, took) = end(&mut worker, Duration::from_secs(2)).await?;
    ensure!(status.code() == Some(0), "{status} after {took:?}\n{}", worker.log());
    bed.wait_queued(0).await?;
    let left = site.journal()?;
    ensure!(left.contains("/input/first") && left.contains("/input/second"), "not journalled:\n{left}");

    let worker = site.boot().await?;
    site.finish(worker, &before).await
}

/// Files outside the job's own folder, by nodes with a naming of their own, and previews.
#[tokio::test]
async fn what_nodes_wrote_goes_with_jobs_that_fail_too() -> Result<()> {
    let bed = Bed::new("nodes-leave").await?;
    let site = Site::standin(&bed, "a")?;
    let worker = site.boot().await?;
    let failing = {
        let mut job = leaving("failing", 1.0);
        job["workflow"]["3"] = json!({"class_type": "StandinFail", "inputs": {
            "message": "no", "exception_type": "ValueError", "image": ["2", 0]}});
        job
    };
    let late = {
        let mut job = leaving("late", 600.0);
        job["timeout_seconds"] = json!(3);
        job
    };
    for (job, status, code) in [
        (failing, "failed", "execution_error"),
        (late, "failed", "timeout"),
        (leaving("cancelled", 600.0), "cancelled", "cancelled"),
        (leaving("fine", 1.0), "succeeded", ""),
    ] {
        let id = job["id"].as_str().unwrap_or_default().to_owned();
        bed.publish(&job).await?;
        let written = || async { left_by(&site, &id).is_ok_and(|left| left == 2) };
        wait_for("a file and a preview", SOON, written).await.with_context(|| worker.log())?;
        if id == "cancelled" {
            bed.order(&json!({"cancel": id})).await?;
        }
        let result = bed.answer(&id).await?;
        ensure!(result["status"] == status, "{result:#}");
        ensure!(code.is_empty() || result["error"]["code"] == code, "{result:#}");
        let gone = || async { left_by(&site, &id).is_ok_and(|left| left == 0) };
        wait_for(&format!("what {id} wrote to be gone"), SOON, gone).await?;
    }
    site.finish(worker, site.initial()).await
}

fn is_held(phases: &Path, phase: &str) -> bool {
    phases.join(format!("{phase}.reached")).exists()
}

fn with_a_preview(mut job: Value) -> Value {
    job["workflow"]["7"] = json!({"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}});
    job
}

/// A job that saves a file under a name that another node gives, and shows a preview, before it takes its time.
fn leaving(id: &str, seconds: f64) -> Value {
    let mut job = with_a_preview(slow_job(id, seconds));
    // Of its own, or the next job finds it in the cache.
    let color = id.bytes().map(u32::from).sum::<u32>();
    job["workflow"]["1"]["inputs"]["color"] = json!(color);
    job["workflow"]["0"] =
        json!({"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": ["6", 0]}});
    job["workflow"]["6"] =
        json!({"class_type": "PrimitiveString", "inputs": {"value": format!("named-{id}")}});
    // Further from an output than the text is: what is nearer runs first.
    job["workflow"]["5"] = json!({"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}});
    job["workflow"]["8"] = json!({"class_type": "ImageInvert", "inputs": {"image": ["5", 0]}});
    job["workflow"]["2"]["inputs"]["image"] = json!(["8", 0]);
    job
}

/// How many files of this job's own naming and previews there are.
fn left_by(site: &Site, id: &str) -> Result<usize> {
    let named = fs::read_dir(site.folder("output"))?.flatten();
    let named =
        named.filter(|file| file.file_name().to_string_lossy().contains(&format!("named-{id}"))).count();
    let previews = match fs::read_dir(site.folder("temp")) {
        Ok(previews) => previews.count(),
        Err(_) => 0,
    };
    Ok(named + previews)
}
