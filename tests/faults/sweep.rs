//! Every phase of a job's life, and every harm at each: one answer, and nothing left.

use std::{collections::BTreeSet, fmt, fs, path::PathBuf, time::Instant};

use anyhow::{Context as _, Result, bail, ensure};
use testbed::{Worker, wait_for};

use super::{
    JOB,
    bed::{ACCEPTED, Bed},
    evidence,
    jobs::ui_job,
    journal::{Expected, Harm, Record},
    judge::judge,
    place::Place,
};

/// In the order of a job's life.
pub(super) const PHASES: [&str; 13] = [
    "accepted",
    "staging",
    "staged",
    "converting",
    "converted",
    "posted",
    "running",
    "executed",
    "uploading",
    "uploaded",
    "result-stored",
    "published",
    "acked",
];
pub(super) const HARMS: [Harm; 4] = [Harm::Kill, Harm::Term, Harm::Panic, Harm::Amqp];

/// One case.
#[derive(Clone, Copy)]
pub(super) struct Case {
    pub(super) phase: &'static str,
    pub(super) harm: Harm,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let harm = match self.harm {
            Harm::Kill => "kill",
            Harm::Term => "term",
            Harm::Panic => "panic",
            _ => "cut",
        };
        f.pad(&format!("{}-{harm}", self.phase))
    }
}

impl Case {
    /// Answers that must come: one more where the job comes again after it was answered. Anyone who has lost the message
    /// leaves the answer to the one that gets it again.
    fn answers(self) -> usize {
        1 + usize::from(self.harm != Harm::Term && self.phase == "published")
    }
}

/// Runs the cases one after the other on one worker's place; fails with the number of those that
/// went wrong.
pub(super) async fn sweep(cases: &[Case]) -> Result<()> {
    let bed = Bed::new("sweep").await?;
    let place = Place::new(&bed, "a", false).await?;
    let mut worker = place.site.boot().await?;
    bed.collect(ACCEPTED).await?;
    let begin = Instant::now();
    let mut bad = 0;
    for case in cases {
        let since = Instant::now();
        let mark = bed.journal.records().len();
        let run = Run { bed: &bed, place: &place, case: *case };
        let outcome = run.run(&mut worker).await.and(run.verdict(mark).await);
        let took = since.elapsed().as_secs_f32();
        match outcome {
            Ok(()) => println!("{case:<24} ok      {took:5.1} s"),
            Err(error) => {
                bad += 1;
                println!("{case:<24} FAILED  {took:5.1} s: {error:#}\n{}", tail(&worker.log()));
                run.recover(&mut worker).await?;
            }
        }
    }
    let mark = bed.journal.records().len();
    place.close(worker, &bed).await?;
    evidence::peers(&bed, 0).await?;
    let left = judge(&bed.journal.records()[mark..]).violations;
    for violation in &left {
        println!("VIOLATION {violation}");
    }
    println!(
        "{} cases in {:.0} s, {bad} failed, {} left at the end",
        cases.len(),
        begin.elapsed().as_secs_f32(),
        left.len()
    );
    bed.broker.stop().await?;
    ensure!(bad == 0 && left.is_empty(), "{bad} cases failed, {} things left at the end", left.len());
    Ok(())
}

struct Run<'a> {
    bed: &'a Bed,
    place: &'a Place,
    case: Case,
}

impl Run<'_> {
    fn id(&self) -> String {
        format!("sweep-{}", self.case)
    }

    fn armed(&self) -> PathBuf {
        self.bed.folder.path().join("phases").join(self.case.phase)
    }

    fn marker(&self) -> PathBuf {
        self.armed().with_extension("reached")
    }

    async fn run(&self, worker: &mut Worker) -> Result<()> {
        let (id, journal) = (self.id(), &self.bed.journal);
        fs::write(self.armed(), if self.case.harm == Harm::Panic { "panic" } else { "hold" })?;
        let seen = worker.descendants();
        let expected = Expected::Success { says: String::new() };
        self.bed.publish(&id, &serde_json::to_vec(&ui_job(&id)?)?, &expected).await?;
        let reached = || async { self.marker().exists() };
        wait_for(&format!("the phase {}", self.case.phase), JOB, reached).await?;
        let release = || fs::remove_file(self.marker());
        match self.case.harm {
            Harm::Kill => {
                self.place.kill(worker, journal).await?;
                release()?;
                *worker = self.place.site.boot().await?;
            }
            Harm::Panic => {
                journal.fault(Harm::Panic, Some(&self.place.name), self.case.phase);
                self.place.bury(worker, &seen, journal).await?;
                release()?;
                ensure!(
                    worker.exit_status().is_some_and(|status| !status.success()),
                    "a panic is no success"
                );
                *worker = self.place.site.boot().await?;
            }
            Harm::Term => {
                journal.fault(Harm::Term, Some(&self.place.name), self.case.phase);
                self.place.drain(worker, self.bed, || drop(release())).await?;
                *worker = self.place.site.boot().await?;
            }
            _ => {
                journal.fault(Harm::Amqp, Some(&self.place.name), "cut");
                self.place.gate.cut();
                release()?;
            }
        }
        self.bed.wait_answers(&id, self.case.answers()).await?;
        self.place.wait_idle(worker).await?;
        self.place.ensure_clean()
    }

    /// What the journal says of this case.
    async fn verdict(&self, mark: usize) -> Result<()> {
        let id = self.id();
        evidence::manifests(self.bed, &[self.place], &BTreeSet::from([id.clone()])).await?;
        let mut records = self.bed.journal.records().split_off(mark);
        // The one before may have been answered once more.
        records.retain(|record| record.id().is_none_or(|about| about == id));
        let report = judge(&records);
        let executions = records.iter().find_map(|record| match record {
            Record::Manifest(manifest) => Some(manifest.executions),
            _ => None,
        });
        ensure!(executions.is_some_and(|count| count > 0), "never executed: then nothing is shown");
        if !report.violations.is_empty() {
            bail!("{}", report.violations.join("; "));
        }
        Ok(())
    }

    /// A worker for the next case, whatever has become of this one.
    async fn recover(&self, worker: &mut Worker) -> Result<()> {
        let _ = fs::remove_file(self.armed());
        let _ = fs::remove_file(self.marker());
        if worker.exit_status().is_none() {
            worker.signal(testbed::Signal::KILL)?;
            worker.wait_exit(JOB).await?;
        }
        *worker = self.place.site.boot().await.context("no worker for the next case")?;
        Ok(())
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}
