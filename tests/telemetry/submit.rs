//! `comfy-worker submit`: where a trace begins.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use testbed::Collector;

use super::{
    SOON,
    bed::Bed,
    site::Site,
    story::{SPAN, Story, TRACE},
    traced,
};

#[tokio::test]
async fn a_submitted_jobs_trace_begins_with_its_publishing() -> Result<()> {
    let (bed, collector) = (Bed::new("submit").await?, Collector::start().await?);
    let site = traced(&bed, "a", &collector)?;
    let worker = site.boot().await?;
    let workflow = bed.folder.path().join("prompt.json");
    let prompt = json!({
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 255}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    });
    std::fs::write(&workflow, serde_json::to_vec(&prompt)?)?;
    let file = workflow.to_str().context("no UTF-8")?;
    let outputs = bed.folder.path().join("out");
    let call = ["submit", file, "--id", "traced", "--wait", "-o", outputs.to_str().context("no UTF-8")?];
    let (code, _, err) = site.command(&call).await?;
    ensure!(code == 0, "{err}");
    let story = Story::of(&collector, "traced", 1).await?;
    let producer = |span: &testbed::TracedSpan| span.kind == "PRODUCER";
    let producer = collector.wait_for_span("the publishing's span", SOON, producer).await?;
    ensure!(story.job.trace == producer.trace && story.job.parent == producer.id, "{story:#?} {producer:#?}");
    ensure!(producer.parent.is_empty() && producer.error.is_none(), "{producer:#?}");
    ensure!(producer.name == format!("publish {}", bed.queue()), "{producer:#?}");
    ensure!(producer.attributes["comfy.job.id"] == "traced", "{producer:#?}");
    ensure!(producer.attributes["messaging.operation.type"] == "send", "{producer:#?}");
    ensure!(producer.begin <= story.job.begin, "{producer:#?} {:#?}", story.job);

    // Not traced itself, it hands on what it was called in; else with its own span in between.
    let context = format!("00-{TRACE}-{SPAN}-01");
    let untraced = Site::light(&bed, "u")?.env("TRACEPARENT", &context);
    let traced = traced(&bed, "t", &collector)?.env("TRACEPARENT", &context);
    for (site, id) in [(&untraced, "handed-on"), (&traced, "in-between")] {
        let (code, _, err) = site.command(&["submit", file, "--id", id, "--wait", "-o", call[6]]).await?;
        ensure!(code == 0, "{err}");
    }
    let handed_on = Story::of(&collector, "handed-on", 1).await?;
    ensure!(handed_on.job.trace == TRACE && handed_on.job.parent == SPAN, "{:#?}", handed_on.job);
    let in_between = Story::of(&collector, "in-between", 1).await?;
    let is_it = |span: &testbed::TracedSpan| span.id == in_between.job.parent;
    let producer = collector.wait_for_span("the publishing's span", SOON, is_it).await?;
    ensure!(producer.trace == TRACE && producer.parent == SPAN, "{producer:#?}");
    site.finish(worker, site.initial()).await
}
