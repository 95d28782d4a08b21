//! Whether a ComfyUI that does not answer is at work. A node may hold Python's lock for minutes (a
//! TensorRT engine is built, `torch.compile` compiles, a checkpoint is loaded), and no call is answered
//! meanwhile; but CPU time passes, or bytes are read.

use std::{
    fs,
    time::{Duration, Instant},
};

use tokio::{task::spawn_blocking, time::sleep};

use crate::child::{Activity, ProcessTree};

/// How often it is looked at while there is a doubt.
const BEAT: Duration = Duration::from_secs(1);
/// Activity is measured over this window: CPU time has a resolution of 10 ms.
const WINDOW: Duration = Duration::from_secs(5);
/// CPU time above this share of a core is work, also on a machine with far too much to do. A server that
/// only waits, and is asked for its queue every second, stays well below it.
const WORK_SHARE: u32 = 50;
/// So many bytes read in a second are work.
const WORK_READ: u64 = 64 << 10;

/// The processes of a ComfyUI, to be looked at.
#[derive(Clone, Debug)]
pub(super) struct ProcessActivity {
    /// The one that listens.
    process: u32,
    members: ProcessTree,
}

impl ProcessActivity {
    pub(super) fn of(process: u32, members: ProcessTree) -> Self {
        Self { process, members }
    }

    /// Whether the process is stopped (SIGSTOP, a debugger), so that it answers nobody.
    pub(super) fn are_stopped(&self) -> bool {
        is_stopped(self.process)
    }

    /// What all of them have done so far. A blocked read of the process table holds up nobody else.
    pub(super) async fn activity(&self) -> Activity {
        let members = self.members.clone();
        spawn_blocking(move || members.activity()).await.unwrap_or_default()
    }

    /// Waits until they have done nothing for `limit`.
    pub(super) async fn standstill(&self, limit: Duration) {
        let mut pulse = LastActivity::default();
        while pulse.still_for() <= limit {
            sleep(BEAT).await;
            pulse.take(self.activity().await);
        }
    }
}

fn is_stopped(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').map(|(_, fields)| fields.trim_start());
    state.is_some_and(|fields| fields.starts_with(['T', 't']))
}

/// When processes were last seen at work.
#[derive(Debug, Default)]
pub(super) struct LastActivity {
    last: Option<(Instant, Activity)>,
    worked_at: Option<Instant>,
}

impl LastActivity {
    pub(super) fn take(&mut self, now: Activity) {
        self.take_at(Instant::now(), now);
    }

    pub(super) fn take_at(&mut self, at: Instant, now: Activity) {
        // The first look proves nothing.
        let Some((before, then)) = self.last else {
            (self.worked_at, self.last) = (Some(at), Some((at, now)));
            return;
        };
        let within = at.duration_since(before);
        let works = works(then, now, within.max(WINDOW));
        if works {
            self.worked_at = Some(at);
        }
        if works || within >= WINDOW {
            self.last = Some((at, now));
        }
    }

    /// How long nothing has been done; zero before the first look.
    pub(super) fn still_for(&self) -> Duration {
        self.worked_at.map_or(Duration::ZERO, |at| at.elapsed())
    }
}

fn works(then: Activity, now: Activity, within: Duration) -> bool {
    // Less than before: one of them has ended, which is no standstill either.
    let Some(cpu) = now.cpu.checked_sub(then.cpu) else { return true };
    let Some(read) = now.read.checked_sub(then.read) else { return true };
    let least = within.as_millis().saturating_mul(WORK_READ.into()) / 1000;
    cpu.saturating_mul(WORK_SHARE) >= within || u128::from(read) >= least
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(cpu_ms: u64, read: u64) -> Activity {
        Activity { cpu: Duration::from_millis(cpu_ms), read }
    }

    #[test]
    fn cpu_time_and_reading_are_work_and_a_server_that_is_asked_is_not() {
        let then = done(5_000, 1 << 30);
        let at_work = |cpu_ms: u64, read: u64| works(then, done(5_000 + cpu_ms, (1 << 30) + read), WINDOW);
        assert!(at_work(100, 0) && at_work(5_000, 0) && at_work(0, 5 * (64 << 10)));
        assert!(!at_work(0, 0) && !at_work(50, 4_096));
        assert!(works(then, done(100, 0), WINDOW), "a child has ended");
        assert!(!works(then, then, WINDOW * 100));
    }

    #[test]
    fn a_standstill_counts_from_the_last_work_and_single_ticks_are_none() {
        let mut pulse = LastActivity::default();
        assert_eq!(pulse.still_for(), Duration::ZERO);
        let begin = Instant::now().checked_sub(Duration::from_secs(100)).unwrap_or_else(Instant::now);
        let mut at =
            |seconds: u64, cpu_ms: u64| pulse.take_at(begin + Duration::from_secs(seconds), done(cpu_ms, 0));
        at(0, 0);
        for second in 1..=50 {
            at(second, second * 40);
        }
        for second in 51..=90 {
            at(second, 2_000 + second / 5 * 10);
        }
        let still = pulse.still_for();
        assert!((Duration::from_secs(44)..Duration::from_secs(60)).contains(&still), "{still:?}");
    }
}
