//! Many workers on one queue, more and fewer of them while thousands of jobs pass: nothing is lost,
//! and how long jobs waited and how evenly they were shared is reported.

mod crew;
mod figures;
mod plan;
mod plot;
mod report;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    convert::Infallible,
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use testbed::{Machine, nothing_left};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::{
    BOOT,
    bed::{Bed, Line},
    evidence,
    jobs::{self, Kind},
    journal::{Millis, Record},
    judge::judge,
    options::{fresh_seed, given, minutes},
    place::Place,
};
use crew::Crew;
use figures::Figures;
pub(crate) use plan::Size;
use plan::{Plan, Way};

/// The queue is looked at so often.
const LOOK: Duration = Duration::from_secs(1);
/// Looks between two lines that say how far it is.
const LINES: usize = 15;
/// From the last publication to the last answer.
const CATCH_UP: Duration = Duration::from_secs(600);
/// What a run may take longer than it should: machines are slow.
const DELAY: Duration = Duration::from_secs(3600);

/// What happens to a fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// From now on there are to be so many workers.
    Phase { at: Millis, name: String, workers: usize },
    /// A worker is started.
    Begun { at: Millis, worker: String },
    /// It takes jobs.
    Ready { at: Millis, worker: String },
    /// It is told to go, or gone by itself.
    Leaving { at: Millis, worker: String, way: Way },
    /// Nothing of it is left. Its executions took so many milliseconds; in the end worker, ComfyUI and
    /// Chromium took so much memory.
    Gone { at: Millis, worker: String, way: Way, took: Millis, busy: Millis, kilobytes: u64 },
    /// So many jobs were in the queue and in nobody's hands.
    Queue { at: Millis, waiting: u32 },
    /// All is answered.
    Over { at: Millis },
}

impl Size {
    /// From `FLEET_JOBS`, `FLEET_MINUTES`, `FLEET_WORKERS` and `FLEET_SEED`.
    pub(crate) fn from_env() -> Result<Self> {
        let workers = given("FLEET_WORKERS")?.unwrap_or(16);
        ensure!((1..=64).contains(&workers), "1 to 64 workers");
        Ok(Self {
            jobs: given("FLEET_JOBS")?.unwrap_or(5000),
            workers,
            span: minutes(given("FLEET_MINUTES")?.unwrap_or(6.5))?,
            seconds: 0.2..1.0,
            seed: given("FLEET_SEED")?.unwrap_or_else(fresh_seed),
        })
    }
}

/// Fails on any violation. Figures and plot are `<name>.json` and `<name>.svg` in the build folder.
/// `false`: it was stopped before its end, and nothing is left all the same.
pub(crate) async fn fleet(size: &Size, name: &'static str, stop: impl Future<Output = ()>) -> Result<bool> {
    println!("seed {} ({size:?})", size.seed);
    let folder = tempfile::Builder::new().prefix("fleet-").tempdir()?;
    let path = folder.path().to_owned();
    let ran = tokio::select! {
        ran = Box::pin(run(size, folder, name)) => Some(ran),
        () = stop => None,
    };
    nothing_left(&path).await?;
    // What died late may have written late.
    if path.exists() {
        fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    let Some(ran) = ran else {
        println!("stopped; nothing is left running");
        return Ok(false);
    };
    conclude(size, &ran?, name).map(|()| true)
}

/// Everything that happened; the parts and their files are gone.
async fn run(size: &Size, folder: TempDir, name: &'static str) -> Result<Vec<Record>> {
    let plan = Plan::new(size);
    let bed = Arc::new(Bed::within(folder, name).await?);
    let line = Arc::new(bed.line().await?);
    let mut places = Vec::new();
    for number in 1..=size.workers {
        places.push(Place::direct(&bed, &format!("w{number}")).await?);
    }
    let mut crew = Crew::new(&bed, Arc::clone(&line), places);
    let first = plan.phases.first().context("no phase")?.workers;
    for _ in 0..first {
        crew.add().await?;
    }
    crew.attend("the first workers", BOOT, |crew| crew.up() == first).await?;
    bed.collect(&["accepted", "started"]).await?;

    let published = AtomicUsize::new(0);
    let work = async {
        tokio::try_join!(
            publish(&bed, &line, &plan, &published),
            crew.follow(&plan.steps, &plan.phases, || published.load(Ordering::Relaxed))
        )?;
        // What is missing is found by the judge.
        let _ = crew.attend("the last answers", CATCH_UP, |_| bed.journal.outstanding().is_empty()).await;
        bed.journal.note(Record::Fleet(Event::Over { at: bed.journal.now() }));
        crew.dismiss().await
    };
    let places = tokio::select! {
        places = work => places?,
        failed = watch(&bed, size) => match failed? {},
    };
    evidence::peers(&bed, 0).await?;
    let ids: BTreeSet<String> = plan.jobs.iter().map(|job| job.id.clone()).collect();
    evidence::manifests(&bed, &places.iter().collect::<Vec<_>>(), &ids).await?;
    println!("clearing up");
    bed.broker.stop().await?;
    Ok(bed.journal.records())
}

/// Prints what the journal says and writes the files; fails on any violation.
fn conclude(size: &Size, records: &[Record], name: &str) -> Result<()> {
    let report = judge(records);
    let figures = Figures::new(records, Machine::here(), size.seed);
    println!("{}", report::tables(&figures));
    let target = testbed::build_folder()?;
    for (ending, text) in
        [("json", serde_json::to_string_pretty(&figures)? + "\n"), ("svg", plot::svg(&figures))]
    {
        let file = target.join(name).with_extension(ending);
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        println!("{}", file.display());
    }
    for violation in &report.violations {
        println!("VIOLATION {violation}");
    }
    println!("seed {}: {report}, {}", size.seed, report::summary(&figures));
    ensure!(report.violations.is_empty(), "{} violations (seed {})", report.violations.len(), size.seed);
    ensure!(report.jobs == size.jobs, "{} jobs of {} were published", report.jobs, size.jobs);
    Ok(())
}

async fn publish(bed: &Bed, line: &Line, plan: &Plan, published: &AtomicUsize) -> Result<()> {
    let begin = Instant::now();
    for job in &plan.jobs {
        sleep_until(begin + job.at).await;
        let (body, expected) = jobs::body(Kind::Plain { seconds: job.seconds }, &job.id, &bed.s3)?;
        bed.publish_on(line, &job.id, &body, &expected).await?;
        published.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Looks at the queue, and says now and then how far it is.
async fn watch(bed: &Bed, size: &Size) -> Result<Infallible> {
    let line = bed.line().await?;
    let begin = Instant::now();
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    for look in 1.. {
        looks.tick().await;
        let waiting = bed.waiting(&line).await?;
        let at = bed.journal.now();
        bed.journal.note(Record::Fleet(Event::Queue { at, waiting }));
        let seconds = begin.elapsed().as_secs();
        if look % LINES == 0 {
            println!(
                "{seconds:4} s: {}, {waiting} wait",
                report::progress(&bed.journal.records(), size.jobs)
            );
        }
        ensure!(begin.elapsed() < size.span + DELAY, "not done after {seconds} s");
    }
    unreachable!("it looks forever")
}
