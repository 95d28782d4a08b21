//! Faults: at every phase of a job's life (the sweep), and at random over thousands of jobs (the
//! soak); and workers that come and go (the fleet). `scripts/sweep`, `scripts/soak` and `scripts/fleet`
//! run them whole, the plain test run a short form.

mod bed;
mod dice;
mod disk;
mod evidence;
mod fleet;
mod jobs;
mod journal;
mod judge;
#[cfg(test)]
mod judge_tests;
mod keeper;
mod options;
mod outage;
mod place;
mod plan;
// The place of a worker is that of the drain tests.
#[path = "../drain/site.rs"]
#[allow(dead_code, reason = "the drain tests need more of it")]
mod site;
mod soak;
mod sweep;

use std::time::Duration;

use anyhow::Result;
use journal::Harm;
use options::fresh_seed;
use plan::Size;
use soak::soak;
use sweep::{Case, HARMS, PHASES, sweep};

/// For a boot: 5 s on an idle machine, more on a busy one.
const BOOT: Duration = Duration::from_secs(300);
/// For what takes milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(60);
/// For a job with everything around it.
const JOB: Duration = Duration::from_secs(240);
/// After the grace: interrupting, handing back, stopping ComfyUI and the browser.
const ENDING: Duration = Duration::from_secs(8);

#[tokio::test]
async fn a_few_of_the_sweep() -> Result<()> {
    let cases = [
        ("running", Harm::Kill),
        ("staged", Harm::Panic),
        ("uploading", Harm::Term),
        ("result-stored", Harm::Amqp),
    ];
    sweep(&cases.map(|(phase, harm)| Case { phase, harm })).await
}

#[tokio::test]
#[ignore = "minutes: scripts/sweep runs it"]
async fn the_whole_sweep() -> Result<()> {
    let only = std::env::var("SWEEP_ONLY").unwrap_or_default();
    let cases = HARMS.into_iter().flat_map(|harm| PHASES.map(|phase| Case { phase, harm }));
    let cases: Vec<Case> = cases.filter(|case| case.to_string().contains(&only)).collect();
    anyhow::ensure!(!cases.is_empty(), "no case is named like {only}");
    sweep(&cases).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_soak() -> Result<()> {
    let span = Duration::from_secs(15);
    soak(Size { jobs: 40, faults: 8, workers: 2, span, outages: 0.07, seed: fresh_seed() }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes: scripts/soak runs it"]
async fn the_whole_soak() -> Result<()> {
    soak(Size::from_env()?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_fleet() -> Result<()> {
    let span = Duration::from_secs(25);
    let size = fleet::Size { jobs: 150, workers: 4, span, seconds: 0.1..0.5, seed: fresh_seed() };
    anyhow::ensure!(fleet::fleet(&size, "fleet-small", std::future::pending()).await?, "stopped");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes: scripts/fleet runs it"]
async fn the_whole_fleet() -> Result<()> {
    if !fleet::fleet(&fleet::Size::from_env()?, "fleet", testbed::stopped()).await? {
        std::process::exit(130);
    }
    Ok(())
}
