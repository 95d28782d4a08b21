//! From the start of the worker until it takes jobs, beside ComfyUI alone until it answers.

use std::time::Instant;

use anyhow::Result;
use testbed::median;

use crate::{
    bed::{Bed, On, drain, seconds_until_ok},
    figure::Figure,
};

/// Seconds.
const IMPORTS: &str = "8";

pub(crate) async fn measure(bed: &Bed, on: On) -> Result<Vec<Figure>> {
    let name = format!("cold-{}", on.name().to_lowercase());
    let mut engine = bed.engine(on, &name)?;
    if on == On::Standin {
        // It imports nothing: as long as ComfyUI 0.3.64 without custom nodes takes on two cores.
        engine.command.extend(["--boot-delay".into(), IMPORTS.into()]);
    }
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
        "{:.1} s more than ComfyUI alone: the page has run the frontend by then, but gets node definitions and \
         extensions only when ComfyUI answers; then the self-test converts and runs",
        ready - alone
    );
    let figure = Figure::new("cold", "start to ready ÷ ComfyUI alone", ready / alone, "")
        .on(on.name())
        .at_most(1.1)
        .beside(format!("{ready:.1} s, ComfyUI {alone:.1} s (medians of {})", ours.len()))
        .bound(bound);
    Ok(vec![figure])
}
