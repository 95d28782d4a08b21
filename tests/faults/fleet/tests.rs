//! That the figures are those of the journal, and that a picture can be made of any.

use testbed::Machine;

use super::{
    Event,
    figures::{Balance, Figures, Losses, Wait},
    plan::Way,
    plot, report,
};
use crate::{
    journal::{Expected, Harm, Manifest, Record},
    judge::judge,
};

/// Where the run begins, after the boot of the first workers.
const ORIGIN: u64 = 10_000;

fn event(event: Event) -> Record {
    Record::Fleet(event)
}

fn life(worker: &str, begun: u64, ready: u64) -> [Record; 2] {
    let worker = || worker.to_owned();
    [event(Event::Begun { at: begun, worker: worker() }), event(Event::Ready { at: ready, worker: worker() })]
}

fn gone(worker: &str, at: u64, way: Way, busy: u64) -> [Record; 2] {
    let worker = || worker.to_owned();
    [
        event(Event::Leaving { at, worker: worker(), way }),
        event(Event::Gone { at: at + 500, worker: worker(), way, took: 500, busy, kilobytes: 300 * 1024 }),
    ]
}

fn job(id: &str, published: u64, started: u64, answered: u64, by: &str) -> Vec<Record> {
    let (job, worker) = (|| id.to_owned(), || by.to_owned());
    let expected = Expected::Success { says: String::new() };
    let manifest =
        Manifest { id: job(), sha256: "m".into(), by: worker(), executions: 1, ..Manifest::default() };
    vec![
        Record::Published { at: published, id: job(), expected },
        Record::Accepted { at: published + 1, id: job(), worker: worker() },
        Record::Started { at: started, id: job(), worker: worker() },
        Record::Answered { at: answered, id: job(), sha256: "m".into() },
        Record::Manifest(manifest),
    ]
}

fn phase(at: u64, workers: usize) -> Record {
    event(Event::Phase { at, name: format!("{workers} workers"), workers })
}

/// Two workers; a third one for the second phase, of which one is killed with a job in hand.
fn records() -> Vec<Record> {
    let mut records = Vec::new();
    records.extend(life("a", 1000, 4000));
    records.extend(life("b", 1000, 5000));
    records.push(phase(ORIGIN, 2));
    records.extend(job("1", 10_000, 10_100, 11_000, "a"));
    records.extend(job("2", 10_000, 10_300, 11_000, "b"));
    records.extend(job("3", 11_000, 11_020, 12_000, "a"));
    records.push(event(Event::Queue { at: 12_000, waiting: 3 }));
    records.push(phase(20_000, 3));
    records.extend(life("c", 20_000, 22_000));
    records.extend(job("4", 23_000, 23_000, 24_000, "a"));
    // B had it when it was killed, and C ran it.
    records.extend(job("5", 23_000, 24_000, 29_000, "c"));
    records.push(Record::Accepted { at: 23_500, id: "5".into(), worker: "b".into() });
    let worker = Some("b".to_owned());
    records.push(Record::Fault { at: 24_100, harm: Harm::Kill, worker, detail: String::new() });
    records.extend(gone("b", 24_100, Way::Kill, 1000));
    records.push(event(Event::Over { at: 30_000 }));
    records.extend(gone("a", 30_000, Way::Term, 13_250));
    records.extend(gone("c", 30_000, Way::Order, 2125));
    records
}

fn figures(records: &[Record]) -> Figures {
    Figures::new(records, Machine { cores: 2, processor: "a <processor>".into() }, 1)
}

