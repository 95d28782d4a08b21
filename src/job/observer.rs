//! Forwards the progress of an execution to the scheduler (time that is left), to event subscribers, to eager uploads and to
//! the trace.

use std::time::Instant;

use contract::prompt::{Prompt, node_title};
use serde_json::Value;

use super::{report::Reporter, scheduler::PromptPermit, stage_failure::StageFailure};
use crate::telemetry::{NodeTime, StageName, StageSpan};
use connector::{
    comfy::{
        Executed, Observer, PromptId,
        events::Image,
        history::ExecutionOutcome,
        tracker::{NodeRun, Progress},
    },
    deliver::EagerUploads,
};

/// Watches one execution.
pub(super) struct ExecutionObserver<'a> {
    reporter: &'a Reporter,
    place: &'a PromptPermit<'a>,
    early: &'a mut EagerUploads,
    /// The wait for the execution, then that itself.
    stage: StageSpan,
    started: bool,
    origin: Instant,
    runs: Vec<NodeRun>,
}

impl<'a> ExecutionObserver<'a> {
    /// Its prompt is about to be posted, in the stage `wait`.
    pub(super) fn new(
        reporter: &'a Reporter,
        place: &'a PromptPermit<'a>,
        early: &'a mut EagerUploads,
        wait: StageSpan,
    ) -> Self {
        let (origin, runs) = (Instant::now(), Vec::new());
        Self { reporter, place, early, stage: wait, started: false, origin, runs }
    }

    fn executes(&mut self) {
        if !std::mem::replace(&mut self.started, true) {
            self.stage.becomes(StageName::Execute);
        }
    }

    /// It is over and has a history.
    pub(super) fn ended(mut self, prompt: &Prompt, executed: &Executed) {
        // So it ran, whether or not anybody saw it start.
        self.executes();
        if !self.stage.is_traced() {
            return;
        }
        let outcome = executed.history.outcome();
        let mut nodes = self.nodes(prompt);
        let cached = executed.nodes.iter().filter(|(_, timing)| timing.cached);
        nodes.extend(cached.map(|(id, _)| NodeTime { cached: true, ..node(prompt, id, self.origin) }));
        if let ExecutionOutcome::Failed(failure) = &outcome
            && let Some(failed) = nodes.iter_mut().rev().find(|node| node.id == failure.node_id)
        {
            failed.failure = Some(failure.to_string());
        }
        self.stage.nodes(nodes);
        if let Some(failure) = executed.failure() {
            self.stage.fails(&failure);
        }
    }

    /// It came to no history.
    pub(super) fn failed(self, prompt: &Prompt, met: &StageFailure) {
        if self.started && self.stage.is_traced() {
            self.stage.nodes(self.nodes(prompt));
        }
        self.stage.fails(met);
    }

    fn nodes<'b>(&'b self, prompt: &'b Prompt) -> Vec<NodeTime<'b>> {
        let times = self.runs.iter().map(|run| {
            let begin = self.origin.checked_add(run.begin).unwrap_or(self.origin);
            NodeTime { took: run.took, ..node(prompt, &run.node, begin) }
        });
        times.collect()
    }
}

fn node<'a>(prompt: &'a Prompt, id: &'a str, begin: Instant) -> NodeTime<'a> {
    let known = prompt.get(id);
    NodeTime {
        id,
        class: known.and_then(|node| node.get("class_type")?.as_str()),
        title: known.map(|_| node_title(prompt, id)),
        begin,
        took: std::time::Duration::ZERO,
        cached: false,
        failure: None,
    }
}

impl Observer for ExecutionObserver<'_> {
    fn queued(&mut self, prompt_id: PromptId) {
        self.reporter.queued(prompt_id);
    }

    fn started(&mut self) {
        self.executes();
        self.reporter.started();
    }

    fn progress(&mut self, progress: &Progress) {
        self.place.expect(progress.left);
        self.reporter.progress(progress);
    }

    fn preview(&mut self, image: &Image) {
        self.reporter.preview(image);
    }

    fn executed(&mut self, node: &str, outputs: &Value) {
        self.early.begin(node, outputs);
    }

    fn ran(&mut self, origin: Instant, runs: Vec<NodeRun>) {
        (self.origin, self.runs) = (origin, runs);
    }
}
