//! What a soak does and when: everything follows from the seed.

use std::time::Duration;

use testbed::{Fault, Spoil};

use super::{
    dice::Dice,
    jobs::{Kind, MISTAKES, TRICKS},
};

/// Jobs published and not answered, for each worker: so many that none is idle.
pub(super) const AHEAD: usize = 4;

/// A soak's size.
#[derive(Clone, Debug)]
pub(super) struct Size {
    pub(super) jobs: usize,
    pub(super) faults: usize,
    pub(super) workers: usize,
    /// In which the jobs are published, where the workers keep up.
    pub(super) span: Duration,
    /// How long the long faults are: 1: minutes, 10 of them in all; 0: there are none.
    pub(super) outages: f64,
    pub(super) seed: u64,
}

/// Jobs and faults, each in their order.
#[derive(Debug, PartialEq)]
pub(super) struct Plan {
    pub(super) jobs: Vec<Job>,
    pub(super) faults: Vec<Strike>,
    /// One after the other, among the short ones.
    pub(super) outages: Vec<Outage>,
}

#[derive(Debug, PartialEq)]
pub(super) struct Job {
    /// Not before this.
    pub(super) at: Duration,
    pub(super) id: String,
    pub(super) kind: Kind,
    /// The same body comes twice.
    pub(super) twice: bool,
}

/// One fault.
#[derive(Debug, PartialEq)]
pub(super) struct Strike {
    /// How many jobs are published before it: on a slow machine faults must not outrun the jobs.
    pub(super) after: usize,
    /// Whom it meets, where it meets one; the next one if that is just being started.
    pub(super) worker: usize,
    pub(super) act: Act,
}

/// A long fault.
#[derive(Debug, PartialEq)]
pub(super) struct Outage {
    /// Like a strike's, but only once the one before it is over.
    pub(super) after: usize,
    pub(super) what: Away,
    pub(super) time: Duration,
    /// Short ones in the middle of it: after how much of its time, whom, and what.
    pub(super) meanwhile: Vec<(f64, usize, Act)>,
}

/// What is away.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Away {
    /// The store: every connection to it is reset.
    Store,
    /// The permission to use it: it forbids everything.
    Permission,
    /// The broker's disk or memory: it takes no message.
    Room { memory: bool },
    /// The broker, killed or stopped in order.
    Broker { killed: bool },
    /// A worker's ComfyUI, which is killed and then ends in each boot, or hangs in it.
    ComfyUi { worker: usize, hangs: bool },
}

impl Outage {
    pub(super) fn what_and_when(&self) -> String {
        let meanwhile = self.meanwhile.iter().map(|(share, worker, act)| {
            let at = self.time.mul_f64(*share);
            format!("{act:?} of {worker} after {:.0} s", at.as_secs_f64())
        });
        let meanwhile: Vec<_> = meanwhile.collect();
        format!("for {:.0} s {:?}, {}", self.time.as_secs_f64(), self.what, meanwhile.join(", "))
    }
}

