//! Children that die with the worker: each in a process group of its own, with the parent-death
//! signal set, stopped by TERM and then KILL of the whole group.
//!
//! Invariant: a [`ProcessGroup`] owns every process of its group and every one that inherited its mark.
//! Dropping it kills them, and so does the death of the worker by any signal: the leader by
//! `PR_SET_PDEATHSIG`, what it started by the guard (`guard.rs`).

mod activity;
mod guard;
mod orphans;

pub use activity::Activity;
pub use orphans::adopt_orphans;

use std::{
    collections::VecDeque,
    fs, io,
    process::ExitStatus,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use rustix::process::{
    DumpableBehavior, Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions, WaitOptions, getppid, getrlimit,
    kill_process_group, set_dumpable_behavior, set_parent_process_death_signal, setrlimit,
    test_kill_process_group, waitid, waitpgid,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader},
    process::{Child, ChildStderr, ChildStdout, Command},
    runtime::Handle,
    sync::oneshot,
    time::{sleep, timeout},
};

use crate::text::plain;

/// How many of a child's last lines are kept for error messages.
const TAIL_LINES: usize = 200;
/// After this Python only writes where each of its threads is: that is for the log.
const PYTHONS_LAST_WORDS: &str = "Fatal Python error: ";
/// A line longer than this is cut in the tail: a child must not be able to fill our memory.
const TAIL_LINE_CHARS: usize = 2_000;
/// A longer line is handed on in pieces of this many bytes.
const LINE_BYTES: u64 = 16 * 1024;
/// The end of a process that was sent KILL.
const DEATH_LIMIT: Duration = Duration::from_secs(5);

/// Lets this process have as many open files as it may, up to what the files of a few jobs need: 1,024, a usual limit,
/// are fewer than one job may make.
pub fn raise_file_limit() {
    const ENOUGH: u64 = 65_536;
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.map_or(ENOUGH, |most| most.min(ENOUGH));
    if limit.current.is_some_and(|current| current < most)
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(most), ..limit })
    {
        tracing::debug!(%error, "cannot raise the limit of open files");
    }
}

/// Closes this process's environment, memory and descriptors in /proc, and ptrace, to processes of the same user: nodes
/// are such processes, and the worker's environment and memory hold credentials. Children are as open as ever. Root with
/// `CAP_SYS_PTRACE`, which containers lack by default, sees everything all the same.
pub fn hide_from_others() {
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "other processes of this user can read this one's memory");
    }
}

/// A running child and its whole process group.
#[derive(Debug)]
pub struct ProcessGroup {
    child: Child,
    pgid: Pid,
    name: &'static str,
    mark: String,
    /// Whether orphans without a mark are its own.
    has_strays: bool,
    /// Nothing of it is left, and its id may be somebody else's by now.
    over: bool,
}

impl ProcessGroup {
    /// Starts `command` as the leader of a new process group that dies with this process.
    ///
    /// `name` is what logs and errors call it. Standard input, output and error are as `command`
    /// says; piped ones are taken with [`ProcessGroup::take_output`].
    ///
    /// # Errors
    /// What `exec` says: a missing program is [`io::ErrorKind::NotFound`].
    pub async fn spawn(command: Command, name: &'static str) -> io::Result<Self> {
        let (reply, answer) = oneshot::channel();
        let request = SpawnRequest { command, name, runtime: Handle::current(), reply };
        spawner().send(request).map_err(|_| io::Error::other("the spawning thread ended"))?;
        answer.await.map_err(|_| io::Error::other("the spawning thread ended"))?
    }

    /// Ends orphans that have emptied their environment with it: of all children only this one starts such.
    #[must_use]
    pub fn with_strays(mut self) -> Self {
        self.has_strays = true;
        self
    }

    /// Process id of the group's leader, which is the group's id too.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pgid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Takes the piped standard output and error, once.
    pub fn take_output(&mut self) -> (Option<ChildStdout>, Option<ChildStderr>) {
        (self.child.stdout.take(), self.child.stderr.take())
    }

