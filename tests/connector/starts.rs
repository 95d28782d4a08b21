//! The start: ComfyUI and browser side by side, cut short by a drop or a shutdown.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use comfy_worker::{ComfyConnector, ConnectorError, Ill, State};
use testbed::wait_for;

use super::bed::{Bed, LIMIT, my_turn};

#[tokio::test(flavor = "multi_thread")]
async fn both_start_side_by_side_and_end_when_the_start_is_dropped_or_shut_down() -> Result<()> {
    let _turn = my_turn().await;
    let bed = Bed::standin()?;
    let config = bed.config(&[("comfyui.env", "STANDIN_BOOT_DELAY=600")])?;
    for dropped in [true, false] {
        let config = config.clone();
        let starting = tokio::spawn(async move { ComfyConnector::create(&config).await.map(drop) });
        // ComfyUI will not answer for ten minutes.
        wait_for("ComfyUI and Chromium", LIMIT, || async {
            bed.comfyui().is_some() && bed.chromium().is_some()
        })
        .await?;
        let connector = ComfyConnector::live().context("none is live")?;
        ensure!(connector.state() == State::Initializing);
        ensure!(connector.server_address().is_none() && connector.client_id().is_none());
        ensure!(connector.validate_resources().await == Err(Ill::NotRunning));
        let clock = Instant::now();
        if dropped {
            starting.abort();
            ensure!(starting.await.is_err_and(|error| error.is_cancelled()));
            ensure!(connector.state() == State::Initializing, "the next call starts it again");
        } else {
            ComfyConnector::shutdown_live().await;
            ensure!(clock.elapsed() < Duration::from_secs(5), "{:?}", clock.elapsed());
            ensure!(matches!(starting.await?, Err(ConnectorError::Killed)));
            ensure!(connector.state() == State::Killed && ComfyConnector::live().is_none());
            ensure!(matches!(connector.engine().await, Err(ConnectorError::Killed)));
        }
        println!("dropped: {dropped}, after {:?}", clock.elapsed());
        bed.wait_nothing_runs().await?;
        println!("nothing runs after {:?}", clock.elapsed());
    }
    Ok(())
}
