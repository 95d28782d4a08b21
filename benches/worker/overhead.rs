//! What a call of the library costs beside the barest client, in turn, on the same ComfyUI.

use std::time::Instant;

use anyhow::{Context as _, Result};
use comfy_worker::Config;
use connector::{ComfyConnector, Payload};
use testbed::{Worker, median, quantile};

use crate::{
    bare::Bare,
    bed::{Bed, On},
    figure::Figure,
    prompts,
};

const WARM_UP: u32 = 10;

pub(crate) async fn measure(bed: &Bed, on: On) -> Result<Vec<Figure>> {
    let name = format!("overhead-{}", on.name().to_lowercase());
    let engine = bed.engine(on, &name)?;
    let builder = Worker::builder(&bed.binary, &bed.folder.join(&name))?.engine(&engine);
    let config = Config::from_file(&builder.write_config()?)?;
    let connector = ComfyConnector::create(config.connector().await).await?;
    let outcome = calls(bed, &connector).await;
    connector.shutdown().await;
    let (ours, bare) = outcome?;
    let (typical, barest) = (median(&ours), median(&bare));
    let beside = format!(
        "p50 {typical:.1} ms, bare client {barest:.1} ms; p99 {:.1} and {:.1} ms ({} calls each)",
        quantile(&ours, 0.99),
        quantile(&bare, 0.99),
        ours.len(),
    );
    let bound = format!(
        "{:.1} ms more a call: the prompt goes out under an id of our own, and every frame is tracked",
        typical - barest
    );
    let figure = Figure::new("overhead", "run_workflow ÷ bare HTTP + websocket", typical / barest, "")
        .on(on.name())
        .at_most(1.1)
        .beside(beside)
        .bound(bound);
    Ok(vec![figure])
}

/// Milliseconds of each call: ours, and the bare client's.
async fn calls(bed: &Bed, connector: &ComfyConnector) -> Result<(Vec<f64>, Vec<f64>)> {
    let address = connector.server_address().context("no ComfyUI")?;
    let mut client = Bare::connect(&address).await?;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for number in 0..WARM_UP + bed.sizes.calls {
        let mut call = [0.0; 2];
        // In turn first, so that neither always finds what the other one warmed.
        for turn in [number % 2, 1 - number % 2] {
            let prompt = prompts::tiny(2 * number + turn + 1);
            let begin = Instant::now();
            if turn == 0 {
                connector.run_workflow(Payload::Prompt(prompt)).await?;
            } else {
                client.run(&prompt).await?;
            }
            call[usize::try_from(turn)?] = begin.elapsed().as_secs_f64() * 1000.0;
        }
        if number >= WARM_UP {
            ours.push(call[0]);
            bare.push(call[1]);
        }
    }
    Ok((ours, bare))
}
