//! What a run's journal says of waiting, sharing and coming back: pure.

use std::collections::BTreeMap;

use serde::Serialize;
use testbed::{Machine, median, quantile};

use super::{Event, plan::Way};
use crate::journal::{Harm, Manifest, Millis, Record};

/// The waits over time are gathered in so many portions.
const PORTIONS: f64 = 90.0;
const SHORTEST_PORTION: f64 = 2.0;

/// All times in seconds; those of the day since the first job was due.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    pub(super) version: &'static str,
    pub(super) machine: Machine,
    pub(super) seed: u64,
    pub(super) jobs: usize,
    /// From the first publication to the last answer.
    pub(super) seconds: f64,
    pub(super) jobs_per_second: f64,
    pub(super) wait: Wait,
    /// Executions, those that a kill ended included.
    pub(super) executions: usize,
    pub(super) losses: Losses,
    pub(super) boot_median: f64,
    pub(super) most_waiting: u32,
    /// The largest worker with its ComfyUI and Chromium.
    pub(super) most_megabytes: u64,
    pub(super) phases: Vec<PhaseFigures>,
    pub(super) lives: Vec<Life>,
    pub(super) up: Vec<(f64, usize)>,
    pub(super) waiting: Vec<(f64, u32)>,
    pub(super) waits: Vec<(f64, Wait)>,
}

/// From a job's publication to the begin of its first execution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Wait {
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
}

/// What SIGKILL met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Losses {
    pub(super) kills: usize,
    /// Jobs that a killed worker had in hand.
    pub(super) jobs: usize,
    /// Of these, those that another worker answered.
    pub(super) answered_elsewhere: usize,
    /// Of these, those whose result the killed one had stored.
    pub(super) stored_before: usize,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct PhaseFigures {
    pub(super) name: String,
    pub(super) workers: usize,
    pub(super) from: f64,
    pub(super) to: f64,
    /// Published in it.
    pub(super) jobs: usize,
    pub(super) answers_per_second: f64,
    /// Of the jobs that were published in it.
    pub(super) wait: Wait,
    /// `None`: fewer than two workers lived through it, or it was over before they were there.
    pub(super) balance: Option<Balance>,
}

/// How evenly the jobs were shared by the workers that were there from the moment when all were until
/// the end of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Balance {
    pub(super) workers: usize,
    pub(super) seconds: f64,
    /// Most jobs ÷ fewest.
    pub(super) ratio: f64,
    /// Standard deviation ÷ mean.
    pub(super) variation: f64,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Life {
    pub(super) worker: String,
    pub(super) begun: f64,
    pub(super) ready: Option<f64>,
    pub(super) leaving: Option<f64>,
    pub(super) way: Option<Way>,
    /// From its order to the end of the last process.
    pub(super) took: f64,
    /// Whose result is its.
    pub(super) jobs: usize,
    /// Execution ÷ the time that it was up.
    pub(super) busy: f64,
    pub(super) megabytes: u64,
}

impl Life {
    /// From the moment when it took jobs to its end.
    pub(super) fn up(&self) -> f64 {
        let drain = if matches!(self.way, Some(Way::Term | Way::Order)) { self.took } else { 0.0 };
        self.ready.zip(self.leaving).map_or(0.0, |(ready, leaving)| leaving + drain - ready)
    }
}

#[derive(Default)]
struct Job<'a> {
    published: f64,
    accepted: Vec<(f64, &'a str)>,
    started: Option<f64>,
    answered: Option<f64>,
    manifest: Option<&'a Manifest>,
}

impl Job<'_> {
    fn wait(&self) -> Option<f64> {
        Some((self.started? - self.published).max(0.0))
    }
}

