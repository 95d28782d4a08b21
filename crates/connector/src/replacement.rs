//! What a prompt's end says about the ComfyUI that ran it.

use super::restarts::RestartCause;
use crate::comfy::{ExecuteError, Executed};

/// Why a ComfyUI must go.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReplacementReason {
    pub(super) cause: RestartCause,
    /// Whether nobody knows what it is doing: Python is to say where its threads are.
    pub(super) wants_stacks: bool,
}

impl ReplacementReason {
    /// What that outcome means for the ComfyUI that it came of. `None`: nothing, or another prompt tells.
    pub(super) fn of(outcome: &Result<Executed, ExecuteError>) -> Option<Self> {
        let (cause, wants_stacks) = match outcome {
            Ok(executed) if executed.broken_device => (RestartCause::Crashed, false),
            Err(ExecuteError::Died(_)) => (RestartCause::Crashed, false),
            Err(ExecuteError::Stalled(_) | ExecuteError::Unreachable(_)) => (RestartCause::Crashed, true),
            Err(
                ExecuteError::TimedOut { stuck: true, .. }
                | ExecuteError::Cancelled { stuck: true }
                | ExecuteError::Refused { stuck: true, .. },
            ) => (RestartCause::Killed, true),
            // A drain has no time for stacks.
            Err(ExecuteError::Aborted { stuck: true }) => (RestartCause::Killed, false),
            _ => return None,
        };
        Some(Self { cause, wants_stacks })
    }
}
