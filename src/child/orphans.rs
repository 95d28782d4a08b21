//! Process 1 of a container inherits every process whose parent has died, and nobody else reaps them.

use std::{
    collections::HashSet,
    fs,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rustix::process::{Pid, WaitOptions, getpid, waitpid};
use tokio::{task::spawn_blocking, time::sleep};
use tokio_util::task::AbortOnDropHandle;

/// Whoever waits for a child of ours takes its end within milliseconds: a process that has been dead
/// for so long is nobody's.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Children that somebody waits for, however late.
static OWN: Mutex<Option<HashSet<Pid>>> = Mutex::new(None);

fn with_own<T>(change: impl FnOnce(&mut HashSet<Pid>) -> T) -> T {
    change(OWN.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
}

pub(super) fn own(pid: Pid) {
    with_own(|own| own.insert(pid));
}

pub(super) fn free(pid: Pid) {
    with_own(|own| own.remove(&pid));
}

/// Reaps orphans as long as the handle lives, if this is process 1; else they are another's.
#[must_use]
pub fn reap_orphans() -> Option<AbortOnDropHandle<()>> {
    (getpid() == Pid::INIT).then(|| {
        AbortOnDropHandle::new(tokio::spawn(async {
            let mut before = HashSet::new();
            loop {
                sleep(LOOK_EVERY).await;
                let Ok(dead) = spawn_blocking(dead_children).await else { continue };
                for pid in dead.intersection(&before).filter(|pid| !with_own(|own| own.contains(pid))) {
                    let _ = waitpid(Some(*pid), WaitOptions::NOHANG);
                }
                before = dead;
            }
        }))
    })
}

fn dead_children() -> HashSet<Pid> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
    pids.filter(|pid| is_dead_child(*pid).unwrap_or_default()).filter_map(Pid::from_raw).collect()
}

fn is_dead_child(pid: i32) -> Option<bool> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name may hold anything; after its last bracket: state, parent.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let (state, parent) = (fields.next()?, fields.next()?);
    Some(state == "Z" && parent.parse() == Ok(getpid().as_raw_nonzero().get()))
}
