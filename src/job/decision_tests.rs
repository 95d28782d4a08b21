#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use super::{
    Circumstances,
    Decision::{self, Answer, DeadLetter, RetryHere, WaitFor},
    Failure as F, GiveBack,
    Need::{Disk, Store},
    OUTPUTS_PATIENCE,
    Recovery::{FreeMemory, Nothing, Pause, RunAgain},
    WORKERS_PATIENCE, decide, delay,
};

const NOW: Decision = Decision::GiveBack(GiveBack::Now);
const LATER: Decision = Decision::GiveBack(GiveBack::Later);
const SECOND: Decision = RetryHere(Pause(Duration::from_secs(1)));
const INPUTS_PATIENCE: Duration = Duration::from_secs(300);

/// A job of the queue that meets something for the first time, with the store well.
fn first() -> Circumstances {
    Circumstances { times: 1, queued: true, inputs_patience: INPUTS_PATIENCE, ..Circumstances::default() }
}

/// Each kind of failure with its code; what is decided at first; while the store is away; and in the end, when
/// every budget is spent.
fn table() -> Vec<(F, &'static str, Decision, Decision, Decision)> {
    let text = String::new;
    let always = |failure, code, decision| (failure, code, decision, decision, decision);
    let once = |failure, code, recovery| (failure, code, RetryHere(recovery), RetryHere(recovery), Answer);
    vec![
        always(F::Malformed(text()), "malformed_job", Answer),
        always(F::Invalid(text()), "invalid_job", Answer),
        always(F::IdConflict(text()), "id_conflict", Answer),
        always(F::Unanswerable(text()), "malformed_job", DeadLetter),
        always(F::InputNotFound(text()), "input_not_found", Answer),
        (F::InputForbidden(text()), "input_forbidden", Answer, WaitFor(Store), Answer),
        (F::InputUnavailable(text()), "input_unavailable", LATER, WaitFor(Store), Answer),
        always(F::InputTooLarge(text()), "input_too_large", Answer),
        once(F::ChecksumMismatch(text()), "checksum_mismatch", Nothing),
        always(F::UnsupportedUri(text()), "unsupported_uri", Answer),
        always(F::MissingNodes(Vec::new()), "missing_nodes", Answer),
        always(F::ConversionRefused(text()), "conversion_failed", Answer),
        always(F::ConversionTimedOut(text()), "conversion_failed", Answer),
        once(F::BrowserDown(text()), "conversion_failed", Nothing),
        always(F::PromptRefused { message: text(), node_errors: None }, "invalid_prompt", Answer),
        always(F::NodeFailed(Box::default()), "execution_error", Answer),
        always(F::OutputTooLarge(text()), "execution_error", Answer),
        once(F::OutOfMemory(Box::default()), "out_of_memory", FreeMemory),
        always(F::TimedOut { seconds: 1.0 }, "timeout", Answer),
        always(F::Expired { seconds: 1.0 }, "timeout", Answer),
        always(F::Cancelled, "cancelled", Answer),
        once(F::Interrupted, "interrupted", Nothing),
        once(F::OutputMissing { message: text(), nodes: Default::default() }, "output_missing", RunAgain),
        (F::OutputForbidden(text()), "output_forbidden", Answer, WaitFor(Store), Answer),
        (F::OutputNotFound(text()), "output_not_found", Answer, WaitFor(Store), Answer),
        (F::OutputUnavailable(text()), "internal", LATER, WaitFor(Store), Answer),
        once(F::EngineCrashed(text()), "engine_crashed", Nothing),
        (F::EngineLost(text()), "engine_crashed", RetryHere(Nothing), RetryHere(Nothing), LATER),
        always(F::EngineUnavailable(text()), "internal", LATER),
        (F::StoreUnavailable(text()), "internal", SECOND, WaitFor(Store), DeadLetter),
        (F::DiskFull(text()), "internal", WaitFor(Disk), WaitFor(Disk), Answer),
        (F::Local(text()), "internal", LATER, LATER, Answer),
        always(F::Poison { crashes: 3 }, "poison", Answer),
        always(F::dead_lettered("delivery_limit", "q").unwrap(), "poison", Answer),
        always(F::CopyRunning(text()), "internal", LATER),
        always(F::Draining, "interrupted", NOW),
        always(F::HeldUp, "interrupted", NOW),
        always(F::Disowned, "interrupted", NOW),
        always(F::Internal(text()), "internal", Answer),
    ]
}

