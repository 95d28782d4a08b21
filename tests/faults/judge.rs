//! The verdict over a journal: pure, so that each violation can be shown to be found.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::journal::{Expected, Harm, Kinds, Left, Manifest, Millis, Record, excuse};

/// A poison job kills its worker so often before it is called so.
const POISON_RUNS: usize = 3;
/// A fault's effect outlasts it: a held connection is missed later.
const AFTERMATH: Millis = 30_000;

/// What a run came to.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) jobs: usize,
    pub(super) faults: usize,
    pub(super) lost: usize,
    pub(super) disagreeing: usize,
    /// Jobs that ran oftener than the faults that hit them account for.
    pub(super) executed_twice: usize,
    /// Answers that blame what was not so: a crash that never was, an input or output that was there.
    pub(super) false_verdicts: usize,
    pub(super) orphans: usize,
    pub(super) leftovers: usize,
    /// From the SIGKILL of a worker to the next acceptance of the job it had in hand.
    pub(super) redelivery_p99: Option<Millis>,
    /// Every violation, in words.
    pub(super) violations: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { jobs, faults, lost, disagreeing, orphans, leftovers, .. } = self;
        let Self { executed_twice, false_verdicts, .. } = self;
        write!(f, "jobs {jobs}, faults {faults}, lost {lost}, disagreeing {disagreeing}, ")?;
        write!(f, "executed twice {executed_twice}, false verdicts {false_verdicts}, ")?;
        write!(f, "orphans {orphans}, leftovers {leftovers}, ")?;
        match self.redelivery_p99 {
            Some(p99) => write!(f, "redelivery p99 {:.1} s", p99 as f64 / 1000.0),
            None => write!(f, "redelivery p99 -"),
        }
    }
}

