//! A run's figures in words.

use testbed::table;

use super::{
    Event,
    figures::{Figures, Life, Losses, Wait},
    plan::Way,
};
use crate::journal::Record;

/// Seconds.
const SHORT_LIFE: f64 = 1.0;

/// Who is up and how many jobs are done.
pub(super) fn progress(records: &[Record], jobs: usize) -> String {
    let (mut phase, mut up, mut booting, mut published, mut answered) = ("", 0_isize, 0_isize, 0, 0);
    for record in records {
        match record {
            Record::Fleet(Event::Phase { name, .. }) => phase = name,
            Record::Fleet(Event::Begun { .. }) => booting += 1,
            Record::Fleet(Event::Ready { .. }) => (booting, up) = (booting - 1, up + 1),
            Record::Fleet(Event::Leaving { .. }) => up -= 1,
            Record::Published { .. } => published += 1,
            Record::Answered { .. } => answered += 1,
            _ => {}
        }
    }
    format!("[{phase}] {up} up, {booting} booting; {published} of {jobs} jobs published, {answered} answers")
}

/// All of it: phases, workers, and the whole.
pub(super) fn tables(figures: &Figures) -> String {
    let Losses { kills, jobs, answered_elsewhere, stored_before } = figures.losses;
    let phases = figures.phases.iter().map(|phase| {
        let [p50, p90, p99] = quantiles(phase.wait);
        let (balance, variation) = phase.balance.map_or(("-".into(), "-".into()), |balance| {
            (
                format!("{:.2} of {} in {:.0} s", balance.ratio, balance.workers, balance.seconds),
                format!("{:.1} %", balance.variation * 100.0),
            )
        });
        let jobs = format!("{}", phase.jobs);
        let rate = format!("{:.1}", phase.answers_per_second);
        let seconds = format!("{:.0}", phase.to - phase.from);
        [phase.name.clone(), seconds, jobs, rate, p50, p90, p99, balance, variation]
    });
    let head =
        ["phase", "s", "jobs", "answers/s", "wait p50", "p90", "p99", "most ÷ fewest jobs", "variation"];
    let lives = figures.lives.iter().map(|life| {
        // A share of next to nothing says nothing.
        let lived = |words: String| if life.up() < SHORT_LIFE { "-".into() } else { words };
        [
            life.worker.clone(),
            life.jobs.to_string(),
            lived(format!("{:.0} %", life.busy * 100.0)),
            format!("{:.1}", life.up()),
            lived(format!("{:.2}", life.jobs as f64 / life.up())),
            life.ready.map_or("-".into(), |ready| format!("{:.1}", ready - life.begun)),
            life.megabytes.to_string(),
            ending(life),
        ]
    });
    let worker = ["worker", "jobs", "busy", "up s", "jobs/s", "boot s", "MB", "end"];
    let [p50, p90, p99] = quantiles(figures.wait);
    format!(
        "\n{}\n{}\n{}\n\n\
         {} jobs in {:.0} s: {:.2} a second; {} executions. Wait from publication to start: p50 {p50}, p90 {p90}, \
         p99 {p99}; at most {} jobs in the queue.\n\
         {kills} kills met {jobs} jobs: {answered_elsewhere} answered by another worker, {stored_before} \
         had their result already. A boot took {:.1} s (median), a worker with its ComfyUI and Chromium at most {} MB.",
        table(head, &phases.collect::<Vec<_>>()),
        table(worker, &lives.collect::<Vec<_>>()),
        figures.machine,
        figures.jobs,
        figures.seconds,
        figures.jobs_per_second,
        figures.executions,
        figures.most_waiting,
        figures.boot_median,
        figures.most_megabytes,
    )
}

/// For the last line.
pub(super) fn summary(figures: &Figures) -> String {
    let [p50, _, p99] = quantiles(figures.wait);
    let most = figures.up.iter().map(|(_, count)| *count).max().unwrap_or(0);
    // The longest look at the most workers says most.
    let balances = figures.phases.iter().filter_map(|phase| phase.balance);
    let balance = balances.max_by(|one, other| {
        (one.workers as f64 * one.seconds).total_cmp(&(other.workers as f64 * other.seconds))
    });
    let balance = balance.map_or("-".into(), |balance| format!("{:.2}", balance.ratio));
    format!(
        "workers at most {most}, jobs/s {:.2}, wait p50 {p50} p99 {p99}, balance {balance}",
        figures.jobs_per_second
    )
}

pub(super) fn quantiles(wait: Wait) -> [String; 3] {
    [wait.p50, wait.p90, wait.p99].map(duration)
}

/// Seconds, for people.
pub(super) fn duration(seconds: f64) -> String {
    match seconds {
        short if short < 1.0 => format!("{:.0} ms", short * 1000.0),
        few if few < 9.95 => format!("{few:.1} s"),
        many => format!("{many:.0} s"),
    }
}

fn ending(life: &Life) -> String {
    match life.way {
        None => "did not boot".into(),
        Some(Way::Kill) => "killed".into(),
        Some(Way::Itself) => "ended by itself".into(),
        Some(Way::Term) => format!("SIGTERM, {:.1} s", life.took),
        Some(Way::Order) => format!("ordered to drain, {:.1} s", life.took),
    }
}
