//! A second signal: the end at once.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use testbed::{Signal, wait_for};

use super::{
    SOON,
    bed::{Bed, staged_job},
    site::{Site, end, wait_running, wait_unready},
};

/// Nothing is left running; files may be, until the next start on that machine.
#[tokio::test]
async fn a_second_signal_ends_at_once_and_the_next_start_sweeps() -> Result<()> {
    let bed = Bed::new("second").await?;
    let site = Site::new(&bed, "a")?;
    let before = site.snapshot()?;
    let mut worker = site.boot().await?;
    // So long that no drain finishes it.
    bed.publish(&staged_job("j", 600.0)).await?;
    wait_running(&worker, "j").await?;
    worker.signal(Signal::TERM)?;
    wait_unready(&worker, "draining").await?;
    let seen = worker.descendants();
    worker.signal(Signal::INT)?;
    let (status, took) = end(&mut worker, Duration::ZERO).await?;
    ensure!(status.code() == Some(3) && took < Duration::from_secs(3), "{status} after {took:?}");
    site.wait_no_process(&seen, Duration::from_secs(2)).await?;
    bed.wait_queued(1).await?;

    let folder =
        site.inputs_of("j").context("the end at once removes nothing: then this test shows nothing")?;
    let inode = fs::metadata(&folder)?;
    let worker = site.boot().await?;
    wait_for("the sweep", SOON, || async {
        fs::metadata(&folder).is_ok_and(|now| !same(&now, &inode)) || !folder.exists()
    })
    .await?;
    wait_running(&worker, "j").await?;
    let (code, _, err) = site.command(&["cancel", "j"]).await?;
    ensure!(code == 0, "{err}");
    let result = bed.answer("j").await?;
    ensure!(result["status"] == "cancelled" && result["attempt"] == 2, "{result:#}");
    site.finish(worker, &before).await?;
    bed.wait_queued(0).await
}

fn same(now: &fs::Metadata, then: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    now.ino() == then.ino() && now.mtime_nsec() == then.mtime_nsec()
}
