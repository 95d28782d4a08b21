//! Decides when a ComfyUI is given up whose prompt is not over: on proof only. The end of the thread that runs prompts is
//! proof; the end of another thread is none, nor is silence while its processes work. Where there is only suspicion, the
//! job's own time is the limit. Pure but for the clock.

use std::time::{Duration, Instant};

use super::{
    activity::LastActivity, client::RequestError, execute::ExecuteError, prompt_status::PromptStatus,
    prompt_thread::ThreadState,
};
use crate::phases::limit;

/// A prompt is in queue or history at every moment: so often neither, and somebody removed it.
const MISSING_LOOKS: u32 = 3;
/// So many looks in a row, a second apart, must find the prompt and no prompt thread: it may end after the
/// prompt and before the look.
const DEAD_LOOKS: u32 = 3;
/// How long a process may leave calls unanswered and do nothing.
const UNREACHABLE_LIMIT: Duration = Duration::from_secs(120);
/// How long a prompt may be next in a ComfyUI that does nothing: between two it frees memory, which takes
/// seconds and CPU time.
const IDLENESS: Duration = Duration::from_secs(20);
/// How long a process may be stopped: people who debug it have no jobs.
const STOPPED_LIMIT: Duration = Duration::from_secs(10);
/// After a silence of this length it is looked whether the process does anything.
const SILENCE: Duration = Duration::from_secs(2);

/// What speaks against a ComfyUI, while it has a prompt.
#[derive(Debug)]
pub(super) struct Liveness {
    answered_at: Instant,
    missing: u32,
    dead: u32,
    next_since: Option<Instant>,
    stopped_since: Option<Instant>,
    pub(super) last_activity: LastActivity,
}

impl Liveness {
    /// It has just taken the prompt.
    pub(super) fn new() -> Self {
        Self {
            answered_at: Instant::now(),
            missing: 0,
            dead: 0,
            next_since: None,
            stopped_since: None,
            last_activity: LastActivity::default(),
        }
    }

    /// A look at a prompt of which nothing was heard lately has found this, and its thread is there or not.
    pub(super) fn found(&mut self, found: &PromptStatus, thread: ThreadState) -> Result<(), ExecuteError> {
        self.answered_at = Instant::now();
        self.missing = if matches!(found, PromptStatus::Nowhere) { self.missing + 1 } else { 0 };
        let is_there = matches!(found, PromptStatus::Running | PromptStatus::Pending | PromptStatus::Next);
        self.dead = if is_there && thread == ThreadState::Ended { self.dead + 1 } else { 0 };
        match found {
            PromptStatus::Next => {
                self.next_since.get_or_insert_with(Instant::now);
            }
            PromptStatus::Over(_)
            | PromptStatus::Unreadable(_)
            | PromptStatus::Running
            | PromptStatus::Pending
            | PromptStatus::Nowhere => {
                self.next_since = None;
            }
        }
        let has_idled = self.has_idled();
        match found {
            _ if self.dead >= DEAD_LOOKS => {
                Err(ExecuteError::Stalled("the thread that ran them has ended".to_owned()))
            }
            PromptStatus::Unreadable(error) => Err(ExecuteError::Unreadable(error.clone())),
            // Its thread is there: it may be at what a custom node does between two prompts.
            _ if has_idled && thread != ThreadState::Lives => Err(waits_for_nothing()),
            PromptStatus::Nowhere if self.missing >= MISSING_LOOKS => Err(ExecuteError::Vanished),
            _ => Ok(()),
        }
    }

    /// It answered a call, with something that is of no use.
    pub(super) fn answered(&mut self) {
        self.answered_at = Instant::now();
    }

    /// Something of the prompt was heard.
    pub(super) fn heard(&mut self) {
        self.dead = 0;
        self.next_since = None;
    }

    /// Whether it should be looked what the process does.
    pub(super) fn wants_activity(&self, heard_at: Instant) -> bool {
        self.next_since.is_some() || self.silent_for(heard_at) > SILENCE
    }

    /// Once a second, beside the looks: each of those waits long for an answer.
    pub(super) fn tick(&mut self, heard_at: Instant, is_stopped: bool) -> Result<(), ExecuteError> {
        if !is_stopped {
            self.stopped_since = None;
        } else if self.stopped_since.get_or_insert_with(Instant::now).elapsed() > STOPPED_LIMIT {
            return Err(ExecuteError::Stalled("its process is stopped".to_owned()));
        }
        let most = limit("unreachable", UNREACHABLE_LIMIT);
        if self.silent_for(heard_at).min(self.last_activity.still_for()) > most {
            let reason = format!("no answer for {most:?}, and its processes do nothing");
            return Err(RequestError { call: "/queue".to_owned(), reason, answered: false }.into());
        }
        Ok(())
    }

