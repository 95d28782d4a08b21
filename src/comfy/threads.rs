//! The threads of ComfyUI's process: the one that runs prompts can die alone.
//!
//! An exception that escapes it, such as a node's `SystemExit`, ends that thread and nothing else: HTTP
//! answers as before, the prompt stays listed as running for ever (COMFYUI, "the prompt worker is one
//! thread"). No answer of ComfyUI's tells, but the thread is missing from `/proc`.

use std::{collections::BTreeSet, fs};

/// The threads that a process had when it was ready, without those that have ended since. The prompt
/// thread is one of them; which one cannot be seen.
#[derive(Clone, Debug)]
pub(super) struct Threads {
    process: u32,
    known: BTreeSet<u32>,
}

impl Threads {
    pub(super) fn of(process: u32) -> Self {
        Self { process, known: now(process) }
    }

    /// Those of them that live still.
    pub(super) fn living(&self) -> Self {
        let living = now(self.process);
        Self { process: self.process, known: self.known.intersection(&living).copied().collect() }
    }

    /// Whether the process is stopped (SIGSTOP, a debugger), so that it answers nobody.
    pub(super) fn are_stopped(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process)).unwrap_or_default();
        let state = stat.rsplit_once(')').map(|(_, fields)| fields.trim_start());
        state.is_some_and(|fields| fields.starts_with(['T', 't']))
    }

    /// How many of them have ended.
    pub(super) fn ended(&self) -> usize {
        let living = now(self.process);
        // A process that cannot be looked at proves nothing.
        if living.is_empty() { 0 } else { self.known.difference(&living).count() }
    }
}

fn now(process: u32) -> BTreeSet<u32> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    threads.filter_map(|thread| thread.file_name().to_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc,
        thread,
        time::{Duration, Instant},
    };

    use super::*;

    #[test]
    fn a_thread_that_ends_is_missed() {
        let (end, ends) = mpsc::channel::<()>();
        let (name, named) = mpsc::channel();
        let thread = thread::spawn(move || {
            let _ = name.send(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs());
            let _ = ends.recv();
        });
        let Ok(id) = named.recv() else { panic!("the thread did not start") };
        let all = Threads::of(std::process::id());
        assert!(all.known.contains(&id) && all.known.len() > 1);
        let mine = Threads { known: BTreeSet::from([id]), ..all };
        assert_eq!((mine.ended(), mine.living().known.len()), (0, 1));
        drop(end);
        let _ = thread.join();
        // The kernel takes it off the list a moment after the join.
        let begin = Instant::now();
        while mine.ended() == 0 {
            assert!(begin.elapsed() < Duration::from_secs(30), "its end is not seen");
            thread::yield_now();
        }
        assert!(mine.living().known.is_empty());
        assert_eq!(Threads { process: u32::MAX, known: BTreeSet::from([id]) }.ended(), 0);
    }
}
