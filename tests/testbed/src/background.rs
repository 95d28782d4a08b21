//! A runtime that outlives every test: what several tests share must not die with the first one's.

use std::{future::Future, io, sync::OnceLock};

use anyhow::{Context as _, Result};
use tokio::runtime::{Builder, Runtime};

/// The runtime that servers and children live on.
fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<io::Result<Runtime>> = OnceLock::new();
    RUNTIME
        .get_or_init(|| {
            Builder::new_multi_thread().worker_threads(2).thread_name("testbed").enable_all().build()
        })
        .as_ref()
        .map_err(|error| anyhow::anyhow!("cannot start the test bed's threads: {error}"))
}

/// Runs `work` on the test bed's runtime and waits for it on the caller's.
pub(crate) async fn run<T, F>(work: F) -> Result<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    runtime()?.spawn(work).await.context("the test bed's task panicked")
}

/// Starts `work` on the test bed's runtime and leaves it running.
pub(crate) fn spawn<F>(work: F) -> Result<tokio::task::JoinHandle<()>>
where
    F: Future<Output = ()> + Send + 'static,
{
    Ok(runtime()?.spawn(work))
}