#[test]
fn waits_shares_and_lives_are_those_of_the_journal() {
    let figures = figures(&records());
    assert_eq!((figures.jobs, figures.seconds, figures.executions), (5, 19.0, 5));
    assert_eq!(figures.wait, Wait { p50: 0.1, p90: 1.0, p99: 1.0 });
    assert_eq!((figures.most_waiting, figures.most_megabytes, figures.boot_median), (3, 300, 3.0));
    let up: Vec<_> = figures.up.clone();
    assert_eq!(up, [(-6.0, 1), (-5.0, 2), (12.0, 3), (14.1, 2), (20.0, 1), (20.0, 0)]);
    let lives: Vec<_> =
        figures.lives.iter().map(|life| (life.worker.as_str(), life.jobs, life.up())).collect();
    assert_eq!(lives, [("a", 3, 26.5), ("b", 1, 19.1), ("c", 1, 8.5)]);
    assert_eq!((figures.lives[0].busy, figures.lives[2].busy), (0.5, 0.25));

    let [two, three] = &figures.phases[..] else { panic!("{:?}", figures.phases) };
    assert_eq!((two.from, two.to, two.jobs, two.answers_per_second), (0.0, 10.0, 3, 0.3));
    let balance = Balance { workers: 2, seconds: 10.0, ratio: 2.0, variation: 1.0 / 3.0 };
    assert_eq!(two.balance, Some(balance));
    // From when C was there; B did not live through it.
    let balance = Balance { workers: 2, seconds: 8.0, ratio: 1.0, variation: 0.0 };
    assert_eq!(three.balance, Some(balance));
}

#[test]
fn what_a_kill_met_is_counted() {
    let expected = Losses { kills: 1, jobs: 1, answered_elsewhere: 1, stored_before: 0 };
    assert_eq!(figures(&records()).losses, expected);
    // One that was idle, and one whose job was answered already.
    let mut idle = records();
    for record in &mut idle {
        if let Record::Fault { at, .. } = record {
            *at = 29_500;
        }
    }
    assert_eq!(figures(&idle).losses, Losses { kills: 1, ..Losses::default() });
    // The answer of the killed one's own result came after its end.
    let mut stored = records();
    for record in &mut stored {
        if let Record::Manifest(manifest) = record
            && manifest.id == "5"
        {
            manifest.by = "b".into();
        }
    }
    let expected = Losses { kills: 1, jobs: 1, answered_elsewhere: 0, stored_before: 1 };
    assert_eq!(figures(&stored).losses, expected);
}

/// Only a kill, and only of a worker that had the job, lets it be run once more.
#[test]
fn a_drained_workers_job_must_not_run_twice() {
    let run_twice = |way: Option<Way>| {
        let mut records = job("1", 10_000, 10_100, 12_000, "b");
        for record in &mut records {
            if let Record::Manifest(manifest) = record {
                manifest.executions = 2;
                manifest.status = "succeeded".into();
                manifest.workers = ["a".to_owned(), "b".to_owned()].into();
            }
        }
        let worker = Some("a".to_owned());
        match way {
            Some(Way::Kill) => {
                records.push(Record::Fault { at: 11_000, harm: Harm::Kill, worker, detail: String::new() });
            }
            Some(way) => records.extend(gone("a", 11_000, way, 500)),
            None => {}
        }
        judge(&records).violations
    };
    for way in [None, Some(Way::Term), Some(Way::Order)] {
        let violations = run_twice(way);
        assert!(
            violations.len() == 1 && violations[0].contains("executed 2 times"),
            "{way:?}: {violations:?}"
        );
    }
    assert_eq!(run_twice(Some(Way::Kill)), Vec::<String>::new());
}

#[test]
fn a_picture_and_tables_can_be_made_of_anything() {
    let short: Vec<Record> = records().into_iter().take(3).collect();
    for records in [records(), short, Vec::new()] {
        let figures = figures(&records);
        let (plot, tables) = (plot::svg(&figures), report::tables(&figures) + &report::summary(&figures));
        for text in [&plot, &tables] {
            assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
        }
        assert!(plot.contains("a &lt;processor>") && plot.ends_with("</svg>\n"), "{plot}");
        for life in &figures.lives {
            assert!(plot.contains(&life.worker) && tables.contains(&life.worker));
        }
    }
}

#[test]
fn progress_is_that_of_the_moment() {
    let said = report::progress(&records()[..13], 5);
    assert_eq!(said, "[2 workers] 2 up, 0 booting; 2 of 5 jobs published, 1 answers");
}
