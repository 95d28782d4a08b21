//! That the judge finds each violation, and nothing in a run without one.

use super::{
    journal::{Expected, Harm, Left, Manifest, Record, StoredOutput},
    judge::{Report, judge},
};

fn published(id: &str, expected: Expected) -> Record {
    Record::Published { at: 10, id: id.into(), expected }
}

fn answered(id: &str, at: u64, sha256: &str) -> Record {
    Record::Answered { at, id: id.into(), sha256: sha256.into() }
}

fn accepted(id: &str, at: u64, worker: &str) -> Record {
    Record::Accepted { at, id: id.into(), worker: worker.into() }
}

fn fault(at: u64, harm: Harm, worker: &str) -> Record {
    Record::Fault { at, harm, worker: Some(worker.into()), detail: String::new() }
}

/// From then until then, for all workers.
fn long(harm: Harm, at: u64, until: u64) -> [Record; 2] {
    let detail = String::new();
    [Record::Fault { at, harm, worker: None, detail }, Record::Lifted { at: until, harm, worker: None }]
}

fn manifest(id: &str) -> Manifest {
    Manifest {
        id: id.into(),
        sha256: "m".into(),
        status: "succeeded".into(),
        texts: vec!["says it".into()],
        outputs: vec![StoredOutput { uri: "o".into(), sha256: "s".into(), found: Some("s".into()) }],
        workers: ["a".to_owned()].into(),
        executions: 1,
        ..Manifest::default()
    }
}

fn success() -> Expected {
    Expected::Success { says: "says".into() }
}

/// A job that went well but for what `change` does to its manifest.
fn with(expected: Expected, change: impl FnOnce(&mut Manifest)) -> Vec<Record> {
    let mut stored = manifest("j");
    change(&mut stored);
    vec![published("j", expected), answered("j", 500, "m"), Record::Manifest(stored)]
}

fn good() -> Vec<Record> {
    with(success(), |_| {})
}

#[track_caller]
fn one_violation(records: &[Record], says: &str) -> Report {
    let report = judge(records);
    assert!(report.violations.len() == 1 && report.violations[0].contains(says), "{:?}", report.violations);
    report
}

#[track_caller]
fn no_violation(records: &[Record]) {
    let report = judge(records);
    assert!(report.violations.is_empty(), "{:?}", report.violations);
}

#[test]
fn a_run_without_a_violation_has_none() {
    let mut records = good();
    records.push(answered("j", 900, "m"));
    records.push(published("dead", Expected::DeadLetter));
    records.push(Record::DeadLettered { at: 20, id: "dead".into() });
    let report = judge(&records);
    assert!(report.violations.is_empty(), "{:?}", report.violations);
    assert_eq!(
        report.to_string(),
        "jobs 2, faults 0, lost 0, disagreeing 0, executed twice 0, false verdicts 0, orphans 0, leftovers 0, \
         redelivery p99 -"
    );
}

#[test]
fn lost_jobs_are_found() {
    let nothing = [published("j", success())];
    assert_eq!(one_violation(&nothing, "lost: 0 manifests").lost, 1);
    let unanswered = [published("j", success()), Record::Manifest(manifest("j"))];
    assert_eq!(one_violation(&unanswered, "no answer").lost, 1);
    assert_eq!(one_violation(&[published("j", Expected::DeadLetter)], "dead letters").lost, 1);
}

#[test]
fn wrong_answers_are_found() {
    let mut records = good();
    records.push(answered("j", 900, "other"));
    assert_eq!(one_violation(&records, "disagreeing").disagreeing, 1);
    let mut records = good();
    records.push(Record::DeadLettered { at: 20, id: "j".into() });
    one_violation(&records, "among the dead letters");
    one_violation(&[answered("j", 20, "m")], "never published");
    let mut records = with(Expected::DeadLetter, |_| {});
    records.push(Record::DeadLettered { at: 20, id: "j".into() });
    one_violation(&records, "nobody was to be told");
}

#[test]
fn outputs_that_are_not_what_the_manifest_says_are_found() {
    one_violation(&with(success(), |stored| stored.outputs[0].found = None), "output missing");
    one_violation(&with(success(), |stored| stored.outputs[0].found = Some("x".into())), "output differs");
    one_violation(&with(success(), |stored| stored.texts = vec!["of another job".into()]), "expected");
}

#[test]
fn unexpected_endings_are_found_and_only_enough_faults_excuse_them() {
    let failed =
        |stored: &mut Manifest| (stored.status, stored.code) = ("failed".into(), Some("poison".into()));
    no_violation(&with(Expected::Poison, failed));
    no_violation(&with(Expected::Failure { code: "poison".into() }, failed));
    one_violation(&with(Expected::Failure { code: "missing_nodes".into() }, failed), "expected");
    let mut records = with(success(), failed);
    records.extend([fault(100, Harm::Kill, "a"), fault(200, Harm::Kill, "a")]);
    one_violation(&records, "poison");
    records.push(fault(300, Harm::Kill, "other"));
    one_violation(&records, "poison");
    // Nor does another copy of the job.
    records.push(published("j", success()));
    one_violation(&records, "poison");
    records.push(fault(300, Harm::Kill, "a"));
    no_violation(&records);
}

