//! The one thread of ComfyUI's that runs prompts. It can end alone: an exception that escapes it, such as a
//! node's `SystemExit`, leaves HTTP as it was and the prompt listed as running.
//!
//! That another thread has ended proves nothing: custom nodes have threads that come and go. So which one
//! runs the prompts is found out: one that did not get the CPU between the post of a prompt and its history
//! did not run it. The prompt thread stays among those that are left, and once all of these have ended it is
//! gone. Python also prints the end of a thread by an exception, but not that by `SystemExit`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use rustix::process::{Pid, Signal, kill_process};

/// What is known of the prompt thread of one ComfyUI. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct PromptThread {
    process: u32,
    /// Threads of which one is it; empty: unknown.
    among: Arc<Mutex<BTreeSet<u32>>>,
    announced: Announced,
}

/// When Python last said that a thread of that name has ended. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Announced(Arc<Mutex<Option<Instant>>>);

/// What has become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ThreadState {
    /// It is known, and there.
    Lives,
    /// It has ended.
    Ended,
    /// Nobody can tell.
    Unknown,
}

/// How often each of these threads has left the CPU.
#[derive(Debug)]
pub(super) struct Switches(BTreeMap<u32, u64>);

impl Announced {
    /// Takes a line of ComfyUI's output.
    pub(super) fn hear(&self, line: &str) {
        if announces_its_end(line) {
            *locked(&self.0) = Some(Instant::now());
        }
    }

    fn since(&self, then: Instant) -> bool {
        locked(&self.0).is_some_and(|at| at > then)
    }
}

