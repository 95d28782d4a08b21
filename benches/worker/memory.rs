//! What the worker's own process holds, idle and while a large file passes.

use anyhow::Result;

use crate::{bed::Bed, figure::Figure, large};

pub(crate) async fn measure(bed: &Bed) -> Result<Vec<Figure>> {
    let pass = large::pass(bed).await?;
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let (idle, more) = (megabytes(pass.idle), megabytes(pass.peak.saturating_sub(pass.idle)));
    Ok(vec![
        Figure::new("memory", "worker's memory, idle", idle, " MB")
            .at_most(48.0)
            .beside("resident, with ComfyUI and Chromium up")
            .bound("node definitions and conversions that are kept, and the code itself"),
        Figure::new("memory", "more while a large file passes", more, " MB")
            .at_most(32.0)
            .beside(format!("peak {:.1} MB; {} MiB in and out", megabytes(pass.peak), bed.sizes.megabytes))
            .bound("buffers of the download and of the parts that are uploaded side by side"),
    ])
}
