//! Where a connector stands, and where it may go from there.

use std::fmt;

use tokio::sync::watch;

/// Where a connector stands.
///
/// ```text
/// uninit ──▶ initializing ──▶ ready ──▶ killed
///              │  ▲  │          │          ▲
///              │  └──┼──────────┘          │   a part was lost: started again
///              │     └──▶ error ───────────┤   a new connector must be created
///              └───────────────────────────┘   shut down while it started
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not yet started.
    Uninit,
    /// Starting, or starting again after a part was lost.
    Initializing,
    /// Every part works.
    Ready,
    /// The start failed. It stays so: create a new connector.
    Error,
    /// Shut down.
    Killed,
}

impl State {
    /// Whether `next` may follow. No state follows itself.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Uninit | Self::Ready, Self::Initializing)
                | (Self::Initializing, Self::Ready | Self::Error | Self::Killed)
                | (Self::Ready | Self::Error, Self::Killed)
        )
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uninit => "uninit",
            Self::Initializing => "initializing",
            Self::Ready => "ready",
            Self::Error => "error",
            Self::Killed => "killed",
        })
    }
}

/// The present state, followed by anyone who wants to.
#[derive(Debug)]
pub(super) struct StateWatch(watch::Sender<State>);

impl StateWatch {
    pub(super) fn new() -> Self {
        Self(watch::channel(State::Uninit).0)
    }

    pub(super) fn state(&self) -> State {
        *self.0.borrow()
    }

    pub(super) fn watch(&self) -> watch::Receiver<State> {
        self.0.subscribe()
    }

    /// Goes there if it may, else stays.
    pub(super) fn enter(&self, next: State) {
        self.0.send_if_modified(|state| {
            let may = state.may_become(next);
            if may {
                tracing::debug!(from = %state, to = %next, "connector");
                *state = next;
            }
            may
        });
    }
}

#[cfg(test)]
mod tests {
    use super::{State::*, *};

    const ALL: [State; 5] = [Uninit, Initializing, Ready, Error, Killed];

    #[test]
    fn of_all_pairs_only_the_listed_ones_are_transitions() {
        let listed = [
            (Uninit, Initializing),
            (Initializing, Ready),
            (Initializing, Error),
            (Initializing, Killed),
            (Ready, Initializing),
            (Ready, Killed),
            (Error, Killed),
        ];
        for from in ALL {
            for to in ALL {
                assert_eq!(from.may_become(to), listed.contains(&(from, to)), "{from} to {to}");
            }
        }
    }

    #[test]
    fn what_is_no_transition_changes_nothing_and_wakes_nobody() {
        let standing = StateWatch::new();
        let mut watch = standing.watch();
        for (next, expected) in [
            (Ready, Uninit),
            (Initializing, Initializing),
            (Error, Error),
            (Initializing, Error),
            (Ready, Error),
            (Killed, Killed),
            (Initializing, Killed),
        ] {
            let before = standing.state();
            standing.enter(next);
            assert_eq!(standing.state(), expected);
            assert_eq!(watch.has_changed().ok(), Some(before != expected));
            watch.mark_unchanged();
        }
    }
}
