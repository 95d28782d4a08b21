//! What a killed worker leaves running is ended by a shell that outlives it by a moment.
//!
//! The parent-death signal reaches only the leader of a group. A process that the leader started,
//! or one that left the group (a session of its own, a double fork), does not get it. So every
//! child carries a mark in its environment, which those inherit, and a guard waits for the end of
//! a pipe that only the worker holds: the kernel closes it whatever the worker dies of.

use std::{
    fs,
    io::Write,
    os::unix::process::CommandExt,
    path::Path,
    process::{ChildStdin, Command, Stdio},
    sync::{Mutex, OnceLock, PoisonError},
};

use rustix::process::{Pid, Signal, kill_process};
use uuid::Uuid;

use super::orphans;

/// The variable that holds the mark. Not `COMFY_WORKER_…`: those are settings.
pub(super) const VARIABLE: &str = "COMFYWORKER_CHILD";

/// Reads `own GROUP`, `free GROUP` and `watch PID …`; when the pipe ends, kills the groups, those processes, and all
/// that is marked.
/// A process may start another while the table is read: it is read until nothing is found.
const SCRIPT: &str = r#"
trap '' HUP INT TERM
groups=
strays=
while read -r verb group; do
  case $verb in
    watch) strays=$group ;;
    own) groups="$groups $group " ;;
    free) case $groups in *" $group "*) groups="${groups%% $group *} ${groups#* $group }" ;; esac ;;
  esac
done
for group in $groups; do kill -s KILL -- "-$group" 2>/dev/null; done
for stray in $strays; do kill -s KILL "$stray" 2>/dev/null; done
for round in 1 2 3 4 5; do
  # Its exit status tells of processes that ended meanwhile, too.
  marked=$(grep -lsF -e "$1" /proc/[0-9]*/environ)
  [ -n "$marked" ] || break
  for file in $marked; do file=${file#/proc/}; kill -s KILL "${file%/environ}" 2>/dev/null; done
done
"#;

/// This process's part of every mark.
fn nonce() -> &'static str {
    static NONCE: OnceLock<String> = OnceLock::new();
    NONCE.get_or_init(|| Uuid::new_v4().simple().to_string())
}

/// The mark of this process's `number`th child.
pub(super) fn mark(number: u64) -> String {
    format!("{}.{number}", nonce())
}

fn pipe() -> &'static Mutex<Option<ChildStdin>> {
    static PIPE: OnceLock<Mutex<Option<ChildStdin>>> = OnceLock::new();
    PIPE.get_or_init(|| Mutex::new(start()))
}

/// `None` where there is no shell: the parent-death signal must do.
fn start() -> Option<ChildStdin> {
    let mut guard = Command::new("/bin/sh");
    // A group of its own: the terminal's Ctrl-C is not meant for it.
    guard.args(["-c", SCRIPT, "comfy-worker-guard", &format!("{VARIABLE}={}.", nonce())]).process_group(0);
    guard.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").current_dir("/");
    guard.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let _starting = orphans::starting();
    match guard.spawn() {
        Ok(mut guard) => {
            let pid = i32::try_from(guard.id()).ok().and_then(Pid::from_raw);
            pid.into_iter().for_each(orphans::own);
            guard.stdin.take()
        }
        Err(error) => {
            tracing::warn!(%error, "no /bin/sh: what ComfyUI starts may outlive a killed worker");
            None
        }
    }
}

/// Has the guard kill this group when this process ends.
pub(super) fn own(group: Pid) {
    tell("own", &group.as_raw_nonzero().to_string());
}

/// Has the guard forget this group: its number may be given to somebody else.
pub(super) fn free(group: Pid) {
    tell("free", &group.as_raw_nonzero().to_string());
}

/// Has the guard kill these too when this process ends, and none that it was told of before: their numbers may be
/// others' by now.
pub(super) fn watch(strays: &[Pid]) {
    static WATCHED: Mutex<Vec<Pid>> = Mutex::new(Vec::new());
    let mut watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
    if *watched != strays {
        watched.clear();
        watched.extend_from_slice(strays);
        let pids: Vec<_> = strays.iter().map(|pid| pid.as_raw_nonzero().to_string()).collect();
        tracing::info!(?pids, "what a node has started, without its environment, and left behind");
        tell("watch", &pids.join(" "));
    }
}

fn tell(verb: &str, of: &str) {
    let mut pipe = pipe().lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(guard) = &mut *pipe
        && let Err(error) = writeln!(guard, "{verb} {of}")
    {
        tracing::warn!(%error, "the guard is gone: what ComfyUI starts may outlive a killed worker");
        *pipe = None;
    }
}

/// Kills whatever carries that mark, also what left its group. Reads the process table: blocks.
pub(super) fn kill_marked(mark: &str) {
    let entry = format!("{VARIABLE}={mark}");
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = process.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid
            && carries(&process.path(), &entry)
        {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Whether that process carries that mark; others' environments cannot be read.
pub(super) fn is_marked(pid: u32, mark: &str) -> bool {
    carries(Path::new(&format!("/proc/{pid}")), &format!("{VARIABLE}={mark}"))
}

/// Whether that process carries the mark of any child of ours.
pub(super) fn is_marked_by_us(pid: Pid) -> bool {
    let environment = fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())).unwrap_or_default();
    let entry = format!("{VARIABLE}={}.", nonce());
    environment.split(|byte| *byte == 0).any(|variable| variable.starts_with(entry.as_bytes()))
}

fn carries(process: &Path, entry: &str) -> bool {
    let environment = fs::read(process.join("environ")).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|variable| variable == entry.as_bytes())
}
