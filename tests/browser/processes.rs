//! Chromium as the operating system shows it.

use std::{fs, process, time::Duration};

use rustix::process::Pid;
use testbed::{ProcessInfo, descendants, wait_for};

/// What this test process started and what that started, parents first.
pub(crate) fn ours() -> Vec<ProcessInfo> {
    descendants(process::id())
}

pub(crate) fn pid(of: u32) -> Option<Pid> {
    Pid::from_raw(of.try_into().ok()?)
}

/// The live processes of a group, orphans included; a zombie is dead.
pub(crate) fn group(leader: Pid) -> usize {
    // Not getpgid: rustix panics at group 0, which is that of processes outside a container.
    let is_of_group = |stat: &str| {
        // pid (name) state parent group …; the name may hold blanks and parentheses.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let state = fields.next()?;
        let group: i32 = fields.nth(1)?.parse().ok()?;
        Some(state != "Z" && group == leader.as_raw_nonzero().get())
    };
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("stat")).ok())
        .filter(|stat| is_of_group(stat) == Some(true))
        .count()
}

/// The TCP sockets that a process listens on, as the kernel lists them.
pub(crate) fn listeners(process: u32) -> Vec<String> {
    const LISTENS: &str = "0A";
    // It may just have ended.
    let files = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    let held: Vec<_> = files.filter_map(|file| fs::read_link(file.path()).ok()).collect();
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| fs::read_to_string(table).unwrap());
    let rows = tables.iter().flat_map(|table| table.lines().skip(1));
    rows.filter(|row| {
        let fields: Vec<_> = row.split_whitespace().collect();
        fields[3] == LISTENS && held.contains(&format!("socket:[{}]", fields[9]).into())
    })
    .map(str::to_owned)
    .collect()
}

pub(crate) async fn until(what: &str, limit: Duration, done: impl Fn() -> bool) {
    wait_for(what, limit, || async { done() }).await.unwrap();
}
