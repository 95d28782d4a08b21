//! One trace a job, in its publisher's: stages, nodes, failures, links.

use anyhow::{Context as _, Result, ensure};
use lapin::BasicProperties;
use serde_json::json;
use testbed::{Collector, Signal, Worker, wait_for};

use super::{
    SOON,
    bed::{Bed, slow_job, ui_job},
    site::{Site, end, wait_running},
    story::{SPAN, Story, TRACE, job_spans, published_in, with_headers},
    traced,
};

#[tokio::test]
async fn a_job_is_one_trace_in_its_publishers() -> Result<()> {
    let (bed, collector) = (Bed::new("trace").await?, Collector::start().await?);
    let site = traced(&bed, "a", &collector)?
        .env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,host.name=named")
        .env("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip");
    let worker = site.boot().await?;
    bed.publish_with(&ui_job("j")?, published_in(TRACE, SPAN, true).with_message_id("m".into())).await?;
    let result = bed.answer("j").await?;
    ensure!(result["status"] == "succeeded", "{result:#}");

    let story = Story::of(&collector, "j", 1).await?;
    let job = &story.job;
    ensure!(job.trace == TRACE && job.parent == SPAN && job.trace_state == "shop=42", "{job:#?}");
    ensure!(job.kind == "CONSUMER" && job.name == format!("process {}", bed.queue()), "{job:#?}");
    ensure!(job.error.is_none() && job.links.is_empty(), "{job:#?}");
    for (name, value) in [
        ("messaging.system", "rabbitmq"),
        ("messaging.destination.name", &bed.queue()),
        ("messaging.operation.name", "process"),
        ("messaging.operation.type", "process"),
        ("messaging.message.id", "m"),
        ("messaging.rabbitmq.message.redelivered", "false"),
        ("comfy.job.id", "j"),
        ("comfy.job.attempt", "1"),
        ("comfy.job.status", "succeeded"),
        ("error.type", ""),
    ] {
        ensure!(story.attribute(name) == value, "{name}: {job:#?}");
    }
    let resource = |name: &str| job.resource.get(name).cloned().unwrap_or_default();
    ensure!(resource("service.name") == "comfy-worker", "{:#?}", job.resource);
    ensure!(resource("service.version") == env!("CARGO_PKG_VERSION"), "{:#?}", job.resource);
    ensure!(resource("service.instance.id") == "a", "{:#?}", job.resource);
    // What the operator says stands.
    ensure!(resource("host.name") == "named", "{:#?}", job.resource);
    ensure!(resource("deployment.environment.name") == "test", "{:#?}", job.resource);

    let mut stages = story.stage_names();
    // Those two go side by side.
    stages[1..3].sort_unstable();
    ensure!(
        stages == ["accept", "convert", "stage", "wait", "execute", "collect", "upload", "record", "publish"],
        "{stages:?}"
    );
    let (accept, wait, execute) = (story.stage("accept")?, story.stage("wait")?, story.stage("execute")?);
    for name in ["stage", "convert"] {
        let stage = story.stage(name)?;
        ensure!(accept.end <= stage.begin && stage.end <= wait.begin, "{name}: {:#?}", story.stages);
    }
    ensure!(wait.end <= execute.begin, "{wait:#?}\n{execute:#?}");
    let pairs = [("execute", "collect"), ("collect", "upload"), ("upload", "record"), ("record", "publish")];
    for (before, after) in pairs {
        ensure!(
            story.stage(before)?.end <= story.stage(after)?.begin,
            "{before}, {after}: {:#?}",
            story.stages
        );
    }
    ensure!(story.stages.values().all(|stage| stage.error.is_none()), "{:#?}", story.stages);
    // As long as the result says, to the millisecond that it rounds to and one for the way between the clocks.
    let executed = result["timings"]["executed_ms"].as_u64().context("no executed_ms")?;
    ensure!(
        ((execute.end - execute.begin) / 1_000_000).abs_diff(executed) <= 50,
        "{executed} ms: {execute:#?}"
    );

    ensure!(story.nodes.len() == 3, "{:#?}", story.nodes);
    for (id, class) in [("1", "LoadImage"), ("2", "ImageInvert"), ("3", "SaveImage")] {
        let node = story.node(id)?;
        ensure!(node.attributes["comfy.node.class"] == class, "{node:#?}");
        ensure!(node.attributes["comfy.node.cached"] == false && node.error.is_none(), "{node:#?}");
        let title = node.attributes["comfy.node.title"].as_str().context("no title")?;
        ensure!(node.name == format!("node {title}"), "{node:#?}");
    }
    ensure!(story.node("1")?.end <= story.node("2")?.begin && story.node("2")?.end <= story.node("3")?.begin);
    site.finish(worker, site.initial()).await
}