    /// The error when the time of a prompt is over that never began, since nothing was done for long.
    pub(super) fn at_the_limit(&self) -> Option<ExecuteError> {
        self.has_idled().then(waits_for_nothing)
    }

    fn has_idled(&self) -> bool {
        let idle_for = |since: Instant| since.elapsed().min(self.last_activity.still_for());
        self.next_since.is_some_and(|since| idle_for(since) > limit("idleness", IDLENESS))
    }

    fn silent_for(&self, heard_at: Instant) -> Duration {
        self.answered_at.elapsed().min(heard_at.elapsed())
    }
}

fn waits_for_nothing() -> ExecuteError {
    ExecuteError::Stalled("a prompt waits and nothing runs".to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::child::Activity;

    fn ago(seconds: u64) -> Instant {
        Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap()
    }

    fn still(since: u64) -> LastActivity {
        let mut last_activity = LastActivity::default();
        last_activity.take_at(ago(since), Activity::default());
        last_activity
    }

    #[test]
    fn silence_and_an_ended_thread_are_no_proof_and_the_prompt_threads_end_is() {
        let mut liveness =
            Liveness { answered_at: ago(3_600), last_activity: still(3_600), ..Liveness::new() };
        for thread in [
            ThreadState::Unknown,
            ThreadState::Lives,
            ThreadState::Ended,
            ThreadState::Ended,
            ThreadState::Unknown,
            ThreadState::Ended,
            ThreadState::Ended,
        ] {
            assert_eq!(liveness.found(&PromptStatus::Running, thread), Ok(()));
        }
        let end = liveness.found(&PromptStatus::Running, ThreadState::Ended).unwrap_err();
        assert!(matches!(&end, ExecuteError::Stalled(why) if why.contains("has ended")), "{end}");
        let mut liveness = Liveness::new();
        for found in [
            PromptStatus::Pending,
            PromptStatus::Next,
            PromptStatus::Nowhere,
            PromptStatus::Pending,
            PromptStatus::Pending,
        ] {
            assert_eq!(liveness.found(&found, ThreadState::Ended), Ok(()), "it must be there each time");
        }
        liveness.heard();
        assert_eq!(liveness.found(&PromptStatus::Pending, ThreadState::Ended), Ok(()));
    }

    #[test]
    fn one_that_waits_for_nothing_is_given_up_when_nothing_is_done_and_the_thread_is_not_known_to_live() {
        let waiting = |still_for: u64| Liveness {
            next_since: Some(ago(60)),
            last_activity: still(still_for),
            ..Liveness::new()
        };
        assert_eq!(
            waiting(60).found(&PromptStatus::Next, ThreadState::Lives),
            Ok(()),
            "a hook of a custom node"
        );
        assert_eq!(waiting(5).found(&PromptStatus::Next, ThreadState::Unknown), Ok(()), "it frees memory");
        assert_eq!(
            waiting(60).found(&PromptStatus::Pending, ThreadState::Unknown),
            Ok(()),
            "another one runs"
        );
        assert!(waiting(60).found(&PromptStatus::Next, ThreadState::Unknown).is_err());
        assert!(waiting(60).at_the_limit().is_some(), "whatever its thread is at");
        assert!(waiting(5).at_the_limit().is_none() && Liveness::new().at_the_limit().is_none());
    }

    #[test]
    fn no_answer_is_proof_only_when_nothing_is_done() {
        let silent = |still_for: u64| Liveness {
            answered_at: ago(3_600),
            last_activity: still(still_for),
            ..Liveness::new()
        };
        assert_eq!(silent(10).tick(ago(3_600), false), Ok(()));
        assert_eq!(silent(130).tick(ago(10), false), Ok(()), "frames come");
        let silence = silent(130).tick(ago(3_600), false).unwrap_err();
        assert!(matches!(silence, ExecuteError::Unreachable(_)), "{silence}");
        assert!(silent(0).wants_activity(ago(3)) && !silent(0).wants_activity(ago(0)));
    }

    #[test]
    fn a_stopped_process_has_ten_seconds() {
        let mut liveness = Liveness::new();
        assert_eq!(liveness.tick(ago(0), true), Ok(()));
        liveness.stopped_since = Some(ago(11));
        assert!(liveness.tick(ago(0), true).is_err());
        liveness.stopped_since = Some(ago(11));
        assert_eq!(liveness.tick(ago(0), false), Ok(()));
        assert_eq!(liveness.tick(ago(0), true), Ok(()), "it went on meanwhile");
    }
}