    /// Waits for the leader to end. Cancel safe.
    ///
    /// # Errors
    /// When the operating system cannot say.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// The leader's exit status, if it has ended.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Tells its processes from others.
    #[must_use]
    pub fn members(&self) -> ProcessTree {
        ProcessTree { pgid: self.pgid, mark: self.mark.clone() }
    }

    /// Sends TERM to the whole group, waits up to `grace` for the leader, then sends KILL to what
    /// is left of the group, and waits until nothing is.
    pub async fn stop(mut self, grace: Duration) {
        if self.exit_status().is_none() && !grace.is_zero() {
            let _ = kill_process_group(self.pgid, Signal::TERM);
            if timeout(grace, self.child.wait()).await.is_err() {
                tracing::warn!(child = self.name, ?grace, "did not end on TERM, killing its group");
            }
        }
        self.kill();
        if timeout(DEATH_LIMIT, self.emptied()).await.is_err() {
            tracing::warn!(child = self.name, "processes of its group outlive KILL");
        }
        self.over = true;
    }

    /// Sends ABRT to the whole group, so that a Python with `PYTHONFAULTHANDLER` writes where each of its
    /// threads is; after `grace` KILL to what is left.
    pub async fn abort(mut self, grace: Duration) {
        if self.exit_status().is_none() {
            let _ = kill_process_group(self.pgid, Signal::ABORT);
            let _ = timeout(grace, self.emptied()).await;
        }
        self.stop(Duration::ZERO).await;
    }

    /// Waits until nothing of the group is left.
    async fn emptied(&mut self) {
        let _ = self.child.wait().await;
        while test_kill_process_group(self.pgid).is_ok() {
            // As process 1 of a container we inherit its orphans: nobody else reaps them.
            while let Ok(Some(_)) = waitpgid(self.pgid, WaitOptions::NOHANG) {}
            sleep(Duration::from_millis(5)).await;
        }
    }

    fn kill(&self) {
        // ESRCH, when the group is empty already, is what we want.
        let _ = kill_process_group(self.pgid, Signal::KILL);
        guard::kill_marked(&self.mark);
        if self.has_strays {
            orphans::kill_strays();
        }
        guard::free(self.pgid);
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if !self.over {
            self.kill();
        }
        orphans::free(self.pgid);
    }
}

/// The processes of a [`ProcessGroup`].
#[derive(Clone, Debug)]
pub struct ProcessTree {
    pgid: Pid,
    mark: String,
}

impl ProcessTree {
    /// Whether `pid` is a member of the group, or marked as started by one.
    #[must_use]
    pub fn has(&self, pid: u32) -> bool {
        group_of(pid) == Some(self.pgid) || guard::is_marked(pid, &self.mark)
    }
}

impl ProcessTree {
    /// Their resident memory in bytes, shared pages counted for each. Reads the process table.
    #[must_use]
    pub fn rss(&self) -> u64 {
        self.pids().map(rss_of).sum()
    }

    /// What they have done so far. Reads the process table: blocks.
    #[must_use]
    pub fn activity(&self) -> Activity {
        self.pids().map(Activity::of).fold(Activity::default(), Activity::plus)
    }

    fn pids(&self) -> impl Iterator<Item = u32> {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
        pids.filter(|pid| self.has(*pid))
    }
}

/// The resident memory of this process alone, in bytes.
#[must_use]
pub fn own_rss() -> u64 {
    rss_of(std::process::id())
}

/// 0 for a process that is gone.
fn rss_of(pid: u32) -> u64 {
    let pages = || -> Option<u64> {
        fs::read_to_string(format!("/proc/{pid}/statm")).ok()?.split(' ').nth(1)?.parse().ok()
    };
    pages().unwrap_or_default() * rustix::param::page_size() as u64
}

/// Whether that child of ours has ended, reaped or not.
#[must_use]
pub fn has_ended(pid: u32) -> bool {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return true };
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    !matches!(waitid(WaitId::Pid(pid), look), Ok(None))
}

/// The process group of `pid`. Not by `getpgid`: rustix panics over that of a kernel thread, which is 0.
fn group_of(pid: u32) -> Option<Pid> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // A name may hold anything, parentheses too: `4711 (a) b) S 1 4711 …`.
    let (_, fields) = stat.rsplit_once(')')?;
    Pid::from_raw(fields.split_whitespace().nth(2)?.parse().ok()?)
}

