//! From the start of the worker until it takes jobs, beside ComfyUI alone until it answers.

use std::time::Instant;

use anyhow::Result;

use crate::{
    bed::{Bed, On, drain, seconds_until_ok},
    figure::{Figure, median},
};

pub(crate) async fn measure(bed: &Bed, on: On) -> Result<Vec<Figure>> {
    let name = format!("cold-{}", on.name().to_lowercase());
    let engine = bed.engine(on, &name)?;
    let builder = bed.worker(&name, &name, &engine).await?;
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    // Once each to begin with, not counted: the disk's caches are warm for both.
    for round in 0..=bed.sizes.starts {
        let begin = Instant::now();
        let running = engine.spawn().await?;
        let alone = seconds_until_ok(&format!("{}/system_stats", running.url()), begin).await?;
        running.stop().await?;
        let begin = Instant::now();
        let worker = builder.clone().start().await?;
        let ready = seconds_until_ok(&worker.admin_url("/readyz"), begin).await?;
        drain(worker).await?;
        if round > 0 {
            bare.push(alone);
            ours.push(ready);
        }
    }
    let (ready, alone) = (median(&ours), median(&bare));
    let bound = format!(
        "{:.1} s more than ComfyUI alone: Chromium starts beside it, but the page can load only when it \
         answers, then the self-test converts and runs, and a spare page is made ready",
        ready - alone
    );
    let figure = Figure::new("cold", "start to ready ÷ ComfyUI alone", ready / alone, "")
        .on(on.name())
        .at_most(1.1)
        .beside(format!("{ready:.1} s, ComfyUI {alone:.1} s (medians of {})", ours.len()))
        .bound(bound);
    Ok(vec![figure])
}