#[tokio::test]
async fn remembered_nodes_are_told_apart_and_take_nothing() -> Result<()> {
    let (bed, collector) = (Bed::new("cached").await?, Collector::start().await?);
    let site = traced(&bed, "a", &collector)?;
    let worker = site.boot().await?;
    for id in ["first", "second"] {
        bed.publish(&slow_job(id, 0.3)).await?;
        bed.answer(id).await?;
    }
    let (first, second) =
        (Story::of(&collector, "first", 1).await?, Story::of(&collector, "second", 1).await?);
    ensure!(first.job.trace != second.job.trace, "each is a trace of its own");
    ensure!(first.job.parent.is_empty() && second.job.parent.is_empty());
    let slept = first.node("2")?;
    ensure!((250_000_000..5_000_000_000).contains(&(slept.end - slept.begin)), "{slept:#?}");
    for id in ["1", "2"] {
        let node = second.node(id)?;
        ensure!(node.attributes["comfy.node.cached"] == true && node.begin == node.end, "{node:#?}");
    }
    // It saves under the job's own prefix.
    ensure!(second.node("3")?.attributes["comfy.node.cached"] == false);
    let execute = second.stage("execute")?;
    ensure!(
        execute.attributes["comfy.nodes"] == 3 && execute.attributes["comfy.nodes.cached"] == 2,
        "{execute:#?}"
    );
    site.finish(worker, site.initial()).await
}

#[tokio::test]
async fn a_context_that_is_none_is_ignored_and_an_unsampled_one_honoured() -> Result<()> {
    let (bed, collector) = (Bed::new("contexts").await?, Collector::start().await?);
    let site = traced(&bed, "a", &collector)?;
    let worker = site.boot().await?;
    let (long, zero) = ("0".repeat(10_000), format!("00-{}-{SPAN}-01", "0".repeat(32)));
    let headers = ["", "so", zero.as_str(), long.as_str(), "00-\u{1b}[31m-\n-ä"];
    bed.publish_with(&slow_job("unsampled", 0.0), published_in(TRACE, SPAN, false)).await?;
    bed.answer("unsampled").await?;
    for (number, header) in headers.iter().enumerate() {
        let id = format!("j-{number}");
        bed.publish_with(&slow_job(&id, 0.0), with_headers(&[("traceparent", header)])).await?;
        ensure!(bed.answer(&id).await?["status"] == "succeeded");
    }
    let jobs = job_spans(&collector, headers.len()).await?;
    ensure!(jobs.iter().all(|job| job.parent.is_empty() && job.trace != TRACE), "{jobs:#?}");
    site.finish(worker, site.initial()).await?;
    // Flushed at its end: now nothing more comes.
    ensure!(job_spans(&collector, headers.len()).await?.len() == headers.len());
    ensure!(
        collector.spans().iter().all(|span| span.trace != TRACE),
        "a span that its publisher does not sample"
    );
    Ok(())
}

