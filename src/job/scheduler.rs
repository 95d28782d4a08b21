//! Schedules the jobs in hand: whose prompt goes to ComfyUI next, and when the worker takes another job.
//!
//! At most one prompt waits behind the one that runs. The worker takes that next job only shortly before the running one is
//! expected to end, so that an idle worker can take it until then.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::sleep_until};
use tokio_util::sync::CancellationToken;

use crate::config::Lookahead;

/// Jobs in hand, those that upload included: each holds files on the disk.
const MAX_IN_HAND: usize = 4;
/// Prompts in ComfyUI: the one that runs and the one behind it.
const MAX_POSTED: usize = 2;
/// How long before the end of the running job the next one is taken, at least and at most.
const LEAD: std::ops::RangeInclusive<Duration> = Duration::from_millis(250)..=Duration::from_secs(30);

/// A preparation that takes longer, of large inputs or of ones that are away, leaves the way free for another job.
const SLOW_PREPARATION: Duration = Duration::from_secs(2);

/// How long a job may go on after its expected end until the one behind it is given back: an idle
/// worker may have it.
const OVERDUE: Duration = Duration::from_secs(10);

/// The jobs in hand. Clones share it.
#[derive(Clone, Debug)]
pub struct Scheduler(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    lookahead: Lookahead,
    state: watch::Sender<State>,
}

#[derive(Debug)]
struct State {
    jobs: BTreeMap<u64, Job>,
    joined: u64,
    /// What the preparation of a job takes, lately and rather more than less.
    lead: Duration,
}

#[derive(Debug)]
struct Job {
    at: JobPhase,
    alone: bool,
}

#[derive(Debug)]
enum JobPhase {
    /// Accepted, its prompt not posted.
    Preparing { since: Instant },
    /// Its prompt is in ComfyUI.
    Posted { over: CancellationToken, ends_at: Option<Instant> },
    /// It needs ComfyUI no more.
    Executed,
}

impl JobPhase {
    fn preparing() -> Self {
        Self::Preparing { since: Instant::now() }
    }
}

/// Why another job is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TakeReason {
    /// None is in hand.
    First,
    /// What is in hand leaves ComfyUI idle soon, or has left it so.
    Ahead,
}

impl Scheduler {
    /// An empty one.
    #[must_use]
    pub fn new(lookahead: Lookahead) -> Self {
        let state = State { jobs: BTreeMap::new(), joined: 0, lead: *LEAD.start() };
        Self(Arc::new(Shared { lookahead, state: watch::Sender::new(state) }))
    }

    /// Takes a job in hand, behind the others, until the permit is dropped.
    #[must_use]
    pub fn join(&self) -> JobPermit {
        let mut number = 0;
        self.0.state.send_modify(|state| {
            state.joined += 1;
            number = state.joined;
            state.jobs.insert(number, Job { at: JobPhase::preparing(), alone: false });
        });
        JobPermit { scheduler: self.clone(), number }
    }

    /// Waits until another job is wanted.
    pub async fn wanted(&self) -> TakeReason {
        let mut state = self.0.state.subscribe();
        loop {
            let next_job = state.borrow_and_update().next_job(self.0.lookahead, Instant::now());
            let from = match next_job {
                NextJob::Now(wanted) => return wanted,
                NextJob::From(at) => Some(at),
                NextJob::Later => None,
            };
            tokio::select! {
                () = due(from) => {}
                _ = state.changed() => {}
            }
        }
    }

    /// Waits until no job is in hand.
    pub async fn emptied(&self) {
        let _ = self.0.state.subscribe().wait_for(|state| state.jobs.is_empty()).await;
    }

    /// Notes how long the preparation of a job took.
    pub(super) fn prepared_in(&self, took: Duration) {
        self.0.state.send_modify(|state| {
            let lead = (took * 3 / 2).max(state.lead * 9 / 10);
            state.lead = lead.clamp(*LEAD.start(), *LEAD.end());
        });
    }
}

/// Waits for a moment; without one forever.
async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

enum NextJob {
    Now(TakeReason),
    From(Instant),
    Later,
}

impl State {
    fn next_job(&self, lookahead: Lookahead, now: Instant) -> NextJob {
        if self.jobs.is_empty() {
            return NextJob::Now(TakeReason::First);
        }
        let closed = lookahead == Lookahead::Never
            || self.jobs.len() >= MAX_IN_HAND
            || self.jobs.values().any(|job| job.alone);
        if closed {
            return NextJob::Later;
        }
        let slow_at = |job: &Job| match job.at {
            JobPhase::Preparing { since } if lookahead == Lookahead::Auto => Some(since + SLOW_PREPARATION),
            _ => None,
        };
        let in_the_way = |job: &&Job| {
            !matches!(job.at, JobPhase::Executed) && slow_at(job).is_none_or(|slow_at| now < slow_at)
        };
        let mut before = self.jobs.values().filter(in_the_way);
        let next_slow = self.jobs.values().filter(in_the_way).filter_map(slow_at).min();
        match (before.next(), before.next()) {
            (None, _) => NextJob::Now(TakeReason::Ahead),
            (Some(_), _) if next_slow.is_some() => next_slow.map_or(NextJob::Later, NextJob::From),
            (Some(_), Some(_)) => NextJob::Later,
            (Some(_), None) if lookahead == Lookahead::Always => NextJob::Now(TakeReason::Ahead),
            (Some(Job { at: JobPhase::Posted { ends_at: Some(ends_at), .. }, .. }), None) => {
                let from = ends_at.checked_sub(self.lead).unwrap_or(now);
                if now > *ends_at + OVERDUE {
                    NextJob::Later
                } else if from <= now {
                    NextJob::Now(TakeReason::Ahead)
                } else {
                    NextJob::From(from)
                }
            }
            (Some(_), None) => NextJob::Later,
        }
    }

