//! The process table, read from `/proc`: what a test asserts "nothing is left" with.

use std::{
    collections::BTreeMap,
    fmt, fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process,
};

/// A process, as `/proc` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessInfo {
    /// Its id.
    pub pid: u32,
    /// Its parent's id.
    pub parent: u32,
    /// Command line, arguments separated by blanks; the bare name where there is none.
    pub command: String,
}

impl fmt::Display for ProcessInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let command: String = self.command.chars().take(160).collect();
        write!(f, "{} (child of {}): {command}", self.pid, self.parent)
    }
}

impl ProcessInfo {
    /// `None` when it has ended; a zombie counts as ended: it holds nothing any more.
    fn read(pid: u32) -> Option<Self> {
        let (name, state, parent) = stat(pid)?;
        if matches!(state, 'Z' | 'X') {
            return None;
        }
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&arguments).replace('\0', " ").trim().to_owned();
        let command = if command.is_empty() { name } else { command };
        Some(Self { pid, parent, command })
    }

    fn belongs_to(&self, folder: &Path) -> bool {
        let proc = PathBuf::from(format!("/proc/{}", self.pid));
        if fs::read_link(proc.join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder)) {
            return true;
        }
        ["environ", "cmdline"].into_iter().any(|file| {
            fs::read(proc.join(file)).is_ok_and(|text| names(&text, folder.as_os_str().as_bytes()))
        })
    }
}

/// Name, state and parent of a process.
fn stat(pid: u32) -> Option<(String, char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // pid (name) state parent …; the name may hold blanks and parentheses.
    let (front, back) = stat.rsplit_once(')')?;
    let name = front.split_once('(').map_or("?", |(_, name)| name);
    let mut fields = back.split_whitespace();
    Some((name.to_owned(), fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Whether `text` holds the path `folder`, or one under it.
fn names(text: &[u8], folder: &[u8]) -> bool {
    text.windows(folder.len().max(1)).enumerate().any(|(at, window)| {
        window == folder
            && text
                .get(at + folder.len())
                .is_none_or(|next| !next.is_ascii_alphanumeric() && !b"-_.".contains(next))
    })
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

fn all() -> impl Iterator<Item = ProcessInfo> {
    pids().filter_map(ProcessInfo::read)
}

/// The children of `parent` that have ended and that it has not waited for.
#[must_use]
pub fn zombies(parent: u32) -> Vec<u32> {
    pids().filter(|pid| stat(*pid).is_some_and(|(_, state, above)| state == 'Z' && above == parent)).collect()
}

/// Whether that process is there and no zombie.
#[must_use]
pub fn alive(pid: u32) -> bool {
    ProcessInfo::read(pid).is_some()
}

/// The children of `pid`, their children, and so on.
#[must_use]
pub fn descendants(pid: u32) -> Vec<ProcessInfo> {
    let mut by_parent: BTreeMap<u32, Vec<ProcessInfo>> = BTreeMap::new();
    for process in all() {
        by_parent.entry(process.parent).or_default().push(process);
    }
    let mut found = Vec::new();
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        for child in by_parent.remove(&parent).unwrap_or_default() {
            parents.push(child.pid);
            found.push(child);
        }
    }
    found
}

/// Seconds of CPU that `pid`, its descendants, and those of them that ended and were waited for, have used.
#[must_use]
pub fn cpu_seconds(pid: u32) -> f64 {
    let ticks = |pid: u32| -> Option<u64> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // After the name: state, parent and nine more; then utime, stime, cutime, cstime.
        let fields = stat.rsplit_once(')')?.1.split_whitespace();
        fields.skip(11).take(4).map(|field| field.parse::<u64>().ok()).sum()
    };
    let pids = descendants(pid).into_iter().map(|process| process.pid).chain([pid]);
    #[allow(clippy::cast_precision_loss, reason = "ticks since the process began")]
    let seconds = pids.filter_map(ticks).sum::<u64>() as f64 / rustix::param::clock_ticks_per_second() as f64;
    seconds
}

/// Every other process that has to do with `folder`: its working folder lies there, or its
/// environment or command line names a path there. So orphans are found too.
#[must_use]
pub fn processes_with_env_or_cwd_beneath(folder: &Path) -> Vec<ProcessInfo> {
    // The kernel resolves links in /proc/<pid>/cwd.
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let above = ancestors(process::id());
    all().filter(|process| !above.contains(&process.pid) && process.belongs_to(&folder)).collect()
}

/// This process and its parents: a shell that was given the folder's name is no leftover.
fn ancestors(pid: u32) -> Vec<u32> {
    std::iter::successors(Some(pid), |&pid| {
        Some(ProcessInfo::read(pid)?.parent).filter(|&parent| parent != 0)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_named_only_as_a_whole() {
        assert!(names(b"HOME=/a/b", b"/a/b"));
        assert!(names(b"--dir=/a/b/c\0", b"/a/b"));
        assert!(!names(b"HOME=/a/bc", b"/a/b"));
        assert!(!names(b"", b"/a/b"));
    }

    #[test]
    fn a_child_is_a_descendant_until_it_ends() -> std::io::Result<()> {
        let mut child = process::Command::new("sleep").arg("60").spawn()?;
        assert!(descendants(process::id()).iter().any(|process| process.pid == child.id()));
        child.kill()?;
        while alive(child.id()) {
            std::thread::yield_now();
        }
        assert!(zombies(process::id()).contains(&child.id()));
        child.wait()?;
        assert!(!zombies(process::id()).contains(&child.id()));
        Ok(())
    }
}
