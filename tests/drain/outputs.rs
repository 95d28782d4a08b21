//! Outputs go to the store while later nodes still run.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use testbed::wait_for;

use super::{
    JOB,
    bed::{Bed, slow_job},
    site::{Site, status},
};

#[tokio::test]
async fn an_output_is_in_the_store_while_the_next_node_runs() -> Result<()> {
    let bed = Bed::new("early-output").await?;
    let site = Site::new(&bed, "a")?;
    let worker = site.boot().await?;
    let job = two_pictures("pictures", 8.0);
    bed.publish(&job).await?;
    let stored = || async { bed.s3.list("results", "jobs/pictures/1/outputs/").await };
    wait_for("the first picture in the store", JOB, || async {
        stored().await.is_ok_and(|found| found.iter().any(|name| format!("{name:?}").contains("first")))
    })
    .await?;
    let now = status(&worker).await?;
    ensure!(now["job"]["event"] == "progress", "it came when all was over: {now:#}");
    let result = bed.answer("pictures").await?;
    ensure!(result["status"] == "succeeded", "{result:#}");
    ensure!(result["outputs"].as_array().map(Vec::len) == Some(2), "{result:#}");

    // What a job that fails has brought there goes.
    let mut job = two_pictures("failing", 0.1);
    job["workflow"]["3"] = json!({"class_type": "StandinFail", "inputs": {
        "message": "no", "exception_type": "ValueError", "image": ["2", 0]}});
    bed.publish(&job).await?;
    let result = bed.answer("failing").await?;
    ensure!(result["status"] == "failed", "{result:#}");
    let left = bed.s3.list("results", "jobs/failing/1/outputs/").await?;
    ensure!(left.is_empty(), "{left:?}");
    site.finish(worker, site.initial()).await
}

/// One is saved before the node that takes its time: of the nodes that can run, those with outputs go
/// first (`ux_friendly_pick_node` in ComfyUI's `comfy_execution/graph.py`).
fn two_pictures(id: &str, seconds: f64) -> Value {
    let mut job = slow_job(id, seconds);
    job["workflow"]["0"] =
        json!({"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "first"}});
    job["workflow"]["5"] = json!({"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}});
    job["workflow"]["2"]["inputs"]["image"] = json!(["5", 0]);
    job
}