    /// When another job's prompt is overdue.
    fn late(&self, number: u64) -> Option<Instant> {
        self.jobs.iter().filter(|(other, _)| **other != number).find_map(|(_, job)| match &job.at {
            JobPhase::Posted { ends_at, .. } => ends_at.map(|ends_at| ends_at + OVERDUE),
            _ => None,
        })
    }

    /// The place of that job's prompt, if there is one now.
    fn post(&mut self, number: u64) -> Option<(Option<CancellationToken>, CancellationToken)> {
        let mut posted = Vec::new();
        for (other, job) in self.jobs.iter().filter(|(other, _)| **other != number) {
            if *other < number && job.alone {
                return None;
            }
            if let JobPhase::Posted { over, .. } = &job.at {
                posted.push(over.clone());
            }
        }
        let job = self.jobs.get_mut(&number)?;
        if posted.len() >= MAX_POSTED {
            return None;
        }
        let over = CancellationToken::new();
        job.at = JobPhase::Posted { over: over.clone(), ends_at: None };
        Some((posted.pop(), over))
    }
}

/// A job in hand.
#[derive(Debug)]
pub struct JobPermit {
    scheduler: Scheduler,
    number: u64,
}

impl JobPermit {
    pub(super) fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    fn set(&self, at: JobPhase) {
        self.scheduler.0.state.send_modify(|state| {
            if let Some(job) = state.jobs.get_mut(&self.number) {
                job.at = at;
            }
        });
    }

    /// Another try begins.
    pub(super) fn prepare(&self) {
        self.set(JobPhase::preparing());
    }

    /// Keeps other jobs out and waits until those before it are gone: it may crash this worker, and
    /// they would be taken for what did.
    pub(super) async fn alone(&self) {
        let mut state = self.scheduler.0.state.subscribe();
        self.scheduler.0.state.send_modify(|state| {
            if let Some(job) = state.jobs.get_mut(&self.number) {
                job.alone = true;
            }
        });
        let first = |state: &State| state.jobs.keys().next().is_none_or(|first| *first >= self.number);
        let _ = state.wait_for(first).await;
    }

    /// Waits until ComfyUI may have its prompt.
    pub(super) async fn acquire_prompt_permit(&self) -> PromptPermit<'_> {
        let mut state = self.scheduler.0.state.subscribe();
        loop {
            state.mark_unchanged();
            let mut place = None;
            self.scheduler.0.state.send_if_modified(|state| {
                place = state.post(self.number);
                place.is_some()
            });
            if let Some((ahead, over)) = place {
                return PromptPermit { permit: self, ahead, over };
            }
            let _ = state.changed().await;
        }
    }
}

impl Drop for JobPermit {
    fn drop(&mut self) {
        self.scheduler.0.state.send_modify(|state| drop(state.jobs.remove(&self.number)));
    }
}

/// A prompt's place in ComfyUI; dropped once it is out of there.
#[derive(Debug)]
pub(super) struct PromptPermit<'a> {
    permit: &'a JobPermit,
    /// Cancelled once the prompt before it is out.
    pub(super) ahead: Option<CancellationToken>,
    over: CancellationToken,
}

impl PromptPermit<'_> {
    /// Notes that the prompt ends in so long; `None`: nobody knows.
    pub(super) fn expect(&self, left: Option<Duration>) {
        let ends_at = left.and_then(|left| Instant::now().checked_add(left));
        self.permit.set(JobPhase::Posted { over: self.over.clone(), ends_at });
    }
}

impl PromptPermit<'_> {
    /// Waits until the prompt before this one goes on far longer than expected. What another worker
    /// could run is not held here then; `amqp.lookahead = 1` holds it all the same.
    pub(super) async fn held_up(&self) {
        let shared = &self.permit.scheduler.0;
        let mut state = shared.state.subscribe();
        loop {
            let late = state.borrow_and_update().late(self.permit.number);
            let at = late.filter(|_| shared.lookahead == Lookahead::Auto);
            if at.is_some_and(|at| at <= Instant::now()) {
                return;
            }
            tokio::select! {
                () = due(at) => {}
                _ = state.changed() => {}
            }
        }
    }
}

impl Drop for PromptPermit<'_> {
    fn drop(&mut self) {
        self.over.cancel();
        self.permit.set(JobPhase::Executed);
    }
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
