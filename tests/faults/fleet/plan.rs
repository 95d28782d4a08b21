//! When workers come and go, and when which job is published: everything follows from the seed.

use std::{ops::Range, time::Duration};

use serde::{Deserialize, Serialize};

use crate::dice::Dice;

/// A run's size.
#[derive(Clone, Debug)]
pub(crate) struct Size {
    pub(crate) jobs: usize,
    /// At the most.
    pub(crate) workers: usize,
    /// In which the jobs are published.
    pub(crate) span: Duration,
    /// How long a job takes its ComfyUI.
    pub(crate) seconds: Range<f64>,
    pub(crate) seed: u64,
}

#[derive(Debug, PartialEq)]
pub(super) struct Plan {
    pub(super) phases: Vec<Phase>,
    /// In the order of their publication.
    pub(super) jobs: Vec<Job>,
    /// In order.
    pub(super) steps: Vec<Step>,
}

/// A part of the run with a number of workers of its own.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Phase {
    pub(super) name: String,
    pub(super) workers: usize,
}

#[derive(Debug, PartialEq)]
pub(super) struct Job {
    /// Not before this.
    pub(super) at: Duration,
    pub(super) id: String,
    pub(super) seconds: f64,
}

#[derive(Debug, PartialEq)]
pub(super) struct Step {
    /// How many jobs are published before it: on a slow machine the workers' comings and goings must not
    /// outrun the jobs.
    pub(super) after: usize,
    pub(super) act: Act,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Act {
    /// The phase of that number begins.
    Phase(usize),
    Add,
    /// One goes like this; which one is chosen among those that are up by a number.
    Go(Way, usize),
}

/// How a worker's life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Way {
    /// SIGTERM.
    Term,
    /// `{"drain": id}` through the control exchange.
    Order,
    /// SIGKILL.
    Kill,
    /// By itself, which it must not.
    Itself,
}

struct Stretch {
    /// Of the most workers.
    share: f64,
    /// Parts of the run's time.
    time: f64,
    /// Jobs beside what so many workers can do: 1 is the same in all stretches.
    load: f64,
    /// So many workers, as a share of the most, are killed one after the other, and others started.
    kills: f64,
    /// The same for those that are drained.
    drains: f64,
    name: &'static str,
}

impl Stretch {
    const fn new(share: f64, time: f64, load: f64) -> Self {
        Self { share, time, load, kills: 0.0, drains: 0.0, name: "" }
    }
}

const STRETCHES: [Stretch; 8] = [
    Stretch::new(0.125, 8.0, 0.8),
    Stretch::new(0.25, 8.0, 0.9),
    // More jobs than these can do, until there are more workers.
    Stretch { kills: 0.125, name: "rush", ..Stretch::new(0.5, 12.0, 1.5) },
    Stretch::new(1.0, 20.0, 1.0),
    Stretch { kills: 0.5, drains: 0.25, name: "losses", ..Stretch::new(1.0, 22.0, 0.9) },
    Stretch::new(0.5, 10.0, 0.9),
    Stretch { kills: 0.125, name: "again", ..Stretch::new(1.0, 14.0, 1.0) },
    Stretch::new(0.25, 6.0, 0.8),
];
/// Where there are as many, the first phase has 2: one alone would show nothing.
const FEWEST: usize = 2;
/// Of a phase's jobs: losses do not come before and after these, so that they meet a whole fleet.
const LOSSES: Range<f64> = 0.1..0.9;

impl Plan {
    pub(super) fn new(size: &Size) -> Self {
        let mut dice = Dice::new(size.seed);
        let count = |share: f64| (size.workers as f64 * share).round() as usize;
        let workers = |stretch: &Stretch| count(stretch.share).max(FEWEST).min(size.workers);
        let weight = |stretch: &Stretch| stretch.time * stretch.load * workers(stretch) as f64;
        let whole: f64 = STRETCHES.iter().map(weight).sum();
        let time: f64 = STRETCHES.iter().map(|stretch| stretch.time).sum();

        let (mut phases, mut jobs, mut steps) = (Vec::new(), Vec::new(), Vec::new());
        let (mut begin, mut before) = (Duration::ZERO, None);
        let mut sum = 0.0;
        for (number, stretch) in STRETCHES.iter().enumerate() {
            let workers = workers(stretch);
            let span = size.span.mul_f64(stretch.time / time);
            sum += weight(stretch);
            let (first, next) = (jobs.len(), (size.jobs as f64 * sum / whole).round() as usize);
            for at in arrivals(next.saturating_sub(first), &mut dice) {
                let Range { start, end } = size.seconds;
                let seconds = start + (end - start) * dice.unit();
                let id = format!("fleet-{:05}", jobs.len());
                jobs.push(Job { at: begin + span.mul_f64(at), id, seconds });
            }
            begin += span;
            let name = [format!("{workers} workers"), stretch.name.to_owned()];
            let name = name.join(if stretch.name.is_empty() { "" } else { ", " });
            phases.push(Phase { name, workers });
            steps.push(Step { after: first, act: Act::Phase(number) });
            // The first ones are there before the first job.
            let more = workers as isize - before.unwrap_or(workers) as isize;
            before = Some(workers);
            steps.extend((0..more).map(|_| Step { after: first, act: Act::Add }));
            steps.extend((more..0).map(|_| Step { after: first, act: drain(&mut dice) }));
            let kills = (0..count(stretch.kills)).map(|_| Act::Go(Way::Kill, dice.below(usize::MAX)));
            let mut losses: Vec<Act> = kills.collect();
            losses.extend((0..count(stretch.drains)).map(|_| drain(&mut dice)));
            steps.extend(spread(losses, first, jobs.len(), &mut dice));
        }
        alternate(&mut steps);
        Self { phases, jobs, steps }
    }
}