struct SpawnRequest {
    command: Command,
    name: &'static str,
    runtime: Handle,
    reply: oneshot::Sender<io::Result<ProcessGroup>>,
}

/// `PR_SET_PDEATHSIG` fires when the *thread* that forked ends, not the process: children are
/// forked from one thread that lives as long as the process does.
fn spawner() -> &'static mpsc::Sender<SpawnRequest> {
    static SPAWNER: OnceLock<mpsc::Sender<SpawnRequest>> = OnceLock::new();
    SPAWNER.get_or_init(|| {
        let (sender, requests) = mpsc::channel::<SpawnRequest>();
        thread::Builder::new()
            .name("spawner".into())
            .spawn(move || {
                for SpawnRequest { command, name, runtime, reply } in requests {
                    let _entered = runtime.enter();
                    // A caller that has given up drops the group, which kills it.
                    let _ = reply.send(spawn_group(command, name));
                }
            })
            .map(drop)
            .unwrap_or_else(|error| tracing::error!(%error, "cannot start the spawning thread"));
        sender
    })
}

#[allow(unsafe_code)]
fn spawn_group(mut command: Command, name: &'static str) -> io::Result<ProcessGroup> {
    static SPAWNED: AtomicU64 = AtomicU64::new(0);
    let mark = guard::mark(SPAWNED.fetch_add(1, Ordering::Relaxed));
    let worker = rustix::process::getpid();
    command.process_group(0).env(guard::VARIABLE, &mark);
    // SAFETY: between fork and exec only async-signal-safe calls are made (prctl, getrlimit, setrlimit,
    // getppid), and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // No core of gigabytes when it is aborted or crashes, also where cores go to a program: that
            // takes a limit of 0 for none, and 1 for "do not dump" (core(5)). A wrapper may raise it again.
            let core = Rlimit { current: Some(1), ..getrlimit(Resource::Core) };
            let _ = setrlimit(Resource::Core, core);
            // The worker may have died before the line above: then nobody sends that signal.
            if getppid() == Some(worker) { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
        });
    }
    let starting = orphans::starting();
    let child = command.spawn()?;
    let pgid = child
        .id()
        .and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?))
        .ok_or_else(|| io::Error::other("the child ended before its id was read"))?;
    orphans::own(pgid);
    drop(starting);
    guard::own(pgid);
    Ok(ProcessGroup { child, pgid, name, mark, has_strays: false, over: false })
}

/// The last lines that a child wrote, for the error that explains its end.
#[derive(Clone, Debug, Default)]
pub struct LogTail(Arc<Mutex<VecDeque<String>>>);

impl LogTail {
    /// Reads `output` to its end, keeps its last lines and hands each to `each_line`.
    ///
    /// A child whose pipe nobody reads stops at its next write: keep the returned future running.
    pub async fn follow(self, output: impl AsyncRead + Unpin, mut each_line: impl FnMut(&str)) {
        let mut reader = BufReader::new(output);
        let mut line = Vec::new();
        // A "line" without an end comes in pieces, so that it cannot fill our memory.
        while let Ok(1..) = (&mut reader).take(LINE_BYTES).read_until(b'\n', &mut line).await {
            // In a log it must look like nothing but what it is.
            let text = plain(&String::from_utf8_lossy(&line));
            if !text.is_empty() {
                each_line(&text);
                self.push(&text);
            }
            line.clear();
        }
    }

    fn push(&self, text: &str) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == TAIL_LINES {
            lines.pop_front();
        }
        lines.push_back(text.chars().take(TAIL_LINE_CHARS).collect());
    }

    /// The last `count` lines, oldest first.
    #[must_use]
    pub fn last(&self, count: usize) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fatal = lines.iter().rposition(|line| line.starts_with(PYTHONS_LAST_WORDS));
        let end = fatal.map_or(lines.len(), |at| at + 1);
        lines.range(end.saturating_sub(count)..end).cloned().collect::<Vec<_>>().join("\n")
    }
}
