//! How a program of scripts/ ends: told to by a signal, and with nothing left.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};

use crate::{processes_with_env_or_cwd_beneath, wait_for};

/// What was started is gone by then.
const END: Duration = Duration::from_secs(30);

/// Waits for Ctrl-C or TERM.
pub async fn stopped() {
    let (Ok(mut int), Ok(mut term)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = int.recv() => {}
        _ = term.recv() => {}
    }
}

/// Waits for the end of everything that has to do with `folder`, but for the guard that ends with us.
///
/// # Errors
/// When a process is left: which.
pub async fn nothing_left(folder: &Path) -> Result<()> {
    let left = || {
        let mut left = processes_with_env_or_cwd_beneath(folder);
        left.retain(|process| !process.command.contains("comfy-worker-guard"));
        left
    };
    let gone = wait_for("the end of every process", END, || async { left().is_empty() }).await;
    gone.with_context(|| format!("left: {:#?}", left()))
}
