//! Named moments of a job's life, at which a test holds a worker or has it panic; and limits that tests shorten.
//!
//! Only with the feature `phases`, which nothing but the tests turns on: without it [`reached`] is
//! empty. `COMFY_PHASES` names a folder. A file there that bears a phase's name is taken by the first
//! worker that comes to it: one that says `panic` panics; any other is renamed to `<phase>.reached`,
//! and the job goes on once that is removed. Signals and everything else are served meanwhile.

/// The job in hand has come to `phase`.
#[cfg(not(feature = "phases"))]
#[inline]
pub async fn reached(_phase: &str) {}

/// A thread that may block has come to `phase`.
#[cfg(not(feature = "phases"))]
#[inline]
pub fn reached_by_thread(_phase: &str) {}

/// The job in hand has come to `phase`.
#[cfg(feature = "phases")]
pub async fn reached(phase: &str) {
    let Some(marker) = taken(phase) else { return };
    while marker.exists() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A thread that may block has come to `phase`.
#[cfg(feature = "phases")]
pub fn reached_by_thread(phase: &str) {
    let Some(marker) = taken(phase) else { return };
    while marker.exists() {
        std::thread::sleep(LOOK_EVERY);
    }
}

#[cfg(feature = "phases")]
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_millis(5);

/// What is there as long as this worker is to be held at `phase`.
#[cfg(feature = "phases")]
fn taken(phase: &str) -> Option<std::path::PathBuf> {
    use std::{env, fs, path::PathBuf};

    let folder = env::var_os("COMFY_PHASES").map(PathBuf::from)?;
    let marker = folder.join(format!("{phase}.reached"));
    // By renaming: of two workers one takes it.
    fs::rename(folder.join(phase), &marker).ok()?;
    if fs::read(&marker).is_ok_and(|says| says == b"panic") {
        panic!("told to panic at the phase {phase}");
    }
    tracing::warn!(phase, "held by a test");
    Some(marker)
}

/// A limit of the worker's own, as it is, or as tests want it: `COMFY_LIMITS="unreachable=5,cancel=0.1"`, in
/// seconds.
#[cfg(not(feature = "phases"))]
#[inline]
pub fn limit(_name: &str, limit: std::time::Duration) -> std::time::Duration {
    limit
}

/// A limit of the worker's own, as it is, or as tests want it: `COMFY_LIMITS="unreachable=5,cancel=0.1"`, in
/// seconds.
#[cfg(feature = "phases")]
pub fn limit(name: &str, limit: std::time::Duration) -> std::time::Duration {
    let limits = std::env::var("COMFY_LIMITS").unwrap_or_default();
    let wanted = limits.split(',').filter_map(|limit| limit.split_once('='));
    let mut wanted = wanted.filter(|(of, _)| *of == name).filter_map(|(_, seconds)| seconds.parse().ok());
    wanted.find_map(|seconds| std::time::Duration::try_from_secs_f64(seconds).ok()).unwrap_or(limit)
}