#[tokio::test]
async fn failures_stand_where_they_were_met() -> Result<()> {
    let (bed, collector) = (Bed::new("failures").await?, Collector::start().await?);
    let site = traced(&bed, "a", &collector)?;
    let worker = site.boot().await?;
    let mut fails = slow_job("fails", 0.0);
    fails["workflow"]["2"] = json!({"class_type": "StandinFail", "inputs": {
        "message": "no such luck", "exception_type": "ValueError", "image": ["1", 0]}});
    let mut missing = slow_job("missing", 0.0);
    missing["workflow"]["1"] = json!({"class_type": "LoadImage", "inputs": {"image": "x.png"}});
    missing["inputs"] = json!({"1.image": "s3://inputs/not-there.png"});
    for job in [&fails, &missing, &json!({"version": 1, "id": "invalid", "workflow": {}, "typo": 1})] {
        bed.publish(job).await?;
        bed.answer(job["id"].as_str().context("no id")?).await?;
    }

    let story = Story::of(&collector, "fails", 1).await?;
    let told = story.job.error.clone().context("no error")?;
    ensure!(told.contains("node 2 (StandinFail): ValueError: no such luck"), "{told}");
    ensure!(story.attribute("error.type") == "execution_error", "{:#?}", story.job);
    ensure!(story.attribute("comfy.job.status") == "failed", "{:#?}", story.job);
    let execute = story.stage("execute")?;
    ensure!(execute.error.is_some() && execute.attributes["error.type"] == "execution_error", "{execute:#?}");
    ensure!(story.node("2")?.error.is_some() && story.node("1")?.error.is_none(), "{:#?}", story.nodes);
    ensure!(story.stage("publish")?.error.is_none() && !story.stages.contains_key("upload"));

    let story = Story::of(&collector, "missing", 1).await?;
    ensure!(
        story.attribute("error.type") == "input_not_found" && story.job.error.is_some(),
        "{:#?}",
        story.job
    );
    ensure!(
        story.stage("stage")?.error.is_some() && !story.stages.contains_key("execute"),
        "{:#?}",
        story.stages
    );

    let is_it =
        |span: &testbed::TracedSpan| span.attributes.get("comfy.job.id").is_some_and(|id| id == "invalid");
    let refused = collector.wait_for_span("the refused job's span", SOON, is_it).await?;
    ensure!(refused.error.as_ref().is_some_and(|told| told.contains("typo")), "{refused:#?}");
    ensure!(refused.attributes["error.type"] == "invalid_job", "{refused:#?}");
    site.finish(worker, site.initial()).await
}

/// The killed worker's own span is never sent: its marker names it.
#[tokio::test]
async fn a_redelivery_links_the_attempt_before_it() -> Result<()> {
    let (bed, collector) = (Bed::new("redelivered").await?, Collector::start().await?);
    let site = traced(&bed, "a", &collector)?;
    let mut worker = site.boot().await?;
    bed.publish_with(&slow_job("j", 3.0), published_in(TRACE, SPAN, true)).await?;
    wait_running(&worker, "j").await?;
    worker.signal(Signal::KILL)?;
    end(&mut worker, std::time::Duration::ZERO).await?;
    let marker = bed.marker("j", 1).await?;
    let former = marker["traceparent"].as_str().context("the marker names no span")?;
    let former = former.strip_prefix(&format!("00-{TRACE}-")).context("another trace")?;
    let former = former.strip_suffix("-01").context("not sampled")?.to_owned();
    bed.wait_queued(1).await?;

    let other = traced(&bed, "b", &collector)?;
    let worker = other.boot().await?;
    ensure!(bed.answer("j").await?["attempt"] == 2);
    let story = Story::of(&collector, "j", 2).await?;
    ensure!(story.job.trace == TRACE && story.job.parent == SPAN, "{:#?}", story.job);
    ensure!(story.job.links == [(TRACE.to_owned(), former.clone())], "{:#?}", story.job.links);
    ensure!(story.job.id != former && story.job.resource["service.instance.id"] == "b", "{:#?}", story.job);
    ensure!(story.attribute("messaging.rabbitmq.message.redelivered") == "true", "{:#?}", story.job);
    ensure!(story.attribute("messaging.rabbitmq.message.delivery_count") == "1", "{:#?}", story.job);

    // Sent again it is only answered again.
    bed.publish_with(&slow_job("j", 3.0), published_in(TRACE, SPAN, true)).await?;
    bed.answer("j").await?;
    let is_it = |span: &testbed::TracedSpan| span.attributes.contains_key("comfy.job.repeated");
    let repeated = collector.wait_for_span("the repeated job's span", SOON, is_it).await?;
    ensure!(repeated.links == [(TRACE.to_owned(), former)] && repeated.trace == TRACE, "{repeated:#?}");
    ensure!(
        repeated.attributes["comfy.job.status"] == "succeeded" && repeated.error.is_none(),
        "{repeated:#?}"
    );
    other.finish(worker, other.initial()).await
}