impl Figures {
    pub(super) fn new(records: &[Record], machine: Machine, seed: u64) -> Self {
        let origin = records.iter().find_map(|record| match record {
            Record::Fleet(Event::Phase { at, .. }) => Some(*at),
            _ => None,
        });
        let clock = Clock(origin.unwrap_or_default());
        let jobs = jobs(records, clock);
        let mut lives = lives(records, clock);
        for life in &mut lives {
            let own = |job: &&Job<'_>| job.manifest.is_some_and(|manifest| manifest.by == life.worker);
            life.jobs = jobs.values().filter(own).count();
        }
        let (mut marks, mut waiting, mut over) = (Vec::new(), Vec::new(), None);
        for record in records {
            match record {
                Record::Fleet(Event::Phase { at, name, workers }) => {
                    marks.push((clock.seconds(*at), name, *workers));
                }
                Record::Fleet(Event::Queue { at, waiting: jobs }) if *at >= clock.0 => {
                    waiting.push((clock.seconds(*at), *jobs));
                }
                Record::Fleet(Event::Over { at }) => over = Some(clock.seconds(*at)),
                _ => {}
            }
        }
        let seconds = jobs.values().filter_map(|job| job.answered).fold(0.0, f64::max);
        let ends = marks.iter().skip(1).map(|(at, ..)| *at).chain(over.or(Some(seconds)));
        let up = up(&lives);
        let phases = marks.iter().zip(ends).map(|((from, name, workers), to)| {
            let within = |job: &&Job<'_>| (*from..to).contains(&job.published);
            let answered =
                jobs.values().filter(|job| job.answered.is_some_and(|at| (*from..to).contains(&at)));
            PhaseFigures {
                name: (*name).clone(),
                workers: *workers,
                from: *from,
                to,
                jobs: jobs.values().filter(within).count(),
                answers_per_second: answered.count() as f64 / (to - from).max(0.001),
                wait: wait(jobs.values().filter(within)),
                balance: balance(&jobs, &lives, &up, *workers, *from, to),
            }
        });
        let boots: Vec<f64> =
            lives.iter().filter_map(|life| life.ready.map(|ready| ready - life.begun)).collect();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            machine,
            seed,
            jobs: jobs.len(),
            seconds,
            jobs_per_second: jobs.len() as f64 / seconds.max(0.001),
            wait: wait(jobs.values()),
            executions: jobs
                .values()
                .filter_map(|job| job.manifest)
                .map(|manifest| manifest.executions)
                .sum(),
            losses: losses(records, &jobs, clock),
            boot_median: median(&boots),
            most_waiting: waiting.iter().map(|(_, jobs)| *jobs).max().unwrap_or(0),
            most_megabytes: lives.iter().map(|life| life.megabytes).max().unwrap_or(0),
            phases: phases.collect(),
            waits: waits(&jobs, seconds),
            lives,
            up,
            waiting,
        }
    }
}

/// The moment that times are counted from.
#[derive(Clone, Copy)]
struct Clock(Millis);

impl Clock {
    fn seconds(self, at: Millis) -> f64 {
        (at as f64 - self.0 as f64) / 1000.0
    }
}

fn jobs(records: &[Record], clock: Clock) -> BTreeMap<&str, Job<'_>> {
    let mut jobs: BTreeMap<&str, Job<'_>> = BTreeMap::new();
    for record in records {
        let Some(id) = record.id() else { continue };
        let job = jobs.entry(id).or_default();
        match record {
            Record::Published { at, .. } => job.published = clock.seconds(*at),
            Record::Accepted { at, worker, .. } => job.accepted.push((clock.seconds(*at), worker)),
            Record::Started { at, .. } => {
                job.started.get_or_insert(clock.seconds(*at));
            }
            Record::Answered { at, .. } => {
                job.answered.get_or_insert(clock.seconds(*at));
            }
            Record::Manifest(manifest) => job.manifest = Some(manifest),
            _ => {}
        }
    }
    jobs
}

fn lives(records: &[Record], clock: Clock) -> Vec<Life> {
    let mut lives: Vec<Life> = Vec::new();
    for record in records {
        let Record::Fleet(event) = record else { continue };
        let (Event::Begun { worker, .. }
        | Event::Ready { worker, .. }
        | Event::Leaving { worker, .. }
        | Event::Gone { worker, .. }) = event
        else {
            continue;
        };
        if let Event::Begun { at, worker } = event {
            lives.push(Life {
                worker: worker.clone(),
                begun: clock.seconds(*at),
                ready: None,
                leaving: None,
                way: None,
                took: 0.0,
                jobs: 0,
                busy: 0.0,
                megabytes: 0,
            });
        }
        let Some(life) = lives.iter_mut().find(|life| life.worker == *worker) else { continue };
        match event {
            Event::Ready { at, .. } => life.ready = Some(clock.seconds(*at)),
            Event::Leaving { at, way, .. } => {
                (life.leaving, life.way) = (Some(clock.seconds(*at)), Some(*way));
            }
            Event::Gone { took, busy, kilobytes, .. } => {
                life.took = *took as f64 / 1000.0;
                life.busy = *busy as f64 / 1000.0 / life.up().max(0.001);
                life.megabytes = kilobytes / 1024;
            }
            _ => {}
        }
    }
    lives
}

