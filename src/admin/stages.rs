//! How long a job has been in each stage: by its events while it lives, by its result's timings then.

use contract::{
    event::{EventKind, JobEvent},
    result::{Stage, Timings},
};
use serde::Serialize;

/// The stages in a job's order, named as its timings name them.
const NAMES: [&str; 6] = ["queued", "staged", "converted", "waited", "executed", "uploaded"];
const QUEUED: usize = 0;
const STAGED: usize = 1;
const CONVERTED: usize = 2;
const WAITED: usize = 3;
const EXECUTED: usize = 4;
const UPLOADED: usize = 5;

/// Milliseconds by stage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stages {
    spent: [u64; NAMES.len()],
    /// The stage that it is in, and since when (Unix time).
    now: Option<(usize, u64)>,
    staged: bool,
    converted: bool,
}

/// A stage that is over, or has been left for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct PastStage {
    stage: &'static str,
    ms: u64,
}

/// The stage that a job is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct CurrentStage {
    stage: &'static str,
    /// Unix time in milliseconds.
    since: u64,
}

impl Stages {
    /// What happened, and when.
    pub(super) fn event(&mut self, event: &JobEvent) {
        // Inputs are fetched while the workflow is converted: the bar shows what is still waited for.
        let next = match &event.kind {
            EventKind::Accepted => STAGED,
            EventKind::Staged { .. } => {
                self.staged = true;
                if self.converted { WAITED } else { CONVERTED }
            }
            EventKind::Converted { .. } => {
                self.converted = true;
                if self.staged { WAITED } else { STAGED }
            }
            EventKind::Queued { .. } => WAITED,
            EventKind::Started | EventKind::Progress { .. } => EXECUTED,
            EventKind::Executed | EventKind::Uploaded { .. } => UPLOADED,
            EventKind::Finished { .. } => return self.end(event.at),
        };
        self.enter(next, event.at);
    }

    fn enter(&mut self, stage: usize, at: u64) {
        if self.now.is_none_or(|(now, _)| now != stage) {
            self.end(at);
            self.now = Some((stage, at));
        }
    }

    /// Nothing more happens.
    pub(super) fn end(&mut self, at: u64) {
        if let Some((stage, since)) = self.now.take() {
            self.spent[stage] += at.saturating_sub(since);
        }
    }

    /// Takes the result's word for it. Of the stage that a job failed in a result knows nothing: there the
    /// events' stands.
    pub(super) fn settle(&mut self, timings: &Timings, failed_in: Option<Stage>) {
        let failed_in = failed_in.map(|stage| match stage {
            Stage::Accept => QUEUED,
            Stage::Stage => STAGED,
            Stage::Convert => CONVERTED,
            Stage::Post => WAITED,
            Stage::Run => EXECUTED,
            Stage::Collect | Stage::Upload => UPLOADED,
        });
        let Timings { queued_ms, staged_ms, converted_ms, waited_ms, executed_ms, uploaded_ms, .. } =
            *timings;
        let told = [queued_ms, staged_ms, converted_ms, waited_ms, executed_ms, uploaded_ms];
        for (index, (spent, told)) in self.spent.iter_mut().zip(told).enumerate() {
            if told > 0 || failed_in != Some(index) {
                *spent = told;
            }
        }
        self.now = None;
    }

    /// Those that took any time.
    pub(super) fn spent(&self) -> Vec<PastStage> {
        let stages = NAMES.into_iter().zip(self.spent).map(|(stage, ms)| PastStage { stage, ms });
        stages.filter(|spent| spent.ms > 0).collect()
    }

    /// Where it is.
    pub(super) fn now(&self) -> Option<CurrentStage> {
        let (stage, since) = self.now?;
        Some(CurrentStage { stage: NAMES[stage], since })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use contract::result::Status;

    use super::*;

    fn stages(events: &[(u64, EventKind)]) -> Stages {
        let mut stages = Stages::default();
        for (at, kind) in events {
            stages.event(&JobEvent {
                version: 1,
                id: "j".parse().unwrap(),
                seq: 0,
                at: *at,
                attempt: 1,
                worker: "w".into(),
                kind: kind.clone(),
            });
        }
        stages
    }

    fn told(stages: &Stages) -> Vec<(&'static str, u64)> {
        stages.spent().into_iter().map(|spent| (spent.stage, spent.ms)).collect()
    }

    const STAGED_EVENT: EventKind = EventKind::Staged { files: 0, bytes: 0 };
    const CONVERTED_EVENT: EventKind = EventKind::Converted { nodes: 1 };

    #[test]
    fn a_job_is_in_one_stage_at_a_time_whichever_is_ready_first() {
        let accepted = (100, EventKind::Accepted);
        let first = stages(&[accepted.clone(), (110, STAGED_EVENT), (150, CONVERTED_EVENT)]);
        assert_eq!(told(&first), [("staged", 10), ("converted", 40)]);
        assert_eq!(first.now(), Some(CurrentStage { stage: "waited", since: 150 }));
        // Its conversion was known: what it waits for are its files.
        let other = stages(&[accepted, (110, CONVERTED_EVENT), (400, STAGED_EVENT)]);
        assert_eq!(told(&other), [("staged", 300)]);
        assert_eq!(other.now(), Some(CurrentStage { stage: "waited", since: 400 }));
    }

    #[test]
    fn a_job_that_is_tried_again_adds_up() {
        let queued = EventKind::Queued { prompt_id: String::new() };
        let mut tried = stages(&[
            (0, EventKind::Accepted),
            (1, STAGED_EVENT),
            (2, CONVERTED_EVENT),
            (3, queued.clone()),
            (10, EventKind::Started),
            (60, EventKind::Executed),
            (61, queued),
            (70, EventKind::Started),
        ]);
        assert_eq!(tried.now(), Some(CurrentStage { stage: "executed", since: 70 }));
        tried.end(100);
        assert_eq!(
            told(&tried),
            [("staged", 1), ("converted", 1), ("waited", 8 + 9), ("executed", 50 + 30), ("uploaded", 1)]
        );
        assert_eq!(tried.now(), None);
    }

    #[test]
    fn the_results_timings_stand_but_for_the_stage_that_it_failed_in() {
        let events = [
            (0, EventKind::Accepted),
            (5, STAGED_EVENT),
            (9, CONVERTED_EVENT),
            (10, EventKind::Started),
            (500, EventKind::Finished { status: Status::Failed }),
        ];
        let timings = Timings { queued_ms: 7, staged_ms: 4, converted_ms: 3, ..Timings::default() };
        let mut failed = stages(&events);
        failed.settle(&timings, Some(Stage::Run));
        assert_eq!(told(&failed), [("queued", 7), ("staged", 4), ("converted", 3), ("executed", 490)]);
        let mut done = stages(&events);
        done.settle(&Timings { executed_ms: 480, ..timings }, None);
        assert_eq!(told(&done).last(), Some(&("executed", 480)));
    }
}
