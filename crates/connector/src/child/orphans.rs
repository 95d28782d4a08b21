//! Processes whose parent has died become the worker's own children, as those of process 1 of a container are in any
//! case: so that one that has left its group and emptied its environment is found, and ended with those that started
//! it. Nobody else reaps them.

use std::{
    collections::HashSet,
    fs,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, waitpid};
use tokio::{task::spawn_blocking, time::sleep};
use tokio_util::task::AbortOnDropHandle;

use super::guard;

/// Who waits for a child of ours takes its end within milliseconds: a process that has been dead for so long is
/// nobody's.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A process may start another while it is looked for.
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_millis(5);

/// Held from a child's start until it is known as ours.
static STARTING: Mutex<()> = Mutex::new(());

/// Children that somebody waits for, however late.
static OWN: Mutex<Option<HashSet<Pid>>> = Mutex::new(None);
/// Whether orphans come to this process.
static ADOPTS: AtomicBool = AtomicBool::new(false);

fn with_own<T>(change: impl FnOnce(&mut HashSet<Pid>) -> T) -> T {
    change(OWN.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
}

/// To be held while a child is started, until it is `own`: in between it looks like an orphan.
pub(super) fn starting() -> MutexGuard<'static, ()> {
    STARTING.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn own(pid: Pid) {
    with_own(|own| own.insert(pid));
}

pub(super) fn free(pid: Pid) {
    with_own(|own| own.remove(&pid));
}

/// Adopts orphans, and reaps those that have died as long as the handle lives.
pub fn adopt_orphans() -> AbortOnDropHandle<()> {
    match set_child_subreaper(Some(getpid())) {
        Ok(()) => ADOPTS.store(true, Ordering::Relaxed),
        Err(error) => {
            tracing::warn!(%error, "what a node starts may outlive ComfyUI, if it empties its environment")
        }
    }
    AbortOnDropHandle::new(tokio::spawn(async {
        let mut before = HashSet::new();
        loop {
            sleep(LOOK_EVERY).await;
            let Ok((dead, strays)) = spawn_blocking(|| (dead_children(), strays())).await else { continue };
            for pid in dead.intersection(&before).filter(|pid| !with_own(|own| own.contains(pid))) {
                let _ = waitpid(Some(*pid), WaitOptions::NOHANG);
            }
            before = dead;
            guard::watch(&strays);
        }
    }))
}

/// Kills orphans that carry no mark: their starter cannot be told, but of what we start only ComfyUI has such. Reads
/// the process table: blocks.
pub(super) fn kill_strays() {
    if !ADOPTS.load(Ordering::Relaxed) {
        return;
    }
    for _ in 0..ROUNDS {
        // What a killed one had started comes to us in its place.
        let found = strays();
        if found.is_empty() {
            return;
        }
        for pid in found {
            let _ = kill_process(pid, Signal::KILL);
        }
        // Not waited for: one that hangs in the kernel does not die of it.
        std::thread::sleep(ROUND);
    }
}

/// Children of ours that we did not start: in no group of ours, without a mark.
fn strays() -> Vec<Pid> {
    let _starting = starting();
    let us = getpid();
    // Not by `getpgrp`: rustix panics over a group of another PID namespace, which is 0, as process 1 may have.
    let Some(Process { group, .. }) = read(us) else { return Vec::new() };
    let is_stray = |process: &Process| {
        process.parent == us.as_raw_nonzero().get()
            && !process.is_dead
            && process.group != group
            && !with_own(|own| own.contains(&process.pid))
            && !guard::is_marked_by_us(process.pid)
    };
    processes().filter(is_stray).map(|process| process.pid).collect()
}

fn dead_children() -> HashSet<Pid> {
    let us = getpid().as_raw_nonzero().get();
    processes().filter(|process| process.is_dead && process.parent == us).map(|process| process.pid).collect()
}

struct Process {
    pid: Pid,
    parent: i32,
    group: i32,
    is_dead: bool,
}

fn processes() -> impl Iterator<Item = Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter_map(Pid::from_raw);
    pids.filter_map(read)
}

fn read(pid: Pid) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The program's name may hold anything; after its last bracket: state, parent, group.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let is_dead = fields.next()? == "Z";
    Some(Process { pid, parent: fields.next()?.parse().ok()?, group: fields.next()?.parse().ok()?, is_dead })
}
