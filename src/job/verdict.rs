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
    /// Start ComfyUI anew: after a broken device its process lives and is of no use.
    Restart,
}

/// The table. `tries` counts the attempts that this worker has made at the job, this one included.
#[must_use]
pub fn verdict(failure: &Failure, tries: u32) -> Verdict {
    use Failure as F;
    let once_more = |remedy| if tries < 2 { Verdict::RetryHere(remedy) } else { Verdict::Answer };
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
        | F::TimedOut { .. }
        | F::Poison { .. }
        | F::Internal(_) => Verdict::Answer,
        F::ChecksumMismatch(_) | F::Interrupted => once_more(Remedy::Nothing),
        // The browser replaces itself, without touching ComfyUI.
        F::ConversionTimedOut(_) | F::BrowserDown(_) => once_more(Remedy::Nothing),
        F::OutputMissing { .. } => once_more(Remedy::RunAgain),
        F::OutOfMemory(_) => once_more(Remedy::FreeMemory),
        F::EngineCrashed(_) => once_more(Remedy::Restart),
        F::EngineUnavailable(_) | F::StoreUnavailable(_) | F::Local(_) | F::Draining => Verdict::HandBack,
    }
}