/// So many times between 0 and 1 at which something that comes by chance comes.
fn arrivals(count: usize, dice: &mut Dice) -> Vec<f64> {
    let mut at = 0.0;
    let mut next = || {
        at -= (1.0 - dice.unit()).ln();
        at
    };
    let mut times: Vec<f64> = (0..count).map(|_| next()).collect();
    let end = next();
    times.iter_mut().for_each(|time| *time /= end);
    times
}

/// Losses at random among the jobs `first..next`, each followed by a worker in the lost one's place.
fn spread(mut losses: Vec<Act>, first: usize, next: usize, dice: &mut Dice) -> Vec<Step> {
    dice.shuffle(&mut losses);
    let span = (next - first) as f64;
    let mut whens: Vec<usize> = losses
        .iter()
        .map(|_| first + (span * (LOSSES.start + (LOSSES.end - LOSSES.start) * dice.unit())) as usize)
        .collect();
    whens.sort_unstable();
    let both = |(after, act)| [Step { after, act }, Step { after, act: Act::Add }];
    whens.into_iter().zip(losses).flat_map(both).collect()
}

fn drain(dice: &mut Dice) -> Act {
    Act::Go(Way::Term, dice.below(usize::MAX))
}

/// Every other drain comes by order.
fn alternate(steps: &mut [Step]) {
    let drains = steps.iter_mut().filter_map(|step| match &mut step.act {
        Act::Go(way @ Way::Term, _) => Some(way),
        _ => None,
    });
    drains.skip(1).step_by(2).for_each(|way| *way = Way::Order);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(jobs: usize, workers: usize, seed: u64) -> Size {
        Size { jobs, workers, span: Duration::from_secs(400), seconds: 0.2..1.0, seed }
    }

    #[test]
    fn equal_seeds_give_equal_plans() {
        assert_eq!(Plan::new(&size(500, 8, 7)), Plan::new(&size(500, 8, 7)));
        assert_ne!(Plan::new(&size(500, 8, 7)).jobs, Plan::new(&size(500, 8, 8)).jobs);
    }

    /// How many there would be if all were carried out at once, after each step.
    fn counts(plan: &Plan) -> Vec<usize> {
        let mut up = plan.phases[0].workers;
        let count = |step: &Step| {
            match step.act {
                Act::Phase(_) => {}
                Act::Add => up += 1,
                Act::Go(..) => up -= 1,
            }
            up
        };
        plan.steps.iter().map(count).collect()
    }

    #[test]
    fn there_are_never_more_workers_than_allowed_and_never_none() {
        for (jobs, workers) in [(5000, 16), (150, 4), (50, 2), (400, 3), (20, 1)] {
            let plan = Plan::new(&size(jobs, workers, 3));
            let counts = counts(&plan);
            // Of one alone none is lost: a kill would round to half a worker.
            let least = usize::from(workers > 1);
            assert!(counts.iter().all(|count| (least..=workers).contains(count)), "{workers}: {counts:?}");
            assert_eq!(plan.jobs.len(), jobs);
            assert!(plan.jobs.is_sorted_by_key(|job| job.at));
            assert!(plan.jobs.iter().all(|job| (0.2..1.0).contains(&job.seconds)));
            assert!(plan.steps.is_sorted_by_key(|step| step.after));
        }
    }

    #[test]
    fn the_whole_one_has_all_sixteen_and_every_way_to_go() {
        let plan = Plan::new(&size(5000, 16, 1));
        let workers: Vec<usize> = plan.phases.iter().map(|phase| phase.workers).collect();
        assert_eq!(workers, [2, 4, 8, 16, 16, 8, 16, 4]);
        let ways = |wanted: Way| {
            plan.steps.iter().filter(|step| matches!(step.act, Act::Go(way, _) if way == wanted)).count()
        };
        assert_eq!([Way::Kill, Way::Term, Way::Order, Way::Itself].map(ways), [12, 12, 12, 0]);
        assert!(plan.jobs.last().is_some_and(|job| job.at < Duration::from_secs(400)));
    }
}
