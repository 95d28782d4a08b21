//! An attempt that runs for long says so in its marker, so that nobody takes it for one that crashed.

use std::time::Duration;

use tokio::time::{Instant, interval_at, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::attempt::{OpenAttempt, Records};

/// How often a living attempt says so; shorter ones never do. Well below the half minute for which a copy of the job
/// waits in the delay queue: one that finds the marker unchanged again and again knows that its attempt is dead.
const BEAT_EVERY: Duration = Duration::from_secs(20);
/// Longest write of a marker: a store that is away must not hold up what comes after.
const NOTE_LIMIT: Duration = Duration::from_secs(3);
/// Between two tries to say that the attempt goes on without its message: the worker that has it now waits for a
/// moment only.
const SAY_AGAIN: Duration = Duration::from_millis(500);

/// Runs `work`, the attempt's, and keeps its marker alive meanwhile; `lost`: cancelled when the broker has taken the
/// message back, and may give it to others. A note under way is ended before this returns: none comes after the
/// marker's closing.
pub(super) async fn kept_alive<T>(
    records: &Records<'_>,
    attempt: &OpenAttempt,
    lost: &CancellationToken,
    work: impl Future<Output = T>,
) -> T {
    let over = CancellationToken::new();
    let work = async {
        let _over = over.clone().drop_guard();
        work.await
    };
    tokio::join!(work, beat(records, attempt, lost, &over)).0
}

async fn beat(
    records: &Records<'_>,
    attempt: &OpenAttempt,
    lost: &CancellationToken,
    over: &CancellationToken,
) {
    let (mut beats, mut disowned, mut noted) = (0, false, true);
    let mut due = interval_at(Instant::now() + BEAT_EVERY, BEAT_EVERY);
    loop {
        tokio::select! {
            biased;
            () = over.cancelled() => return,
            () = lost.cancelled(), if !disowned => disowned = true,
            _ = due.tick() => beats += 1,
            () = sleep(SAY_AGAIN), if disowned && !noted => {}
        }
        let done = timeout(NOTE_LIMIT, records.note(attempt, beats, disowned)).await;
        let failed_before = !std::mem::replace(&mut noted, matches!(done, Ok(Ok(()))));
        match done {
            Ok(Ok(())) => {}
            // Told once.
            _ if failed_before => {}
            Ok(Err(error)) => tracing::warn!(%error, "the attempt's marker could not be kept alive"),
            Err(_) => {
                tracing::warn!(limit = ?NOTE_LIMIT, "the attempt's marker could not be kept alive in time")
            }
        }
    }
}

/// Closes the marker of an attempt that ended and did not crash. One that stays open counts as a crash, which costs the
/// job a try and no more.
pub(super) async fn close(records: &Records<'_>, attempt: &OpenAttempt, reason: &str) {
    match timeout(NOTE_LIMIT, records.close(attempt, reason)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the attempt's marker could not be closed"),
        Err(_) => tracing::warn!(limit = ?NOTE_LIMIT, "the attempt's marker could not be closed in time"),
    }
}
