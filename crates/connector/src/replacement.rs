//! What a prompt's end says about the ComfyUI that ran it.

use super::restarts::Cause;
use crate::comfy::{ExecuteError, Executed};

/// Why a ComfyUI must go.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReplacementReason {
    pub(super) cause: Cause,
    /// Whether nobody knows what it is doing: Python is to say where its threads are.
    pub(super) wants_stacks: bool,
}

impl ReplacementReason {
    /// What that outcome means for the ComfyUI that it came of. `None`: nothing, or another prompt tells.
    pub(super) fn of(outcome: &Result<Executed, ExecuteError>) -> Option<Self> {
        let (cause, wants_stacks) = match outcome {
            Ok(executed) if executed.broken_device => (Cause::Crashed, false),
            Err(ExecuteError::Died(_)) => (Cause::Crashed, false),
            Err(ExecuteError::Stalled(_) | ExecuteError::Unreachable(_)) => (Cause::Crashed, true),
            Err(ExecuteError::TimedOut { stuck: true, .. } | ExecuteError::Cancelled { stuck: true }) => {
                (Cause::Killed, true)
            }
            // A drain has no time for stacks.
            Err(ExecuteError::Aborted { stuck: true }) => (Cause::Killed, false),
            _ => return None,
        };
        Some(Self { cause, wants_stacks })
    }
}
