//! The start: ComfyUI and browser side by side, cut short by a drop or a shutdown.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use connector::{
    ComfyConnector, ConnectorBuilder, ConnectorConfig, ConnectorError, HealthError, State, UploadOptions,
};
use testbed::{free_port, wait_for};
use tokio::time::timeout;

use super::bed::{Bed, LIMIT, my_turn};

#[tokio::test(flavor = "multi_thread")]
async fn both_start_side_by_side_and_end_when_the_start_is_dropped_or_shut_down() -> Result<()> {
    let _turn = my_turn().await;
    let bed = Bed::standin()?;
    let config = bed.config(&[("comfyui.env", "STANDIN_BOOT_DELAY=600")])?;
    for ending in [Ending::Dropped, Ending::ShutDown, Ending::ShutDownWhileNobodyPolls] {
        let mut starting = Box::pin(ComfyConnector::create(config.connector().await));
        // ComfyUI will not answer for ten minutes.
        tokio::select! {
            created = &mut starting => bail!("{:?}", created.err()),
            both = wait_for("ComfyUI and Chromium", LIMIT, || async {
                bed.comfyui().is_some() && bed.chromium().is_some()
            }) => both?,
        }
        let connector = ComfyConnector::live().context("none is live")?;
        ensure!(connector.state() == State::Initializing);
        ensure!(connector.server_address().is_none() && connector.client_id().is_none());
        ensure!(connector.validate_resources().await == Err(HealthError::NotRunning));
        let clock = Instant::now();
        let shutdown = timeout(Duration::from_secs(5), ComfyConnector::shutdown_live());
        let outcome = match ending {
            Ending::Dropped => {
                drop(starting);
                None
            }
            Ending::ShutDown => {
                let (outcome, ended) = tokio::join!(starting, shutdown);
                ended?;
                Some(outcome)
            }
            Ending::ShutDownWhileNobodyPolls => {
                shutdown.await?;
                Some(starting.await)
            }
        };
        match outcome {
            None => ensure!(connector.state() == State::Initializing, "the next call starts it again"),
            Some(outcome) => {
                ensure!(matches!(outcome.map(drop), Err(ConnectorError::Killed)));
                ensure!(connector.state() == State::Killed && ComfyConnector::live().is_none());
                ensure!(matches!(connector.engine().await, Err(ConnectorError::Killed)));
            }
        }
        println!("{ending:?}, after {:?}", clock.elapsed());
        bed.wait_nothing_runs().await?;
        println!("nothing runs after {:?}", clock.elapsed());
    }
    Ok(())
}

/// As a program does that adds the crate: its builder, and no goodbye.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_builder_starts_ends_with_its_last_clone() -> Result<()> {
    let _turn = my_turn().await;
    let bed = Bed::new()?;
    let incomplete = ComfyConnector::builder().workdir(&bed.engine.workdir).start().await.err();
    ensure!(matches!(incomplete, Some(ConnectorError::Incomplete(what)) if what.contains("command")));

    let mut config = ConnectorConfig::default();
    config.comfyui.path.clone_from(&bed.engine.path);
    config.browser.args = vec![bed.mark()];
    let lines = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&lines);
    let connector = ConnectorBuilder::from(config)
        .command(bed.engine.command.clone())
        .workdir(&bed.engine.workdir)
        .port(free_port()?)
        .state_dir(bed.dir.join("state"))
        .on_boot_line(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
        })
        .start()
        .await?;
    ensure!(connector.state() == State::Ready && lines.load(Ordering::Relaxed) > 0);
    let ephemeral = UploadOptions { ephemeral: true, ..UploadOptions::default() };
    let uploaded = connector.upload_data(&bed.picture("ours.png")?, &ephemeral).await?;
    let clone = connector.clone();
    drop(connector);
    ensure!(clone.validate_resources().await == Ok(()) && uploaded.is_file());
    // As from a thread that knows no runtime.
    std::thread::spawn(move || drop(clone)).join().ok().context("the drop panicked")?;
    // Whoever asks meanwhile waits for the end of that one.
    let other =
        ConnectorBuilder::from(ConnectorConfig::default()).command(["false"]).workdir(&bed.dir).start().await;
    ensure!(!matches!(other, Err(ConnectorError::OtherConfiguration)), "it is another instance");
    ensure!(!uploaded.exists());
    bed.wait_nothing_runs().await
}

/// Of a start.
#[derive(Debug)]
enum Ending {
    Dropped,
    ShutDown,
    ShutDownWhileNobodyPolls,
}
