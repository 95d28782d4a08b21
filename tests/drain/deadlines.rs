//! `timeout_seconds`, and the message's `expiration`.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use lapin::BasicProperties;
use serde_json::json;

use super::{
    bed::{Bed, slow_job},
    site::{Site, wait_running},
};

/// The promise, and what a machine that builds and tests beside it may add.
const LIMIT: Duration = Duration::from_secs(12 + 5);

fn expiring(after: Duration, published_ago: Duration) -> Result<BasicProperties> {
    let published = SystemTime::now().duration_since(UNIX_EPOCH)?.saturating_sub(published_ago);
    let properties = BasicProperties::default().with_timestamp(published.as_secs());
    Ok(properties.with_expiration(after.as_millis().to_string().into()))
}

#[tokio::test]
async fn both_end_a_job_that_ignores_interrupts_within_12_seconds() -> Result<()> {
    let bed = Bed::new("deadlines").await?;
    let site = Site::standin(&bed, "a")?;
    let worker = site.boot().await?;
    let mut job = slow_job("timeout", 600.0);
    job["workflow"]["2"]["class_type"] = json!("StandinIgnoreInterrupt");
    job["timeout_seconds"] = json!(1.5);
    bed.publish(&job).await?;
    wait_running(&worker, "timeout").await?;
    let begin = Instant::now();
    let result = bed.answer("timeout").await?;
    println!("timeout: after {:?}", begin.elapsed());
    ensure!(begin.elapsed() < LIMIT + Duration::from_millis(1500), "{:?}", begin.elapsed());
    ensure!(result["error"]["code"] == "timeout" && result["error"]["stage"] == "run", "{result:#}");

    job["id"] = json!("expiration");
    job.as_object_mut().map(|job| job.remove("timeout_seconds"));
    let expiration = Duration::from_secs(20);
    bed.publish_with(&job, expiring(expiration, Duration::ZERO)?).await?;
    let begin = Instant::now();
    wait_running(&worker, "expiration").await?;
    let result = bed.answer("expiration").await?;
    println!("expiration: after {:?}", begin.elapsed());
    ensure!(begin.elapsed() < expiration + LIMIT, "{:?}", begin.elapsed());
    ensure!(begin.elapsed() > expiration / 2, "too early: {:?}", begin.elapsed());
    ensure!(result["error"]["code"] == "timeout", "{result:#}");
    ensure!(
        result["error"]["message"].as_str().is_some_and(|text| text.contains("expiration")),
        "{result:#}"
    );
    site.finish(worker, site.initial()).await?;
    bed.wait_queued(0).await
}

/// The broker lets no message out after its expiration: one that seems to be older comes from a
/// publisher whose clock is behind.
#[tokio::test]
async fn a_publishers_clock_that_is_an_hour_off_fails_no_job() -> Result<()> {
    let bed = Bed::new("skew").await?;
    let site = Site::new(&bed, "a")?;
    let worker = site.boot().await?;
    let hour = Duration::from_secs(3600);
    bed.publish_with(&slow_job("behind", 0.1), expiring(Duration::from_secs(60), hour)?).await?;
    let ahead = SystemTime::now().duration_since(UNIX_EPOCH)? + hour;
    let properties =
        BasicProperties::default().with_timestamp(ahead.as_secs()).with_expiration("60000".into());
    bed.publish_with(&slow_job("ahead", 0.1), properties).await?;
    let results = bed.answers(&["ahead", "behind"]).await?;
    ensure!(results.values().all(|result| result["status"] == "succeeded"), "{results:#?}");
    site.finish(worker, site.initial()).await?;
    bed.wait_queued(0).await
}
