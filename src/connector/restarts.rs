//! How often ComfyUI may be started again: one that dies again and again is not mended by a restart.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// In which losses are counted.
pub(super) const WINDOW: Duration = Duration::from_secs(10 * 60);

/// The starts of one connector's ComfyUI.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    started: bool,
    planned: bool,
    lately: VecDeque<Instant>,
}

impl Restarts {
    /// The next start is wanted, and no loss.
    pub(super) fn plan(&mut self) {
        self.planned = true;
    }

    /// Why ComfyUI is started again; `None`: it has not run yet.
    pub(super) fn cause(&self) -> Option<&'static str> {
        self.started.then_some(if self.planned { "worn" } else { "lost" })
    }

    /// Whether ComfyUI may be started `now`, after `most` losses within the window at most; the first
    /// start and a planned one always.
    pub(super) fn may_start(&mut self, now: Instant, most: u32) -> bool {
        let wanted = std::mem::take(&mut self.planned) || !std::mem::replace(&mut self.started, true);
        if wanted {
            return true;
        }
        self.lately.retain(|at| now.duration_since(*at) < WINDOW);
        self.lately.push_back(now);
        self.lately.len() as u64 <= u64::from(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_within_ten_minutes_are_enough() {
        let (mut restarts, begin) = (Restarts::default(), Instant::now());
        let mut at = |seconds: u64| restarts.may_start(begin + Duration::from_secs(seconds), 3);
        assert!(at(0), "the first start is none");
        assert!(at(10) && at(20) && at(30) && !at(40));
        // Those at 10, 20 and 30 s are forgotten by then, the refused one is not.
        assert!(at(631) && at(632) && !at(633));
    }

    #[test]
    fn planned_ones_do_not_count() {
        let (mut restarts, now) = (Restarts::default(), Instant::now());
        assert!(restarts.may_start(now, 3));
        for _ in 0..10 {
            restarts.plan();
            assert!(restarts.may_start(now, 3));
        }
        assert!((0..3).all(|_| restarts.may_start(now, 3)) && !restarts.may_start(now, 3));
    }
}
