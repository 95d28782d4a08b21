//! Waiting for a condition instead of for a while.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Polls `condition` until it holds.
///
/// # Errors
/// When it does not within `limit`: the error says `what` was waited for.
pub async fn wait_for<F, Fut>(what: &str, limit: Duration, mut condition: F) -> Result<()>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    wait_for_value(what, limit, || {
        let holds = condition();
        async move { holds.await.then_some(()) }
    })
    .await
}

/// Polls `probe` until it gives a value.
///
/// # Errors
/// When it does not within `limit`: the error says `what` was waited for.
pub async fn wait_for_value<T, F, Fut>(what: &str, limit: Duration, mut probe: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let start = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let left = limit.saturating_sub(start.elapsed());
        match tokio::time::timeout(left, probe()).await {
            Ok(Some(value)) => return Ok(value),
            Ok(None) if !left.is_zero() => tokio::time::sleep(pause.min(left)).await,
            Ok(None) | Err(_) => bail!("waited {:.1} s in vain for {what}", start.elapsed().as_secs_f32()),
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
