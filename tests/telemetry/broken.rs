//! A collector that is away, refuses or hangs: jobs go on as if there were none.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use testbed::{Collector, Reception, Signal, wait_for};

use super::{
    SOON,
    bed::{Bed, slow_job},
    site::end,
    traced,
};

/// Runs jobs and gives the log and how long the drain took.
async fn jobs(bed: &Bed, name: &str, collector: &Collector, count: usize) -> Result<(String, Duration)> {
    let site = traced(bed, name, collector)?.env("OTEL_BSP_MAX_QUEUE_SIZE", "64");
    let mut worker = site.boot().await?;
    for number in 0..count {
        let id = format!("{name}-{number}");
        bed.publish(&slow_job(&id, 0.0)).await?;
        let result = bed.answer(&id).await?;
        ensure!(result["status"] == "succeeded", "{result:#}");
        // With everything around it; a try of an export alone takes longer.
        let total = result["timings"]["total_ms"].as_u64().unwrap_or(u64::MAX);
        ensure!(total < 5_000, "{total} ms");
    }
    let begin = Instant::now();
    worker.signal(Signal::TERM)?;
    let (status, _) = end(&mut worker, Duration::ZERO).await?;
    ensure!(status.code() == Some(0), "{status}\n{}", worker.log());
    Ok((worker.log(), begin.elapsed()))
}

#[tokio::test]
async fn a_collector_that_is_ill_harms_no_job_and_is_told_once() -> Result<()> {
    let bed = Bed::new("unhealthy").await?;
    for (name, reception) in [
        ("refuses", Reception::Refuse(503)),
        ("forbids", Reception::Refuse(403)),
        ("hangs", Reception::Stall(Duration::from_secs(3600))),
    ] {
        let collector = Collector::start().await?;
        collector.receive(reception);
        let (log, drain) = jobs(&bed, name, &collector, 12).await?;
        ensure!(collector.requests() > 0, "{name}: nobody asked: then this test shows nothing");
        // A drain takes a second or two in any case.
        ensure!(drain < Duration::from_secs(8), "{name}: the drain took {drain:?}");
        let told = log.matches("cannot reach the trace collector").count();
        // One that hangs is found out at the first limit, which may not have passed.
        ensure!(told == 1 || (name == "hangs" && told == 0), "{name}: told {told} times\n{log}");
        ensure!(
            log.contains("cannot send spans to the trace collector") && log.contains(" lost="),
            "{name}\n{log}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_collector_that_is_away_and_comes_back_is_told_each_time() -> Result<()> {
    let bed = Bed::new("away").await?;
    let collector = Collector::start().await?;
    collector.receive(Reception::Refuse(500));
    let site = traced(&bed, "a", &collector)?;
    let worker = site.boot().await?;
    bed.publish(&slow_job("lost", 0.0)).await?;
    bed.answer("lost").await?;
    wait_for("word of it", SOON, || async { worker.log().contains("cannot reach the trace collector") })
        .await?;
    ensure!(worker.log().contains("status code: 500"), "{}", worker.log());
    collector.receive(Reception::Take);
    bed.publish(&slow_job("found", 0.0)).await?;
    bed.answer("found").await?;
    wait_for("word of it", SOON, || async {
        worker.log().contains("the trace collector is reachable again")
    })
    .await?;
    site.finish(worker, site.initial()).await?;

    // Nobody listens there any more.
    let address = collector.url();
    drop(collector);
    let site = site.set("traces.endpoint", address);
    let worker = site.boot().await?;
    bed.publish(&slow_job("gone", 0.0)).await?;
    ensure!(bed.answer("gone").await?["status"] == "succeeded");
    wait_for("word of it", SOON, || async { worker.log().contains("onnection refused") }).await?;
    site.finish(worker, site.initial()).await
}

#[tokio::test]
async fn what_the_usual_variables_switch_off_is_off() -> Result<()> {
    let (bed, collector) = (Bed::new("variables").await?, Collector::start().await?);
    for (variable, value) in [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_SAMPLER", "always_off")] {
        let site = traced(&bed, "a", &collector)?.env(variable, value);
        let worker = site.boot().await?;
        bed.publish(&slow_job(variable, 0.0)).await?;
        ensure!(bed.answer(variable).await?["status"] == "succeeded");
        site.finish(worker, site.initial()).await?;
        ensure!(collector.requests() == 0, "{variable}");
    }
    Ok(())
}
