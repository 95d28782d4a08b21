//! Thousands of jobs, hundreds of faults, and a journal that is judged afterwards.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use testbed::{Worker, wait_for};
use tokio::{
    sync::{Mutex, mpsc},
    time::{sleep, sleep_until},
};

use super::{
    SOON,
    bed::{ACCEPTED, Bed},
    evidence, jobs,
    journal::Harm,
    judge::judge,
    keeper::{Keeper, Orders, give},
    options::{fresh_seed, given, minutes},
    outage::Outages,
    place::Place,
    plan::{AHEAD, Act, Plan, Size},
};

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
/// For all jobs to be published, however slow the machine.
pub(super) const LONGEST: Duration = Duration::from_secs(3 * 3600);
/// From the last fault to the last answer; longer than any fault.
pub(super) const CATCH_UP: Duration = Duration::from_secs(600);

impl Size {
    /// From `SOAK_JOBS`, `SOAK_MINUTES`, `SOAK_WORKERS`, `SOAK_OUTAGES` and `SOAK_SEED`.
    pub(super) fn from_env() -> Result<Self> {
        let jobs = given("SOAK_JOBS")?.unwrap_or(2000);
        let seed = given("SOAK_SEED")?.unwrap_or_else(fresh_seed);
        let workers = given("SOAK_WORKERS")?.unwrap_or(3);
        ensure!((1..=NAMES.len()).contains(&workers), "1 to {} workers", NAMES.len());
        let span = minutes(given("SOAK_MINUTES")?.unwrap_or(9.0))?;
        let outages = given("SOAK_OUTAGES")?.unwrap_or(1.0);
        ensure!((0.0..=2.0).contains(&outages), "outages of up to twice their length");
        Ok(Self { jobs, faults: jobs * 3 / 20, workers, span, outages, seed })
    }
}

/// Fails on any violation.
pub(super) async fn soak(size: Size) -> Result<()> {
    println!("seed {} ({size:?})", size.seed);
    let plan = Plan::new(&size);
    for outage in &plan.outages {
        println!("  after {} jobs {}", outage.after, outage.what_and_when());
    }
    let bed = Bed::new("soak").await?;
    let mut places = Vec::new();
    for (index, name) in NAMES.into_iter().take(size.workers).enumerate() {
        // One lane with the real frontend: three of them would keep the machine busy with loading it.
        let place = match index {
            0 => Place::new(&bed, name, plan.fills_a_disk()).await?,
            _ => Place::light(&bed, name).await?,
        };
        places.push(Arc::new(place));
    }
    let workers = try_join_all(places.iter().map(|place| place.site.boot())).await?;
    bed.collect(ACCEPTED).await?;
    let bed = Arc::new(bed);

    let mut keepers = Vec::new();
    let mut orders = Vec::new();
    for (place, worker) in places.iter().zip(workers) {
        let (sender, strikes) = mpsc::channel(1);
        let listens = Arc::new(AtomicBool::new(false));
        let sender = Orders { sender, listens: Arc::clone(&listens) };
        let keeper = Keeper { bed: Arc::clone(&bed), place: Arc::clone(place), strikes, listens };
        keepers.push(tokio::spawn(keeper.keep(worker)));
        orders.push(sender);
    }
    let begin = Instant::now();
    let ids: BTreeSet<String> = plan.jobs.iter().map(|job| job.id.clone()).collect();
    let progress = tokio::spawn(tell_progress(Arc::clone(&bed), begin));
    let published = AtomicUsize::new(0);
    let ahead = size.workers * AHEAD;
    let broker = Mutex::default();
    let outages = Outages { bed: &bed, places: &places, keepers: &orders, broker: &broker };
    let ran = tokio::try_join!(
        publish(&bed, &plan, begin, ahead, &published),
        strike(&bed, &plan, &published, &orders, &broker),
        outages.carry_out(&plan, &published),
    );
    if ran.is_err() {
        // What ended a keeper says more than that nobody keeps his worker any more.
        for keeper in keepers.iter_mut().filter(|keeper| keeper.is_finished()) {
            keeper.await??;
        }
    }
    ran?;
    let answered = || async { bed.journal.outstanding().is_empty() };
    // What is missing is found by the judge.
    let caught_up = wait_for("the last answers", CATCH_UP, answered).await;
    println!(
        "{} after {:.0} s",
        if caught_up.is_ok() { "all answered" } else { "NOT all answered" },
        begin.elapsed().as_secs_f32()
    );
    drop(orders);
    let mut last = Vec::new();
    for keeper in keepers {
        last.push(keeper.await??);
    }
    bed.front.lift();
    places.iter().for_each(|place| place.gate.lift());
    // Copies may stand in the delay queue yet: what is left of them then is found by the judge.
    let taken = || async { bed.full_queues(places.len()).await.is_ok_and(|full| full.is_empty()) };
    let _ = wait_for("all messages to be taken", SOON, taken).await;
    let close = async |(place, worker): (&Arc<Place>, Worker)| {
        place.wait_idle(&worker).await?;
        place.close(worker, &bed).await
    };
    try_join_all(places.iter().zip(last).map(close)).await?;
    progress.abort();
    evidence::peers(&bed, 0).await?;
    let places: Vec<&Place> = places.iter().map(|place| &**place).collect();
    evidence::manifests(&bed, &places, &ids).await?;
    let report = judge(&bed.journal.records());
    for violation in &report.violations {
        println!("VIOLATION {violation}");
    }
    println!("seed {}: {report}", size.seed);
    bed.broker.stop().await?;
    ensure!(report.violations.is_empty(), "{} violations (seed {})", report.violations.len(), size.seed);
    ensure!(report.jobs == size.jobs, "{} jobs of {} were published", report.jobs, size.jobs);
    Ok(())
}