/// `Exception in thread Thread-7 (prompt_worker):`, as `threading.excepthook` writes it.
fn announces_its_end(line: &str) -> bool {
    let name = line.trim().strip_prefix("Exception in thread Thread-");
    let number = name.and_then(|name| name.strip_suffix(" (prompt_worker):"));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

impl PromptThread {
    /// One of the threads of this process, but for its first one, which serves.
    pub(super) fn of(process: u32, announced: Announced) -> Self {
        let among = threads(process).into_iter().filter(|thread| *thread != process).collect();
        Self { process, among: Arc::new(Mutex::new(among)), announced }
    }

    /// To be taken before a prompt is posted.
    pub(super) fn switches(&self) -> Switches {
        let among = locked(&self.among).clone();
        let count = |thread| Some((thread, resting(self.process, thread)?.1));
        Switches(among.into_iter().filter_map(count).collect())
    }

    /// A prompt that was posted after `before` was taken has run to its end.
    pub(super) fn has_run(&self, before: &Switches) {
        let living = threads(self.process);
        if living.is_empty() {
            // Nothing can be seen.
            return;
        }
        locked(&self.among).retain(|thread| {
            // One that rests now, and has not left the CPU since, has not been on it.
            let idle = match (resting(self.process, *thread), before.0.get(thread)) {
                (Some((true, now)), Some(then)) => now == *then,
                _ => false,
            };
            living.contains(thread) && !idle
        });
    }

    /// Sends it ABRT, where it is known: a newer ComfyUI has Python write the stack of that thread only which
    /// gets the signal. A signal for the number of a thread goes to that thread if it can.
    pub(super) fn abort(&self) -> bool {
        let among = locked(&self.among);
        let (Some(thread), 1) = (among.first(), among.len()) else { return false };
        let id = i32::try_from(*thread).ok().and_then(Pid::from_raw);
        let is_there = threads(self.process).contains(thread);
        is_there && id.is_some_and(|id| kill_process(id, Signal::ABORT).is_ok())
    }

    /// What has become of it, for a prompt that is not over and of which nothing was heard since `heard_at`.
    pub(super) fn state(&self, heard_at: Instant) -> ThreadState {
        let living = threads(self.process);
        let among = locked(&self.among);
        if living.is_empty() || among.is_empty() {
            return ThreadState::Unknown;
        }
        match among.iter().filter(|thread| living.contains(thread)).count() {
            0 => ThreadState::Ended,
            // A node can print that line, too: one of those that may be it must have ended.
            left if left < among.len() && self.announced.since(heard_at) => ThreadState::Ended,
            1 if among.len() == 1 => ThreadState::Lives,
            _ => ThreadState::Unknown,
        }
    }
}

/// Whether that thread waits, and how often it has left the CPU.
fn resting(process: u32, thread: u32) -> Option<(bool, u64)> {
    // In this order: the state is written before the counts.
    let status = fs::read_to_string(format!("/proc/{process}/task/{thread}/status")).ok()?;
    let field = |name: &str| Some(status.lines().find_map(|line| line.strip_prefix(name))?.trim());
    let count = |name: &str| field(name)?.parse::<u64>().ok();
    let switches = count("voluntary_ctxt_switches:")?.wrapping_add(count("nonvoluntary_ctxt_switches:")?);
    Some((!field("State:")?.starts_with('R'), switches))
}

fn threads(process: u32) -> BTreeSet<u32> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    threads.filter_map(|thread| thread.file_name().to_str()?.parse().ok()).collect()
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{
        sync::mpsc,
        thread::{self, JoinHandle},
        time::Duration,
    };

    use super::*;

    /// A thread that does something each time it is told to, and ends when the sender is dropped.
    struct Worker {
        id: u32,
        tell: mpsc::Sender<mpsc::Sender<()>>,
        handle: JoinHandle<()>,
    }

    impl Worker {
        fn start() -> Self {
            let (tell, told) = mpsc::channel::<mpsc::Sender<()>>();
            let (name, named) = mpsc::channel();
            let handle = thread::spawn(move || {
                let _ = name.send(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs());
                while let Ok(done) = told.recv() {
                    let _ = done.send(());
                }
            });
            Self { id: named.recv().unwrap(), tell, handle }
        }

        fn work(&self) {
            let (done, is_done) = mpsc::channel();
            self.tell.send(done).unwrap();
            is_done.recv().unwrap();
            until("it waits again", || resting(std::process::id(), self.id).is_some_and(|(rests, _)| rests));
        }

        fn end(self) {
            drop(self.tell);
            let _ = self.handle.join();
            // The kernel takes it off the list a moment after the join.
            until("its end", || !threads(std::process::id()).contains(&self.id));
        }
    }

    fn until(what: &str, holds: impl Fn() -> bool) {
        let begin = Instant::now();
        while !holds() {
            assert!(begin.elapsed() < Duration::from_secs(30), "{what}");
            thread::yield_now();
        }
    }

    fn among(workers: &[&Worker], announced: &Announced) -> PromptThread {
        let among = workers.iter().map(|worker| worker.id).collect();
        let among = Arc::new(Mutex::new(among));
        PromptThread { process: std::process::id(), among, announced: announced.clone() }
    }

    #[test]
    fn whoever_did_not_run_during_a_prompt_is_not_it() {
        let (prompts, sleeper) = (Worker::start(), Worker::start());
        let (thread, heard_at) = (among(&[&prompts, &sleeper], &Announced::default()), Instant::now());
        sleeper.work();
        assert_eq!(thread.state(heard_at), ThreadState::Unknown);
        let before = thread.switches();
        prompts.work();
        thread.has_run(&before);
        assert_eq!(thread.state(heard_at), ThreadState::Lives);
        sleeper.end();
        assert_eq!(thread.state(heard_at), ThreadState::Lives, "an ended thread is not the prompt thread");
        prompts.end();
        assert_eq!(thread.state(heard_at), ThreadState::Ended);
    }

    #[test]
    fn one_that_may_be_another_is_believed_with_pythons_word_only() {
        let (prompts, poller) = (Worker::start(), Worker::start());
        let announced = Announced::default();
        let (thread, heard_at) = (among(&[&prompts, &poller], &announced), Instant::now());
        let before = thread.switches();
        prompts.work();
        poller.work();
        thread.has_run(&before);
        announced.hear("Exception in thread Thread-3 (prompt_worker):");
        assert_eq!(thread.state(heard_at), ThreadState::Unknown, "anybody can print that");
        poller.end();
        assert_eq!(thread.state(heard_at), ThreadState::Ended);
        assert_eq!(thread.state(Instant::now()), ThreadState::Unknown, "it was heard of since");
        prompts.end();
        assert_eq!(thread.state(Instant::now()), ThreadState::Ended);
    }

    #[test]
    fn what_cannot_be_seen_proves_nothing() {
        let gone = PromptThread::of(u32::MAX, Announced::default());
        gone.has_run(&gone.switches());
        assert_eq!(gone.state(Instant::now()), ThreadState::Unknown);
        let mine = PromptThread::of(std::process::id(), Announced::default());
        assert!(!locked(&mine.among).is_empty() && !locked(&mine.among).contains(&std::process::id()));
    }

    #[test]
    fn only_its_own_name_counts() {
        assert!(announces_its_end("Exception in thread Thread-12 (prompt_worker):"));
        for line in [
            "Exception in thread Thread-12 (fetch):",
            "Exception in thread Thread-12 (my_prompt_worker):",
            "Exception in thread prompt_worker:",
            "Exception in thread Thread- (prompt_worker):",
            "it said: Exception in thread Thread-12 (prompt_worker):",
            "",
        ] {
            assert!(!announces_its_end(line), "{line}");
        }
    }
}
