//! Why ComfyUI is started again, and how soon: one that dies of itself again and again is not helped by
//! a restart and ends the worker; what jobs do to it only slows its boots.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// In which losses and crashes are counted; after as long without a crash the next boot waits for nothing.
pub(super) const WINDOW: Duration = Duration::from_secs(10 * 60);
/// Crashes within the window after which boots wait.
const FREE_CRASHES: usize = 3;
/// The longest such wait.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Why a ComfyUI that ran runs no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RestartCause {
    /// `comfyui.max_jobs` or `comfyui.max_rss` said so.
    Worn,
    /// A job was cancelled, timed out or given back, and ComfyUI would not let go of its prompt.
    Killed,
    /// It ended, or was given up, while it ran a job's prompt: that job's doing, and its attempts are counted.
    Crashed,
    /// It ended, or was given up, while it ran none.
    Lost,
}

impl RestartCause {
    /// The metric's label.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Worn => "worn",
            Self::Killed => "killed",
            Self::Crashed => "crashed",
            Self::Lost => "lost",
        }
    }
}

/// What is to be done when a ComfyUI is wanted and none runs.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RestartDecision {
    /// For the first time.
    First,
    /// Again, after a pause.
    Again(RestartCause, Duration),
    /// It was lost too often.
    No,
}

/// The starts of one connector's ComfyUI.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    started: bool,
    ended: Option<RestartCause>,
    lost: VecDeque<Instant>,
    crashed: VecDeque<Instant>,
}

impl Restarts {
    /// The one that ran is no more.
    pub(super) fn ended(&mut self, cause: RestartCause) {
        self.ended.get_or_insert(cause);
    }

    /// How ComfyUI is started `now`, if it may be lost `most` times within the window.
    pub(super) fn start(&mut self, now: Instant, most: u32) -> RestartDecision {
        if !std::mem::replace(&mut self.started, true) {
            return RestartDecision::First;
        }
        for times in [&mut self.lost, &mut self.crashed] {
            times.retain(|at| now.duration_since(*at) < WINDOW);
        }
        let cause = self.ended.take().unwrap_or(RestartCause::Lost);
        let pause = match cause {
            RestartCause::Worn | RestartCause::Killed => Duration::ZERO,
            RestartCause::Crashed => {
                self.crashed.push_back(now);
                pause_after(self.crashed.len())
            }
            RestartCause::Lost => {
                self.lost.push_back(now);
                if self.lost.len() as u64 > u64::from(most) {
                    return RestartDecision::No;
                }
                Duration::ZERO
            }
        };
        RestartDecision::Again(cause, pause)
    }
}

/// None for the first few, then 1 s, 2 s, 4 s …
fn pause_after(crashes: usize) -> Duration {
    let Some(doublings) = crashes.checked_sub(FREE_CRASHES + 1) else { return Duration::ZERO };
    let doubled = 1u64.checked_shl(u32::try_from(doublings).unwrap_or(u32::MAX));
    let most = crate::phases::limit("boot_pause", LONGEST_PAUSE);
    doubled.filter(|seconds| *seconds > 0).map_or(most, |seconds| Duration::from_secs(seconds).min(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn again(cause: RestartCause, seconds: u64) -> RestartDecision {
        RestartDecision::Again(cause, Duration::from_secs(seconds))
    }

    fn after(restarts: &mut Restarts, cause: RestartCause, at: Instant) -> RestartDecision {
        restarts.ended(cause);
        restarts.start(at, 3)
    }

    #[test]
    fn three_losses_within_ten_minutes_are_enough() {
        let (mut restarts, begin) = (Restarts::default(), Instant::now());
        assert_eq!(restarts.start(begin, 3), RestartDecision::First);
        let mut at =
            |seconds: u64| after(&mut restarts, RestartCause::Lost, begin + Duration::from_secs(seconds));
        let lost = again(RestartCause::Lost, 0);
        assert!(at(10) == lost && at(20) == lost && at(30) == lost && at(40) == RestartDecision::No);
        // Those at 10, 20 and 30 s are forgotten by then, the refused one is not.
        assert!(at(631) == lost && at(632) == lost && at(633) == RestartDecision::No);
    }

    #[test]
    fn what_we_did_ourselves_is_no_loss_and_waits_for_nothing() {
        let (mut restarts, now) = (Restarts::default(), Instant::now());
        assert_eq!(restarts.start(now, 3), RestartDecision::First);
        for cause in [RestartCause::Worn, RestartCause::Killed].repeat(10) {
            assert_eq!(after(&mut restarts, cause, now), again(cause, 0));
        }
        for _ in 0..3 {
            assert_eq!(restarts.start(now, 3), again(RestartCause::Lost, 0), "nobody said why");
        }
        assert_eq!(restarts.start(now, 3), RestartDecision::No);
    }

    #[test]
    fn crashes_of_jobs_slow_the_boots_until_it_has_been_quiet() {
        let (mut restarts, mut now) = (Restarts::default(), Instant::now());
        assert_eq!(restarts.start(now, 3), RestartDecision::First);
        for pause in [0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60] {
            now += Duration::from_secs(10);
            assert_eq!(after(&mut restarts, RestartCause::Crashed, now), again(RestartCause::Crashed, pause));
        }
        assert_eq!(after(&mut restarts, RestartCause::Killed, now), again(RestartCause::Killed, 0));
        assert_eq!(
            after(&mut restarts, RestartCause::Crashed, now + WINDOW),
            again(RestartCause::Crashed, 0)
        );
        assert_eq!(pause_after(100_000), LONGEST_PAUSE);
    }

    #[test]
    fn the_first_word_counts() {
        let (mut restarts, now) = (Restarts::default(), Instant::now());
        assert_eq!(restarts.start(now, 3), RestartDecision::First);
        restarts.ended(RestartCause::Killed);
        // It was killed, and so it is gone.
        restarts.ended(RestartCause::Lost);
        assert_eq!(restarts.start(now, 3), again(RestartCause::Killed, 0));
    }
}
