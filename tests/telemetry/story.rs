//! A job's trace, as the collector has it.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use testbed::{Collector, TracedSpan, wait_for_value};

use super::SOON;

/// A publisher's trace and span.
pub(super) const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
pub(super) const SPAN: &str = "b7ad6b7169203331";

/// A message of that publisher's, sampled or not.
pub(super) fn published_in(trace: &str, span: &str, sampled: bool) -> BasicProperties {
    with_headers(&[
        ("traceparent", &format!("00-{trace}-{span}-0{}", u8::from(sampled))),
        ("tracestate", "shop=42"),
    ])
}

pub(super) fn with_headers(headers: &[(&str, &str)]) -> BasicProperties {
    let mut table = FieldTable::default();
    for (name, value) in headers {
        table.insert((*name).into(), AMQPValue::LongString((*value).into()));
    }
    BasicProperties::default().with_headers(table)
}

/// One delivery's spans.
#[derive(Debug)]
pub(super) struct Story {
    pub(super) job: TracedSpan,
    pub(super) stages: BTreeMap<String, TracedSpan>,
    pub(super) nodes: Vec<TracedSpan>,
}

impl Story {
    /// The story of the delivery that was this attempt at that job, when its spans have come: a job's is the last to end.
    pub(super) async fn of(collector: &Collector, id: &str, attempt: u32) -> Result<Self> {
        let is_it = |span: &TracedSpan| {
            span.attributes.get("comfy.job.id").is_some_and(|value| value == id)
                && span.attributes.get("comfy.job.attempt").is_some_and(|value| *value == attempt)
        };
        let job = collector.wait_for_span(&format!("the span of {id}"), SOON, is_it).await?;
        Self::beneath(collector, job)
    }

    fn beneath(collector: &Collector, job: TracedSpan) -> Result<Self> {
        let spans = collector.spans();
        let mut stages = BTreeMap::new();
        for stage in spans.iter().filter(|span| span.parent == job.id) {
            ensure!(stages.insert(stage.name.clone(), stage.clone()).is_none(), "two stages {}", stage.name);
        }
        let of_stages = |span: &&TracedSpan| stages.values().any(|stage| stage.id == span.parent);
        let nodes: Vec<TracedSpan> = spans.iter().filter(of_stages).cloned().collect();
        let story = Self { job, stages, nodes };
        story.is_one_trace_and_nested(&spans)?;
        Ok(story)
    }

    /// Every span of this trace that the worker sent is in the story, and within the time of its parent.
    fn is_one_trace_and_nested(&self, spans: &[TracedSpan]) -> Result<()> {
        let Self { job, stages, nodes } = self;
        for stage in stages.values() {
            ensure!(stage.trace == job.trace && within(stage, job), "{stage:#?} is not within {job:#?}");
            ensure!(stage.kind == "INTERNAL", "{stage:#?}");
        }
        for node in nodes {
            let stage = stages.values().find(|stage| stage.id == node.parent).context("no such stage")?;
            ensure!(stage.name == "execute" && node.trace == job.trace && within(node, stage), "{node:#?}");
        }
        let known = |span: &&TracedSpan| {
            span.id == job.id
                || stages.values().any(|stage| stage.id == span.id)
                || nodes.iter().any(|node| node.id == span.id)
        };
        let of_it = spans.iter().filter(|span| span.trace == job.trace && span.parent == job.id);
        for span in of_it {
            ensure!(known(&span), "{span:#?} belongs nowhere");
        }
        Ok(())
    }

    pub(super) fn stage(&self, name: &str) -> Result<&TracedSpan> {
        self.stages.get(name).with_context(|| format!("no stage {name} among {:?}", self.stages.keys()))
    }

    pub(super) fn stage_names(&self) -> Vec<&str> {
        let mut stages: Vec<&TracedSpan> = self.stages.values().collect();
        stages.sort_by_key(|stage| stage.begin);
        stages.iter().map(|stage| stage.name.as_str()).collect()
    }

    pub(super) fn node(&self, id: &str) -> Result<&TracedSpan> {
        let node = self.nodes.iter().find(|node| node.attributes["comfy.node.id"] == id);
        node.with_context(|| format!("no node {id} among {:#?}", self.nodes))
    }

    /// An attribute of the job's span, as text.
    pub(super) fn attribute(&self, name: &str) -> String {
        self.job
            .attributes
            .get(name)
            .map(|value| value.to_string().trim_matches('"').to_owned())
            .unwrap_or_default()
    }
}

fn within(inner: &TracedSpan, outer: &TracedSpan) -> bool {
    outer.begin <= inner.begin && inner.begin <= inner.end && inner.end <= outer.end
}

/// Waits until so many spans of jobs have come.
pub(super) async fn job_spans(collector: &Collector, count: usize) -> Result<Vec<TracedSpan>> {
    let jobs = || async {
        let jobs: Vec<_> = collector.spans().into_iter().filter(|span| span.kind == "CONSUMER").collect();
        (jobs.len() >= count).then_some(jobs)
    };
    wait_for_value(&format!("{count} spans of jobs"), SOON, jobs).await
}
