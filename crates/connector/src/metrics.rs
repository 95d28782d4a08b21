//! What is worth counting, for a program that counts: see [`record_to`].

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

/// Takes what there is to count; must neither block nor fail.
pub trait Metrics: Send + Sync {
    /// A part of the boot was over so long after its begin: `comfyui`, `page`, `self_test`, or `total`.
    fn booted(&self, part: &'static str, after: Duration);

    /// `comfyui` or `browser` was started again, and why.
    fn restarted(&self, child: &'static str, cause: &'static str);

    /// A prompt ran.
    fn executed(&self, posted_at: Instant, started_at: Instant, ended_at: Instant);

    /// A workflow was converted; `known`: it had been before.
    fn converted(&self, known: bool);
}

static METRICS: OnceLock<&'static dyn Metrics> = OnceLock::new();

/// Where all connectors of this process count from now on. The first one stays.
pub fn record_to(metrics: &'static dyn Metrics) {
    let _ = METRICS.set(metrics);
}

pub(crate) fn booted(part: &'static str, after: Duration) {
    if let Some(metrics) = METRICS.get() {
        metrics.booted(part, after);
    }
}

pub(crate) fn restarted(child: &'static str, cause: &'static str) {
    if let Some(metrics) = METRICS.get() {
        metrics.restarted(child, cause);
    }
}

pub(crate) fn executed(posted_at: Instant, started_at: Instant, ended_at: Instant) {
    if let Some(metrics) = METRICS.get() {
        metrics.executed(posted_at, started_at, ended_at);
    }
}

pub(crate) fn converted(known: bool) {
    if let Some(metrics) = METRICS.get() {
        metrics.converted(known);
    }
}