#[test]
fn the_whole_table() {
    let table = table();
    let long = Duration::from_secs(24 * 3600);
    let spent = Circumstances { times: u32::MAX, lasting: long, waited: long, executed: true, ..first() };
    for (failure, code, at_first, away, in_the_end) in &table {
        assert_eq!(serde_json::to_value(failure.code()).unwrap(), *code, "{failure:?}");
        assert_eq!(decide(failure, &first()), *at_first, "{failure:?}");
        let store_away = true;
        assert_eq!(decide(failure, &Circumstances { store_away, ..first() }), *away, "{failure:?}");
        assert_eq!(decide(failure, &spent), *in_the_end, "{failure:?}");
    }
    // A new variant belongs into the table: each is in it once.
    let mut kinds: Vec<_> =
        table.iter().map(|(failure, ..)| format!("{:?}", std::mem::discriminant(failure))).collect();
    kinds.sort();
    kinds.dedup();
    assert_eq!(kinds.len(), table.len());
    let variants =
        include_str!("../../crates/contract/src/failure.rs").split("pub enum Failure {").nth(1).unwrap();
    let variants = variants.split("\n}\n").next().unwrap().matches("#[error(").count();
    assert_eq!(table.len(), variants);
}

#[test]
fn nothing_that_is_away_costs_a_job_anything_while_it_lasts() {
    // However long the store is away, and however often it was met so.
    let away = Circumstances {
        times: 1000,
        lasting: Duration::from_secs(3600),
        waited: Duration::from_secs(3600),
        store_away: true,
        executed: true,
        ..first()
    };
    for (failure, _, _, while_away, _) in table() {
        if while_away == WaitFor(Store) {
            assert_eq!(decide(&failure, &away), WaitFor(Store), "{failure:?}");
        }
    }
}

#[test]
fn budgets_end_where_they_say() {
    let (just_within, over) = (Duration::from_secs(1), Duration::ZERO);
    for (failure, patience, within, after) in [
        (F::InputUnavailable(String::new()), INPUTS_PATIENCE, LATER, Answer),
        (F::OutputUnavailable(String::new()), INPUTS_PATIENCE, LATER, Answer),
        (F::Local(String::new()), WORKERS_PATIENCE, LATER, Answer),
    ] {
        let waited = |less: Duration| Circumstances { waited: patience - less, ..first() };
        assert_eq!(decide(&failure, &waited(just_within)), within);
        assert_eq!(decide(&failure, &waited(over)), after);
    }
    let disk = F::DiskFull(String::new());
    let second = Circumstances { times: 2, ..first() };
    assert_eq!(decide(&disk, &second), LATER);
    assert_eq!(decide(&disk, &Circumstances { waited: WORKERS_PATIENCE, ..second }), Answer);

    // With finished outputs in hand nothing is run again.
    let lasting = |less: Duration| Circumstances {
        times: 9,
        lasting: OUTPUTS_PATIENCE - less,
        executed: true,
        ..first()
    };
    for failure in [F::OutputUnavailable, F::Local, F::DiskFull].map(|failure| failure(String::new())) {
        assert_eq!(decide(&failure, &lasting(just_within)), RetryHere(Pause(Duration::from_secs(30))));
        assert_eq!(decide(&failure, &lasting(over)), Answer);
    }

    // A record that the store does not take while it seems well.
    let record = F::StoreUnavailable(String::new());
    let tries = |times, executed| Circumstances { times, executed, ..first() };
    assert_eq!(decide(&record, &tries(3, false)), RetryHere(Pause(Duration::from_secs(4))));
    assert_eq!(decide(&record, &tries(4, false)), LATER);
    assert_eq!(decide(&record, &tries(4, true)), RetryHere(Pause(Duration::from_secs(8))));
}

#[test]
fn a_job_without_a_queue_waits_for_nothing() {
    for (failure, ..) in table() {
        for store_away in [false, true] {
            let alone = Circumstances { queued: false, store_away, ..first() };
            let decision = decide(&failure, &alone);
            assert!(!matches!(decision, WaitFor(_)) && decision != LATER, "{failure:?}: {decision:?}");
        }
    }
}

#[test]
fn delays_grow_to_the_longest() {
    let seconds: Vec<_> = [0, 1, 2, 3, 4, 5, u32::MAX].map(delay).map(|delay| delay.as_secs()).into();
    assert_eq!(seconds, [5, 5, 10, 20, 30, 30, 30]);
}