impl Away {
    /// Whether no job can be done meanwhile.
    fn halts(self) -> bool {
        !matches!(self, Self::ComfyUi { .. })
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Act {
    Kill,
    Term,
    /// SIGSTOP, and SIGCONT so much later.
    Stop(Duration),
    /// The worker's way to the broker, for so long.
    Amqp(Fault, Duration),
    /// The next so many requests to the store that begin like this.
    Store(&'static str, Spoil, usize),
    Engine,
    /// The same, and what its boots do for so long: `exit` or `hang`.
    NoBoot(&'static str, Duration),
    Browser,
    Broker,
    DiskFull(Duration),
}

impl Plan {
    pub(super) fn new(size: &Size) -> Self {
        let mut dice = Dice::new(size.seed);
        let outages = if size.outages > 0.0 { outages(size, &mut dice) } else { Vec::new() };
        // Those that stand in a queue while everybody waits are published meanwhile, the others afterwards.
        let waits = |index: usize| {
            let over = |outage: &&Outage| outage.what.halts() && outage.after + size.workers * AHEAD < index;
            outages.iter().filter(over).map(|outage| outage.time).sum::<Duration>()
        };
        let mut kinds = kinds(size.jobs, &mut dice);
        dice.shuffle(&mut kinds);
        let jobs = kinds
            .into_iter()
            .enumerate()
            .map(|(index, kind)| Job {
                at: size.span.mul_f64(index as f64 / size.jobs as f64) + waits(index),
                id: format!("soak-{index:05}"),
                kind,
                twice: dice.unit() < 0.05,
            })
            .collect();
        let mut acts = acts(size.faults, &mut dice);
        dice.shuffle(&mut acts);
        let mut faults: Vec<Strike> = acts
            .into_iter()
            .map(|act| {
                // Only the first one's disk is small.
                let worker = if matches!(act, Act::DiskFull(_)) { 0 } else { dice.below(size.workers) };
                Strike { after: dice.below(size.jobs), worker, act }
            })
            .collect();
        faults.sort_by_key(|strike| strike.after);
        Self { jobs, faults, outages }
    }

    pub(super) fn fills_a_disk(&self) -> bool {
        self.faults.iter().any(|strike| matches!(strike.act, Act::DiskFull(_)))
    }
}

fn kinds(count: usize, dice: &mut Dice) -> Vec<Kind> {
    let share = |thousandths: usize| (count * thousandths).div_ceil(1000);
    let mut kinds = Vec::new();
    kinds.extend((0..share(50)).map(|index| Kind::Invalid(MISTAKES[index % MISTAKES.len()])));
    kinds.extend((0..share(10)).map(|index| [Kind::Malformed, Kind::Unanswerable][index % 2]));
    kinds.extend((0..share(10)).map(|index| Kind::Hostile(TRICKS[index % TRICKS.len()])));
    kinds.extend((0..share(50)).map(|_| Kind::Ui));
    // Dear ones: none in a short run.
    kinds.extend((0..count * 5 / 1000).map(|_| Kind::Poison));
    kinds.extend((0..count * 2 / 1000).map(|_| Kind::Large));
    while kinds.len() < count {
        // 20 ms to 2 s, as many below 200 ms as above.
        kinds.push(Kind::Plain { seconds: 0.02 * 100_f64.powf(dice.unit()) });
    }
    kinds.truncate(count);
    kinds
}

fn acts(count: usize, dice: &mut Dice) -> Vec<Act> {
    let share = |hundredths: usize| (count * hundredths + 50) / 100;
    let mut acts = vec![Act::Kill; share(25)];
    acts.extend(vec![Act::Term; share(10)]);
    acts.extend((0..share(5)).map(|_| Act::Stop(seconds(dice, 0.5, 6.0))));
    acts.extend((0..share(25)).map(|_| amqp(dice)));
    acts.extend((0..share(20)).map(|_| store(dice)));
    acts.extend(vec![Act::Engine; share(10)]);
    acts.extend(vec![Act::Browser; share(5)]);
    acts.extend(vec![Act::Broker; count / 100]);
    acts.extend((0..count / 150).map(|_| Act::DiskFull(seconds(dice, 3.0, 6.0))));
    acts
}

/// All kinds in some order, well apart.
fn outages(size: &Size, dice: &mut Dice) -> Vec<Outage> {
    let worker = dice.below(size.workers);
    let mut kinds = [
        (Away::Store, 3.0),
        (Away::Permission, 1.0),
        (Away::Room { memory: dice.unit() < 0.5 }, 2.0),
        (Away::Broker { killed: dice.unit() < 0.5 }, 2.0),
        (Away::ComfyUi { worker, hangs: dice.unit() < 0.5 }, 2.0),
    ];
    dice.shuffle(&mut kinds);
    let share = size.jobs as f64 / kinds.len() as f64;
    let outage = |(index, (what, minutes)): (usize, (Away, f64))| Outage {
        after: (share * (index as f64 + 0.25 + dice.unit() / 2.0)) as usize,
        what,
        time: Duration::from_secs_f64(60.0 * minutes * size.outages),
        meanwhile: (0..2).map(|step| meanwhile(step, size, dice)).collect(),
    };
    kinds.into_iter().enumerate().map(outage).collect()
}

/// What makes the end of an outage hard: somebody who was not there at its beginning, or has no connection at its end.
fn meanwhile(step: usize, size: &Size, dice: &mut Dice) -> (f64, usize, Act) {
    let act = match dice.below(4) {
        0 => Act::Kill,
        1 => Act::Term,
        2 => Act::Engine,
        _ => Act::Amqp(Fault::Reset, seconds(dice, 0.2, 5.0)),
    };
    (0.1 + 0.4 * (step as f64 + dice.unit()), dice.below(size.workers), act)
}

fn seconds(dice: &mut Dice, least: f64, most: f64) -> Duration {
    Duration::from_secs_f64(least + (most - least) * dice.unit())
}

fn amqp(dice: &mut Dice) -> Act {
    let fault = match dice.below(6) {
        0 => Fault::Reset,
        1 => Fault::Swallow,
        2 => Fault::Throttle(200 + dice.below(4000)),
        3 => Fault::Hold,
        4 => Fault::HalfOpen,
        _ => Fault::CutAfter(dice.below(4096)),
    };
    Act::Amqp(fault, seconds(dice, 0.2, 5.0))
}

fn store(dice: &mut Dice) -> Act {
    let few = 1 + dice.below(5);
    match dice.below(8) {
        0 => Act::Store("", Spoil::Refuse(503), few),
        1 => Act::Store("", Spoil::Refuse(500), few),
        2 => Act::Store("PUT /results/jobs/soak-", Spoil::Refuse(409), few),
        3 => Act::Store("PUT /results/jobs/soak-", Spoil::Refuse(412), 1),
        4 => Act::Store("PUT /results/jobs/soak-", Spoil::LoseAnswer, few),
        5 => Act::Store("GET ", Spoil::Truncate(dice.below(1500)), few),
        6 => Act::Store("GET ", Spoil::Corrupt, 1),
        _ => Act::Store("", Spoil::Delay(seconds(dice, 0.2, 3.0)), few),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(seed: u64) -> Size {
        Size { jobs: 2000, faults: 300, workers: 3, span: Duration::from_secs(540), outages: 1.0, seed }
    }

    #[test]
    fn equal_seeds_give_equal_plans() {
        assert_eq!(Plan::new(&size(7)), Plan::new(&size(7)));
        assert_ne!(Plan::new(&size(7)).faults, Plan::new(&size(8)).faults);
    }

    #[test]
    fn each_long_fault_comes_once_and_far_from_the_others() {
        let mut kinds = std::collections::HashSet::new();
        for seed in 0..100 {
            let plan = Plan::new(&size(seed));
            let minutes = plan.outages.iter().map(|outage| outage.time.as_secs() / 60).sum::<u64>();
            assert_eq!((plan.outages.len(), minutes), (5, 10));
            assert!(plan.outages.is_sorted_by(|one, next| one.after + 100 < next.after), "{plan:?}");
            assert!(plan.outages.iter().all(|outage| outage.after < plan.jobs.len()));
            let last = plan.jobs.last().map(|job| job.at.as_secs());
            assert!(last.is_some_and(|last| (1010..1020).contains(&last)), "{last:?}");
            kinds.extend(plan.outages.iter().map(|outage| format!("{:?}", outage.what)));
            let mut shares = plan.outages.iter().flat_map(|outage| &outage.meanwhile);
            assert!(shares.all(|(share, worker, _)| (0.1..0.9).contains(share) && *worker < 3));
        }
        // Disk and memory, killed and stopped, exits and hangs of each of three workers.
        assert_eq!(kinds.len(), 2 + 2 + 2 + 6, "{kinds:?}");
        assert!(Plan::new(&Size { outages: 0.0, ..size(1) }).outages.is_empty());
    }

    #[test]
    fn the_shares_are_those_of_the_specification() {
        let plan = Plan::new(&size(1));
        let jobs = |wanted: fn(&Kind) -> bool| plan.jobs.iter().filter(|job| wanted(&job.kind)).count();
        assert_eq!(plan.jobs.len(), 2000);
        assert_eq!(jobs(|kind| matches!(kind, Kind::Invalid(_))), 100);
        assert_eq!(jobs(|kind| matches!(kind, Kind::Malformed | Kind::Unanswerable)), 20);
        assert_eq!(jobs(|kind| matches!(kind, Kind::Hostile(_))), 20);
        assert_eq!(jobs(|kind| *kind == Kind::Poison), 10);
        let twice = plan.jobs.iter().filter(|job| job.twice).count();
        assert!((60..140).contains(&twice), "{twice}");
        let faults =
            |wanted: fn(&Act) -> bool| plan.faults.iter().filter(|strike| wanted(&strike.act)).count();
        assert_eq!(faults(|act| *act == Act::Kill), 75);
        assert_eq!(faults(|act| matches!(act, Act::Amqp(..))), 75);
        assert_eq!(faults(|act| *act == Act::Broker), 3);
        assert_eq!(faults(|act| matches!(act, Act::DiskFull(_))), 2);
        assert_eq!(plan.faults.len(), 305);
    }
}