async fn publish(
    bed: &Bed,
    plan: &Plan,
    begin: Instant,
    ahead: usize,
    published: &AtomicUsize,
) -> Result<()> {
    for job in &plan.jobs {
        sleep_until((begin + job.at).into()).await;
        let room = || async { bed.journal.outstanding().len() < ahead };
        wait_for("workers that keep up", CATCH_UP, room).await?;
        let (body, expected) = jobs::body(job.kind, &job.id, &bed.s3)?;
        for _ in 0..=usize::from(job.twice) {
            bed.publish(&job.id, &body, &expected).await?;
        }
        published.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

async fn strike(
    bed: &Bed,
    plan: &Plan,
    published: &AtomicUsize,
    keepers: &[Orders],
    broker: &Mutex<()>,
) -> Result<()> {
    for strike in &plan.faults {
        let due = || async { published.load(Ordering::Relaxed) > strike.after };
        wait_for("the next fault's turn", LONGEST, due).await?;
        match &strike.act {
            Act::Store(says, spoil, count) => {
                bed.journal.fault(Harm::Store, None, format!("{spoil:?} × {count} of {says:?}"));
                bed.front.spoil(*says, *spoil, *count);
            }
            Act::Broker => {
                // Not while another fault has it.
                let _turn = broker.lock().await;
                bed.journal.fault(Harm::Broker, None, "kill -9");
                bed.broker.kill().await?;
                bed.broker.restart().await?;
            }
            act => {
                let ended = || keepers.iter().any(|keeper| keeper.sender.is_closed());
                let taken = || async { ended() || give(keepers, strike.worker, act).is_some() };
                wait_for("a worker to strike", CATCH_UP, taken).await?;
                ensure!(!ended(), "a worker's keeper has ended");
            }
        }
    }
    Ok(())
}

async fn tell_progress(bed: Arc<Bed>, begin: Instant) {
    loop {
        sleep(Duration::from_secs(15)).await;
        let report = judge(&bed.journal.records());
        let open = bed.journal.outstanding().len();
        println!(
            "{:4.0} s: {} jobs published, {open} open, {} faults",
            begin.elapsed().as_secs_f32(),
            report.jobs,
            report.faults
        );
    }
}