/// How many are up from each moment on when that changes.
fn up(lives: &[Life]) -> Vec<(f64, usize)> {
    let comings = lives.iter().filter_map(|life| Some((life.ready?, 1_isize)));
    let goings = lives.iter().filter_map(|life| Some((life.leaving?, -1)));
    let mut changes: Vec<(f64, isize)> = comings.chain(goings).collect();
    changes.sort_by(|one, other| one.0.total_cmp(&other.0));
    let mut count = 0_isize;
    let after = |(at, change): (f64, isize)| {
        count += change;
        (at, usize::try_from(count).unwrap_or(0))
    };
    changes.into_iter().map(after).collect()
}

fn wait<'a, 'b: 'a>(jobs: impl Iterator<Item = &'a Job<'b>>) -> Wait {
    let waits: Vec<f64> = jobs.filter_map(Job::wait).collect();
    Wait { p50: quantile(&waits, 0.5), p90: quantile(&waits, 0.9), p99: quantile(&waits, 0.99) }
}

/// By when they were published; portions without a job are left out.
fn waits(jobs: &BTreeMap<&str, Job<'_>>, seconds: f64) -> Vec<(f64, Wait)> {
    let portion = (seconds / PORTIONS).max(SHORTEST_PORTION);
    let mut portions: BTreeMap<u64, Vec<&Job<'_>>> = BTreeMap::new();
    for job in jobs.values() {
        portions.entry((job.published / portion) as u64).or_default().push(job);
    }
    let gathered =
        |(number, jobs): (u64, Vec<&Job<'_>>)| ((number as f64 + 0.5) * portion, wait(jobs.into_iter()));
    portions.into_iter().map(gathered).collect()
}

fn balance(
    jobs: &BTreeMap<&str, Job<'_>>,
    lives: &[Life],
    up: &[(f64, usize)],
    workers: usize,
    from: f64,
    to: f64,
) -> Option<Balance> {
    // As many as there are to be: at once where the phase before had as many.
    let before = up.iter().rev().find(|(at, _)| *at <= from).map(|(_, count)| (from, *count));
    let changes = up.iter().copied().filter(|(at, _)| *at > from);
    let (full, _) = before.into_iter().chain(changes).find(|(_, count)| *count >= workers)?;
    let there =
        |life: &&Life| life.ready.is_some_and(|at| at <= full) && life.leaving.is_none_or(|at| at >= to);
    let counts: Vec<f64> = lives
        .iter()
        .filter(there)
        .map(|life| {
            let own = |job: &&Job<'_>| {
                job.manifest.is_some_and(|manifest| manifest.by == life.worker)
                    && job.answered.is_some_and(|at| (full..to).contains(&at))
            };
            jobs.values().filter(own).count() as f64
        })
        .collect();
    if counts.len() < 2 || to <= full {
        return None;
    }
    let mean = counts.iter().sum::<f64>() / counts.len() as f64;
    let variance = counts.iter().map(|count| (count - mean).powi(2)).sum::<f64>() / counts.len() as f64;
    let (most, fewest) =
        (counts.iter().copied().fold(0.0, f64::max), counts.iter().copied().fold(f64::MAX, f64::min));
    // Where one had none there is no ratio to speak of.
    (fewest > 0.0).then(|| Balance {
        workers: counts.len(),
        seconds: to - full,
        ratio: most / fewest,
        variation: variance.sqrt() / mean,
    })
}

fn losses(records: &[Record], jobs: &BTreeMap<&str, Job<'_>>, clock: Clock) -> Losses {
    let mut losses = Losses::default();
    for record in records {
        let Record::Fault { at, harm: Harm::Kill, worker: Some(killed), .. } = record else { continue };
        let at = clock.seconds(*at);
        losses.kills += 1;
        let in_hand = |job: &&Job<'_>| {
            let last = job.accepted.iter().rfind(|(accepted, _)| *accepted <= at);
            last.is_some_and(|(_, worker)| worker == killed)
                && job.answered.is_none_or(|answered| answered > at)
        };
        for job in jobs.values().filter(in_hand) {
            losses.jobs += 1;
            match job.manifest {
                Some(manifest) if manifest.by == *killed => losses.stored_before += 1,
                Some(_) => losses.answered_elsewhere += 1,
                None => {}
            }
        }
    }
    losses
}