/// Markers of a worker that traces nothing, and of one before there were traces, have no such field.
#[tokio::test]
async fn a_marker_without_a_span_is_no_obstacle() -> Result<()> {
    let (bed, collector) = (Bed::new("untraced").await?, Collector::start().await?);
    let site = Site::light(&bed, "a")?.set("worker.grace", "1s");
    let mut worker = site.boot().await?;
    bed.publish_with(&slow_job("j", 4.0), published_in(TRACE, SPAN, true)).await?;
    wait_running(&worker, "j").await?;
    ensure!(!has_thread(&worker)?, "off, and a thread");
    worker.signal(Signal::TERM)?;
    site.wait_drained(&mut worker, site.initial(), std::time::Duration::from_secs(1)).await?;
    ensure!(bed.marker("j", 1).await?.get("traceparent").is_none());

    let other = traced(&bed, "b", &collector)?;
    let worker = other.boot().await?;
    ensure!(has_thread(&worker)?, "the SDK's thread has another name now: this test shows nothing");
    bed.answer("j").await?;
    let story = Story::of(&collector, "j", 2).await?;
    ensure!(story.job.links.is_empty() && story.job.parent == SPAN, "{:#?}", story.job);
    other.finish(worker, other.initial()).await
}

/// Whether the SDK's thread runs in the worker.
fn has_thread(worker: &Worker) -> Result<bool> {
    for thread in std::fs::read_dir(format!("/proc/{}/task", worker.pid()))? {
        let name = std::fs::read_to_string(thread?.path().join("comm")).unwrap_or_default();
        if name.starts_with("OpenTelemetry") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Handed back by a drain: what was traced is sent before the end, cut short as it was.
#[tokio::test]
async fn a_drain_sends_what_is_left() -> Result<()> {
    let (bed, collector) = (Bed::new("flushed").await?, Collector::start().await?);
    let site =
        traced(&bed, "a", &collector)?.set("worker.grace", "1s").env("OTEL_BSP_SCHEDULE_DELAY", "3600000");
    let mut worker = site.boot().await?;
    bed.publish_with(&slow_job("j", 600.0), BasicProperties::default()).await?;
    wait_running(&worker, "j").await?;
    wait_for("node 2 to run", SOON, || async {
        super::site::status(&worker).await.is_ok_and(|status| status["job"]["node"] == "2")
    })
    .await?;
    ensure!(collector.requests() == 0, "sent before: then this test shows nothing");
    worker.signal(Signal::TERM)?;
    site.wait_drained(&mut worker, site.initial(), std::time::Duration::from_secs(1)).await?;
    let story = Story::of(&collector, "j", 1).await?;
    ensure!(story.attribute("comfy.job.handed_back") == "the worker is shutting down", "{:#?}", story.job);
    ensure!(story.job.error.is_none() && story.attribute("comfy.job.status").is_empty(), "{:#?}", story.job);
    let execute = story.stage("execute")?;
    let node = story.node("2")?;
    ensure!(execute.error.is_none() && node.end - node.begin >= 500_000_000, "{execute:#?} {node:#?}");
    Ok(())
}
