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

pub(crate) async fn until(what: &str, limit: Duration, done: impl Fn() -> bool) {
    wait_for(what, limit, || async { done() }).await.unwrap();
}
