//! What a process has done so far: CPU time used, bytes read. Two looks at it tell whether it does anything.

use std::{fs, time::Duration};

/// What processes have done since they started, and what those did that they have waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// CPU time.
    pub cpu: Duration,
    /// Bytes read, from anywhere and once more from a disk: mapped files are only counted there.
    pub read: u64,
}

impl Activity {
    /// Nothing for a process that is gone or another user's.
    pub(super) fn of(pid: u32) -> Self {
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        Self {
            cpu: cpu(&read("stat"), rustix::param::clock_ticks_per_second()).unwrap_or_default(),
            read: bytes_read(&read("io")),
        }
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self { cpu: self.cpu + other.cpu, read: self.read.saturating_add(other.read) }
    }
}

/// `utime`, `stime`, `cutime` and `cstime` of `/proc/<pid>/stat`.
fn cpu(stat: &str, ticks_per_second: u64) -> Option<Duration> {
    // The program's name may hold anything; after its last bracket come state, parent, group …
    let (_, fields) = stat.rsplit_once(')')?;
    let times = fields.split_whitespace().skip(11).take(4).filter_map(|ticks| ticks.parse::<u64>().ok());
    Some(Duration::from_millis(times.sum::<u64>().saturating_mul(1000) / ticks_per_second.max(1)))
}

fn bytes_read(io: &str) -> u64 {
    let lines = io.lines().filter_map(|line| line.split_once(": "));
    let counted = lines.filter(|(name, _)| matches!(*name, "rchar" | "read_bytes"));
    counted.filter_map(|(_, bytes)| bytes.parse::<u64>().ok()).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_bytes_are_read_whatever_the_program_is_called() {
        let stat = "4711 (a) 1 (b) S 1 4711 4711 0 -1 4194560 9 8 7 6 150 50 30 20 20 0 31 0 99";
        assert_eq!(cpu(stat, 100), Some(Duration::from_millis(2500)));
        assert_eq!(cpu("", 100), None);
        let io = "rchar: 700\nwchar: 1\nsyscr: 2\nread_bytes: 4096\nwrite_bytes: 5\n";
        assert_eq!((bytes_read(io), bytes_read("")), (4796, 0));
        assert_eq!(Activity::of(u32::MAX), Activity::default());
    }
}