#[test]
fn verdicts_that_blame_what_was_well_are_found() {
    let failed = |code: &str| {
        let code = code.to_owned();
        move |stored: &mut Manifest| (stored.status, stored.code) = ("failed".into(), Some(code))
    };
    let long_ones = [Harm::StoreAway, Harm::StoreForbids, Harm::Alarm, Harm::BrokerDown, Harm::NoBoot];
    let mistake = Expected::Failure { code: "invalid_job".into() };
    for code in
        ["poison", "engine_crashed", "internal", "input_unavailable", "output_missing", "output_forbidden"]
    {
        for expected in [success(), mistake.clone(), Expected::Answer] {
            let mut records = with(expected, failed(code));
            records.extend(long_ones.iter().flat_map(|harm| long(*harm, 20, 400)));
            assert_eq!(one_violation(&records, code).false_verdicts, 1);
        }
        no_violation(&with(Expected::Failure { code: code.into() }, failed(code)));
    }
    // Another wrong ending is a violation, and blames nothing.
    assert_eq!(one_violation(&with(success(), failed("timeout")), "expected").false_verdicts, 0);
    let mut records = with(success(), failed("engine_crashed"));
    records.push(fault(100, Harm::Engine, "a"));
    assert_eq!(one_violation(&records, "engine_crashed").false_verdicts, 1);
    records.push(fault(200, Harm::Engine, "a"));
    no_violation(&records);
}

#[test]
fn too_many_executions_are_found() {
    let mut records = with(success(), |stored| stored.executions = 2);
    assert_eq!(one_violation(&records, "executed 2 times, at most 1").executed_twice, 1);
    records.push(published("j", success()));
    one_violation(&records, "executed 2 times, at most 1");
    records.push(fault(501, Harm::Kill, "a"));
    one_violation(&records, "executed 2 times, at most 1");
    for harm in [Harm::Kill, Harm::Panic, Harm::Stop, Harm::Poison, Harm::Term, Harm::Engine] {
        no_violation(&[&records[..], &[fault(400, harm, "a")]].concat());
    }
    // What takes away the store, the broker or a connection takes away no execution.
    for harm in [Harm::Amqp, Harm::Store, Harm::Browser, Harm::DiskFull, Harm::Broker] {
        one_violation(&[&records[..], &[fault(400, harm, "a")]].concat(), "executed 2 times, at most 1");
    }
    for harm in [Harm::StoreAway, Harm::StoreForbids, Harm::Alarm, Harm::BrokerDown, Harm::NoBoot] {
        one_violation(&[&records[..], &long(harm, 20, 400)].concat(), "executed 2 times, at most 1");
    }
    let poison = |stored: &mut Manifest| {
        (stored.code, stored.executions) = (Some("poison".into()), 4);
    };
    let mut records = with(Expected::Poison, poison);
    records.extend((0..9).map(|at| fault(100 + at, Harm::Poison, "a")));
    one_violation(&records, "executed 4 times, at most 3");
    records.push(fault(300, Harm::Amqp, "a"));
    records.push(fault(300, Harm::Term, "other"));
    one_violation(&records, "executed 4 times, at most 3");
    records.push(fault(300, Harm::Term, "a"));
    no_violation(&records);
}

#[test]
fn what_is_left_is_found() {
    for (kind, orphans, leftovers) in [
        (Left::Process, 1, 0),
        (Left::Listener, 1, 0),
        (Left::File, 0, 1),
        (Left::Message, 0, 1),
        (Left::Upload, 0, 1),
        (Left::Secret, 0, 0),
        (Left::Exit, 0, 0),
        (Left::Standing, 0, 0),
    ] {
        let report = one_violation(&[Record::Left { kind, detail: "it".into() }], "left: it");
        assert_eq!((report.orphans, report.leftovers), (orphans, leftovers), "{kind:?}");
    }
}

#[test]
fn redelivery_is_measured_from_a_kill_to_the_next_acceptance() {
    let mut records = good();
    records.extend([accepted("j", 20, "a"), fault(100, Harm::Kill, "a"), accepted("j", 350, "b")]);
    // One that was idle, one whose job was answered already, and a stop.
    records.extend([
        fault(100, Harm::Kill, "idle"),
        fault(600, Harm::Kill, "b"),
        fault(120, Harm::Term, "a"),
    ]);
    let report = judge(&records);
    assert_eq!((report.redelivery_p99, report.faults), (Some(250), 4));
}

#[test]
fn a_kill_while_nobody_takes_jobs_says_nothing_about_redelivery() {
    let kill = |harm| {
        let mut records = with(success(), |_| {});
        records.extend(long(harm, 100_000, 200_000));
        for at in [80_000, 150_000, 220_000] {
            records.extend([accepted("j", at - 1, "a"), fault(at, Harm::Kill, "a")]);
        }
        records.push(accepted("j", 250_000, "b"));
        records.retain(|record| !matches!(record, Record::Answered { .. }));
        records.push(answered("j", 260_000, "m"));
        judge(&records).redelivery_p99
    };
    for harm in [Harm::StoreAway, Harm::StoreForbids, Harm::Alarm, Harm::BrokerDown] {
        assert_eq!(kill(harm), None, "{harm:?}");
    }
    assert_eq!(kill(Harm::NoBoot), Some(69_999));
}
