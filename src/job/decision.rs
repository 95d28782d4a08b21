//! What follows from a failure: the one place where that is decided, from the cause and never from a count of
//! the broker's.

use std::time::Duration;

use contract::failure::Failure;

/// What follows from a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The job's own fault, or its budget is spent: answer it, then ack.
    Answer,
    /// Try again here, after the recovery.
    RetryHere(Recovery),
    /// Keep what is in hand and go on where it was once this is back.
    WaitFor(Need),
    /// Give the message back.
    GiveBack(GiveBack),
    /// Nobody can be answered: to the dead letters, where a person sees it.
    DeadLetter,
}

/// What to do before the next try here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Nothing.
    Nothing,
    /// Wait so long.
    Pause(Duration),
    /// Have ComfyUI unload its models.
    FreeMemory,
    /// Make ComfyUI run the nodes whose files are gone, whatever its execution cache holds.
    RunAgain,
}

/// What the worker cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The place where results go.
    Store,
    /// Room on the disk.
    Disk,
}

/// When the message may be delivered again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GiveBack {
    /// At once: another worker can have it earlier.
    Now,
    /// After a pause in the delay queue, which grows with each return for the same cause.
    Later,
}

/// What is known beside the failure itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Circumstances {
    /// How often this delivery has met a failure of this kind, now included.
    pub times: u32,
    /// For how long it has met it.
    pub lasting: Duration,
    /// For how long the job has been given back for this cause, by any worker.
    pub waited: Duration,
    /// Whether the store is away, as a look at it says.
    pub store_away: bool,
    /// Whether an execution's outputs are in hand: GPU time is spent.
    pub executed: bool,
    /// `inputs.retry_for`.
    pub inputs_patience: Duration,
    /// Whether there is a queue that the job came from: a job of `run` waits for nothing.
    pub queued: bool,
}

/// ComfyUIs that one job may lose to others' prompts.
const MAX_ENGINE_LOSSES: u32 = 3;
/// Tries at a record while the store seems well, before anything was executed.
const RECORD_TRIES: u32 = 3;
/// How long finished outputs are kept for a place that takes none while the store does.
const OUTPUTS_PATIENCE: Duration = Duration::from_secs(10 * 60);
/// How long a job goes from worker to worker when records, disks or other local things fail.
const WORKERS_PATIENCE: Duration = Duration::from_secs(10 * 60);
/// The longest pause between two tries here.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Pauses in the delay queue; the last one from then on.
const DELAYS: [Duration; 4] =
    [Duration::from_secs(5), Duration::from_secs(10), Duration::from_secs(20), Duration::from_secs(30)];

/// The table. A failure of another kind leaves a job its own tries: an input that was spoilt on the way says
/// nothing about a ComfyUI that is killed later.
#[must_use]
pub fn decide(failure: &Failure, now: &Circumstances) -> Decision {
    use Decision::{Answer, DeadLetter, RetryHere, WaitFor};
    use Failure as F;
    let once_more = |recovery| if now.times < 2 { RetryHere(recovery) } else { Answer };
    let later = Decision::GiveBack(if now.queued { GiveBack::Later } else { GiveBack::Now });
    let within = |patience| now.waited < patience;
    let wait_for = |need| if now.queued { WaitFor(need) } else { later };
    let pause = || RetryHere(Recovery::Pause(pause_before(now.times)));
    match failure {
        F::Malformed(_)
        | F::Invalid(_)
        | F::IdConflict(_)
        | F::InputNotFound(_)
        | F::InputTooLarge(_)
        | F::UnsupportedUri(_)
        | F::MissingNodes(_)
        | F::ConversionRefused(_)
        // It was tried in a fresh page.
        | F::ConversionTimedOut(_)
        | F::PromptRefused { .. }
        | F::NodeFailed(_)
        | F::OutputTooLarge(_)
        | F::TimedOut { .. }
        | F::Expired { .. }
        | F::Cancelled
        | F::Poison { .. }
        | F::DeadLettered { .. }
        | F::Internal(_) => Answer,
        F::Unanswerable(_) => DeadLetter,
        F::ChecksumMismatch(_) | F::Interrupted => once_more(Recovery::Nothing),
        // The browser replaces itself, without touching ComfyUI.
        F::BrowserDown(_) => once_more(Recovery::Nothing),
        F::OutputMissing { .. } => once_more(Recovery::RunAgain),
        F::OutOfMemory(_) => once_more(Recovery::FreeMemory),
        // Killed where it was met; the next try starts another.
        F::EngineCrashed(_) => once_more(Recovery::Nothing),
        F::EngineLost(_) if now.times <= MAX_ENGINE_LOSSES => RetryHere(Recovery::Nothing),
        F::EngineLost(_) | F::EngineUnavailable(_) | F::CopyRunning(_) => later,
        // A store that refuses everybody says nothing about one job's bucket: keys are being exchanged.
        F::InputForbidden(_) | F::OutputForbidden(_) | F::OutputNotFound(_) if now.store_away => {
            wait_for(Need::Store)
        }
        F::InputForbidden(_) | F::OutputForbidden(_) | F::OutputNotFound(_) => Answer,
        F::InputUnavailable(_) if now.store_away => wait_for(Need::Store),
        F::InputUnavailable(_) if within(now.inputs_patience) && now.queued => later,
        F::InputUnavailable(_) => Answer,
        F::OutputUnavailable(_) if now.store_away => wait_for(Need::Store),
        F::OutputUnavailable(_) | F::DiskFull(_) | F::Local(_) if now.executed => {
            if now.lasting < OUTPUTS_PATIENCE { pause() } else { Answer }
        }
        F::OutputUnavailable(_) if within(now.inputs_patience) && now.queued => later,
        F::OutputUnavailable(_) => Answer,
        F::StoreUnavailable(_) if now.store_away => wait_for(Need::Store),
        F::StoreUnavailable(_) if now.executed && now.lasting < OUTPUTS_PATIENCE => pause(),
        F::StoreUnavailable(_) if now.times <= RECORD_TRIES => pause(),
        F::StoreUnavailable(_) if within(WORKERS_PATIENCE) => later,
        F::StoreUnavailable(_) => DeadLetter,
        // Others may have room: it is held here for a moment only.
        F::DiskFull(_) if now.times < 2 => wait_for(Need::Disk),
        F::DiskFull(_) | F::Local(_) if within(WORKERS_PATIENCE) => later,
        F::DiskFull(_) | F::Local(_) => Answer,
        F::Draining | F::HeldUp | F::Disowned => Decision::GiveBack(GiveBack::Now),
    }
}

/// How long a job stays in the delay queue that is given back for the `count`th time for the same cause.
#[must_use]
pub fn delay(count: u32) -> Duration {
    let last = DELAYS.len() - 1;
    let at = usize::try_from(count.saturating_sub(1)).unwrap_or(last).min(last);
    DELAYS.get(at).copied().unwrap_or(LONGEST_PAUSE)
}

fn pause_before(times: u32) -> Duration {
    Duration::from_secs(1 << times.saturating_sub(1).min(5)).min(LONGEST_PAUSE)
}

#[cfg(test)]
#[path = "decision_tests.rs"]
mod tests;
