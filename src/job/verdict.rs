//! Whose fault a failure is, and what follows: one table.

use super::failure::Failure;

/// What follows from a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The job's fault, or nothing more can be done: answer `failed`, then ack.
    Answer,
    /// Try again here, after the remedy.
    RetryHere(Remedy),
    /// The worker's fault: hand the job back to the queue, after a pause.
    HandBack,
}

/// What to do before trying again here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing.
    Nothing,
    /// Have ComfyUI unload its models.
    FreeMemory,
    /// Make ComfyUI run the nodes whose files are gone, whatever its execution cache holds.
    RunAgain,
}

/// ComfyUIs that one job may lose to others' prompts.
const NEIGHBOURS: u32 = 3;

/// The table. `times`: how often this attempt at the job has met a failure of this kind, now included. A
/// failure of another kind leaves it its own try: an input that was spoilt on the way says nothing about
/// a ComfyUI that is killed later.
#[must_use]
pub fn verdict(failure: &Failure, times: u32) -> Verdict {
    use Failure as F;
    let once_more = |remedy| if times < 2 { Verdict::RetryHere(remedy) } else { Verdict::Answer };
    match failure {
        F::Malformed(_)
        | F::Invalid(_)
        | F::IdConflict(_)
        | F::InputNotFound(_)
        | F::InputForbidden(_)
        | F::InputTooLarge(_)
        | F::UnsupportedUri(_)
        | F::MissingNodes(_)
        | F::ConversionRefused(_)
        | F::PromptRefused { .. }
        | F::NodeFailed(_)
        | F::OutputTooLarge(_)
        | F::TimedOut { .. }
        | F::Expired { .. }
        | F::Cancelled
        | F::Poison { .. }
        | F::DeadLettered { .. }
        | F::Internal(_) => Verdict::Answer,
        F::ChecksumMismatch(_) | F::Interrupted => once_more(Remedy::Nothing),
        // The browser replaces itself, without touching ComfyUI.
        F::ConversionTimedOut(_) | F::BrowserDown(_) => once_more(Remedy::Nothing),
        F::OutputMissing { .. } => once_more(Remedy::RunAgain),
        F::OutOfMemory(_) => once_more(Remedy::FreeMemory),
        // Killed where it was met; the next try starts another.
        F::EngineCrashed(_) => once_more(Remedy::Nothing),
        F::EngineLost(_) if times <= NEIGHBOURS => Verdict::RetryHere(Remedy::Nothing),
        F::EngineLost(_) => Verdict::HandBack,
        F::EngineUnavailable(_)
        | F::StoreUnavailable(_)
        | F::DiskFull(_)
        | F::Local(_)
        | F::Draining
        | F::HeldUp => Verdict::HandBack,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::{
        Failure as F, NEIGHBOURS,
        Remedy::{FreeMemory, Nothing, RunAgain},
        Verdict::{Answer, HandBack, RetryHere},
        verdict,
    };

    /// One failure of each kind with its code, its verdict at the first time and at the next.
    #[test]
    fn the_whole_table() {
        let text = String::new;
        let table = [
            (F::Malformed(text()), "malformed_job", Answer, Answer),
            (F::Invalid(text()), "invalid_job", Answer, Answer),
            (F::IdConflict(text()), "id_conflict", Answer, Answer),
            (F::InputNotFound(text()), "input_not_found", Answer, Answer),
            (F::InputForbidden(text()), "input_forbidden", Answer, Answer),
            (F::InputTooLarge(text()), "input_too_large", Answer, Answer),
            (F::ChecksumMismatch(text()), "checksum_mismatch", RetryHere(Nothing), Answer),
            (F::UnsupportedUri(text()), "unsupported_uri", Answer, Answer),
            (F::MissingNodes(Vec::new()), "missing_nodes", Answer, Answer),
            (F::ConversionRefused(text()), "conversion_failed", Answer, Answer),
            (F::ConversionTimedOut(text()), "conversion_failed", RetryHere(Nothing), Answer),
            (F::BrowserDown(text()), "conversion_failed", RetryHere(Nothing), Answer),
            (F::PromptRefused { message: text(), node_errors: None }, "invalid_prompt", Answer, Answer),
            (F::NodeFailed(Box::default()), "execution_error", Answer, Answer),
            (F::OutputTooLarge(text()), "execution_error", Answer, Answer),
            (F::OutOfMemory(Box::default()), "out_of_memory", RetryHere(FreeMemory), Answer),
            (F::TimedOut { seconds: 1.0 }, "timeout", Answer, Answer),
            (F::Expired { seconds: 1.0 }, "timeout", Answer, Answer),
            (F::Cancelled, "cancelled", Answer, Answer),
            (F::Interrupted, "interrupted", RetryHere(Nothing), Answer),
            (
                F::OutputMissing { message: text(), nodes: std::collections::BTreeSet::new() },
                "output_missing",
                RetryHere(RunAgain),
                Answer,
            ),
            (F::EngineCrashed(text()), "engine_crashed", RetryHere(Nothing), Answer),
            (F::EngineLost(text()), "engine_crashed", RetryHere(Nothing), HandBack),
            (F::EngineUnavailable(text()), "internal", HandBack, HandBack),
            (F::StoreUnavailable(text()), "internal", HandBack, HandBack),
            (F::DiskFull(text()), "internal", HandBack, HandBack),
            (F::Local(text()), "internal", HandBack, HandBack),
            (F::Poison { crashes: 3 }, "poison", Answer, Answer),
            (F::dead_lettered("delivery_limit", "q").unwrap(), "poison", Answer, Answer),
            (F::Draining, "interrupted", HandBack, HandBack),
            (F::HeldUp, "interrupted", HandBack, HandBack),
            (F::Internal(text()), "internal", Answer, Answer),
        ];
        for (failure, code, first, next) in &table {
            assert_eq!(serde_json::to_value(failure.code()).unwrap(), *code, "{failure:?}");
            assert_eq!(verdict(failure, 1), *first, "{failure:?}");
            let later = if matches!(failure, F::EngineLost(_)) { NEIGHBOURS + 1 } else { 2 };
            for times in [later, later + 1, u32::MAX] {
                assert_eq!(verdict(failure, times), *next, "{failure:?}");
            }
        }
        // A new variant belongs into the table: each is in it once.
        let mut kinds: Vec<_> =
            table.iter().map(|(failure, ..)| format!("{:?}", std::mem::discriminant(failure))).collect();
        kinds.sort();
        kinds.dedup();
        assert_eq!(kinds.len(), table.len());
        let variants = include_str!("failure.rs").split("pub enum Failure {").nth(1).unwrap();
        let variants = variants.split("\n}\n").next().unwrap().matches("#[error(").count();
        assert_eq!(table.len(), variants);
    }
}
