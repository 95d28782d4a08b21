//! What this process and its browser hold, as the kernel tells it.

use std::{fmt, fs, path::Path, process, time::Duration};

use testbed::{ProcessInfo, descendants};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Resources {
    /// Proportional set size of Chromium's processes.
    memory: usize,
    processes: usize,
    /// Of this process.
    files: usize,
    /// Entries of ours in the folder for temporary files.
    temporary: usize,
}

impl Resources {
    pub(crate) fn now() -> Self {
        let chromium = chromium();
        let memory = chromium.iter().filter_map(|found| proportional_size(found.pid)).sum();
        let count = |folder: &Path, prefix: &str| {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix)).count()
        };
        Self {
            memory,
            processes: chromium.len(),
            files: count(Path::new("/proc/self/fd"), ""),
            temporary: count(&std::env::temp_dir(), "comfy-worker-"),
        }
    }

    /// The most of each.
    pub(crate) fn most(all: &[Self]) -> Self {
        let most = |of: fn(&Self) -> usize| all.iter().map(of).max().unwrap_or_default();
        Self {
            memory: most(|seen| seen.memory),
            processes: most(|seen| seen.processes),
            files: most(|seen| seen.files),
            temporary: most(|seen| seen.temporary),
        }
    }

    pub(crate) fn is_within(&self, other: &Self, factor: f64) -> bool {
        #[allow(clippy::cast_precision_loss)]
        let within = |mine: usize, theirs: usize| mine as f64 <= theirs as f64 * factor;
        within(self.memory, other.memory)
            && within(self.processes, other.processes)
            && within(self.files, other.files)
            && within(self.temporary, other.temporary)
    }
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { memory, processes, files, temporary } = self;
        let memory = memory >> 20;
        write!(f, "{memory} MiB, {processes} processes, {files} descriptors, {temporary} temporary")
    }
}

/// Chromium's processes.
fn chromium() -> Vec<ProcessInfo> {
    descendants(process::id()).into_iter().filter(|found| found.command.contains("chrom")).collect()
}

/// What Chromium's processes have used of the processors so far.
pub(crate) fn processor_time() -> Duration {
    let ticks = |found: &ProcessInfo| {
        let stat = fs::read_to_string(format!("/proc/{}/stat", found.pid)).ok()?;
        // pid (name) state …: user and system time are the 12th and 13th field behind the name.
        let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
    };
    let ticks: u64 = chromium().iter().filter_map(ticks).sum();
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

fn proportional_size(pid: u32) -> Option<usize> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(line.trim().trim_end_matches(" kB").trim().parse::<usize>().ok()? << 10)
}