/// What is known of one job.
#[derive(Default)]
struct Job<'a> {
    published: Vec<(Millis, &'a Expected)>,
    accepted: Vec<(Millis, &'a str)>,
    answers: Vec<(Millis, &'a str)>,
    dead: usize,
    manifests: Vec<&'a Manifest>,
}

struct Fault<'a> {
    at: Millis,
    /// When it was over.
    until: Millis,
    harm: Harm,
    worker: Option<&'a str>,
}

/// Holds the journal against the invariants of a run.
pub(super) fn judge(records: &[Record]) -> Report {
    let mut jobs: BTreeMap<&str, Job<'_>> = BTreeMap::new();
    let mut faults = Vec::new();
    let mut report = Report::default();
    for record in records {
        if let Some(id) = record.id() {
            jobs.entry(id).or_default().add(record);
            continue;
        }
        match record {
            Record::Fault { at, harm, worker, .. } => {
                faults.push(Fault { at: *at, until: *at, harm: *harm, worker: worker.as_deref() });
            }
            Record::Lifted { at, harm, worker } => {
                let is_it = |fault: &&mut Fault<'_>| (fault.harm, fault.worker) == (*harm, worker.as_deref());
                faults.iter_mut().rev().find(is_it).into_iter().for_each(|fault| fault.until = *at);
            }
            Record::Left { kind, detail } => {
                match kind {
                    Left::Process | Left::Listener => report.orphans += 1,
                    Left::File | Left::Upload | Left::Message | Left::Resource => report.leftovers += 1,
                    Left::Secret | Left::Exit | Left::Standing => {}
                }
                report.violations.push(format!("{kind:?} left: {detail}"));
            }
            _ => {}
        }
    }
    report.jobs = jobs.values().filter(|job| !job.published.is_empty()).count();
    report.faults = faults.iter().filter(|fault| fault.harm != Harm::Poison).count();
    for (id, job) in &jobs {
        job.judge(id, &faults, &mut report);
    }
    report.redelivery_p99 = redelivery_p99(&jobs, &faults);
    report
}

impl<'a> Job<'a> {
    fn add(&mut self, record: &'a Record) {
        match record {
            Record::Published { at, expected, .. } => self.published.push((*at, expected)),
            Record::Accepted { at, worker, .. } => self.accepted.push((*at, worker)),
            Record::Answered { at, sha256, .. } => self.answers.push((*at, sha256)),
            Record::DeadLettered { .. } => self.dead += 1,
            Record::Manifest(manifest) => self.manifests.push(manifest),
            Record::Started { .. }
            | Record::Fault { .. }
            | Record::Lifted { .. }
            | Record::Left { .. }
            | Record::Fleet(_) => {}
        }
    }

    fn judge(&self, id: &str, faults: &[Fault<'_>], report: &mut Report) {
        let mut violation = |text: String| report.violations.push(format!("{id}: {text}"));
        let Some((published, expected)) = self.published.first().copied() else {
            violation("answered, and never published".into());
            return;
        };
        if expected == &Expected::DeadLetter {
            match (self.dead, self.manifests.len(), self.answers.len()) {
                (0, ..) => {
                    violation("lost: not among the dead letters".into());
                    report.lost += 1;
                }
                (1.., 0, 0) => {}
                _ => violation("answered, and nobody was to be told".into()),
            }
            return;
        }
        if self.dead > 0 {
            violation("among the dead letters".into());
        }
        let manifest = match *self.manifests {
            [manifest] => manifest,
            ref found => {
                violation(format!("lost: {} manifests, {} answers", found.len(), self.answers.len()));
                report.lost += 1;
                return;
            }
        };
        if self.answers.is_empty() {
            violation("lost: a manifest and no answer".into());
            report.lost += 1;
        }
        let told: BTreeSet<_> = self.answers.iter().map(|(_, sha256)| *sha256).collect();
        if told.iter().any(|sha256| *sha256 != manifest.sha256) {
            violation(format!("disagreeing: {} different answers, or not the manifest", told.len()));
            report.disagreeing += 1;
        }
        for output in &manifest.outputs {
            match &output.found {
                None => violation(format!("output missing: {}", output.uri)),
                Some(found) if *found != output.sha256 => {
                    violation(format!("output differs: {}", output.uri))
                }
                Some(_) => {}
            }
        }
        let answered = self.answers.iter().map(|(at, _)| *at).min().unwrap_or(Millis::MAX);
        let hit = |harm: Kinds| {
            let during = |fault: &&Fault<'_>| fault.until + AFTERMATH >= published && fault.at <= answered;
            let here = |fault: &&Fault<'_>| {
                fault.worker.is_none_or(|worker| manifest.workers.iter().any(|name| name == worker))
            };
            faults.iter().filter(during).filter(here).filter(|fault| harm(fault.harm)).count()
        };
        // Copies of a job excuse nothing: they wait for the one that runs.
        let most = if expected == &Expected::Poison {
            POISON_RUNS + hit(|harm| matches!(harm, Harm::Term | Harm::Engine))
        } else {
            1 + hit(Harm::costs_executions)
        };
        if manifest.executions > most {
            violation(format!("executed {} times, at most {most} are due", manifest.executions));
            report.executed_twice += 1;
        }
        let code = manifest.code.as_deref().unwrap_or(&manifest.status);
        let excused = || excuse(code).is_some_and(|(least, harm)| hit(harm) >= least);
        let as_expected = match expected {
            Expected::Success { says } => {
                manifest.status == "succeeded"
                    && (says.is_empty() || manifest.texts.iter().any(|text| text.contains(says)))
            }
            Expected::Failure { code } => manifest.code.as_ref() == Some(code),
            Expected::Poison => code == "poison",
            Expected::Answer | Expected::DeadLetter => !blames(code),
        };
        if !as_expected && !excused() {
            report.false_verdicts += usize::from(blames(code));
            violation(format!("{code} {:?}, expected {expected:?}", manifest.texts));
        }
    }
}

/// Whether a code says that something failed which nobody wanted to fail.
fn blames(code: &str) -> bool {
    ["poison", "engine_crashed", "internal", "input_unavailable"].contains(&code)
        || code.starts_with("output_")
}

fn redelivery_p99(jobs: &BTreeMap<&str, Job<'_>>, faults: &[Fault<'_>]) -> Option<Millis> {
    let mut delays: Vec<Millis> = faults
        .iter()
        .filter(|fault| fault.harm == Harm::Kill)
        // Nobody takes a job then.
        .filter(|kill| {
            let halted =
                |fault: &Fault<'_>| fault.at <= kill.at + AFTERMATH && kill.at <= fault.until + AFTERMATH;
            !faults.iter().any(|fault| fault.harm.halts() && halted(fault))
        })
        .filter_map(|kill| {
            let worker = kill.worker?;
            let taken = |job: &Job<'_>| {
                job.accepted
                    .iter()
                    .filter(|(at, by)| *at <= kill.at && *by == worker)
                    .map(|(at, _)| *at)
                    .max()
            };
            let job = jobs.values().max_by_key(|job| taken(job))?;
            taken(job)?;
            if job.answers.iter().any(|(at, _)| *at <= kill.at) {
                return None;
            }
            job.accepted.iter().map(|(at, _)| *at).filter(|at| *at > kill.at).min().map(|at| at - kill.at)
        })
        .collect();
    delays.sort_unstable();
    delays.get((delays.len() * 99).div_ceil(100).saturating_sub(1)).copied()
}
