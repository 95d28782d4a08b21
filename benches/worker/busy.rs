//! How busy a GPU is: jobs that compute for 200 ms, 8 MB in, 8 MB out, through AMQP and S3.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::json;
use testbed::quantile;

use crate::{
    bed::{BUCKET, Bed, On, drain},
    figure::Figure,
    prompts,
    queue::stages,
};

const ROW: &str = "busy";
const SECONDS: f64 = 0.2;
const MEGABYTES: u64 = 8;
/// Before the measure: connections, caches.
const WARM_UP: usize = 2;

/// An execution, as ComfyUI's own process saw it; seconds.
#[derive(Deserialize)]
struct Span {
    start: f64,
    end: f64,
}

struct Run {
    share: f64,
    gaps_ms: Vec<f64>,
    stages: String,
}

pub(crate) async fn measure(bed: &Bed, on: On) -> Result<Vec<Figure>> {
    let engine = on.name();
    let serial = run(bed, on, "0").await?;
    let ahead = run(bed, on, "auto").await?;
    let beside =
        format!("serial worker: {:.3}, gap p50 {:.1} ms", serial.share, quantile(&serial.gaps_ms, 0.5));
    let bound = match on {
        On::Standin => "what overlaps takes longer than an execution, or starts late",
        // `gc_collect_interval` in its main.py (0.3.64).
        On::Real => {
            "every 10 s ComfyUI itself collects garbage between two prompts, for a quarter of a second"
        }
    };
    let mut all = figures(&ahead, engine, &beside, bound);
    all.push(
        Figure::new(ROW, "engine busy, serial worker", serial.share, "")
            .on(engine)
            .beside("amqp.lookahead = 0"),
    );
    Ok(all)
}

fn figures(run: &Run, engine: &'static str, beside: &str, bound: &str) -> Vec<Figure> {
    let bound = format!("{bound}; {}", run.stages);
    let gap = |share| quantile(&run.gaps_ms, share);
    vec![
        Figure::new(ROW, "engine busy (execution ÷ wall)", run.share, "")
            .on(engine)
            .at_least(0.97)
            .beside(beside)
            .bound(bound.as_str()),
        Figure::new(ROW, "gap between executions, p50", gap(0.5), " ms")
            .on(engine)
            .at_most(2.0)
            .bound(bound.as_str()),
        Figure::new(ROW, "gap between executions, p99", gap(0.99), " ms")
            .on(engine)
            .at_most(20.0)
            .bound(bound),
    ]
}

async fn run(bed: &Bed, on: On, lookahead: &str) -> Result<Run> {
    let name = format!("busy-{}-{lookahead}", on.name().to_lowercase());
    let engine = bed.engine(on, &name)?;
    let builder = bed.worker(&name, &name, &engine).await?.set("amqp.lookahead", lookahead);
    let input = vec![7; usize::try_from(MEGABYTES << 20)?];
    bed.s3().await?.put(BUCKET, "in/busy.bin", input).await?;
    let (worker, mut queue) = bed.boot(&name, builder).await?;
    // What the boot runs for itself.
    let before = spans(&bed.times(&name))?.len();
    let inputs = json!({"1.file": format!("s3://{BUCKET}/in/busy.bin")});
    for number in 0..WARM_UP + bed.sizes.busy_jobs {
        let prompt = prompts::work(SECONDS, MEGABYTES, number);
        queue.publish(&format!("{name}-{number}"), &prompt, &inputs).await?;
    }
    let replies = queue.replies(WARM_UP + bed.sizes.busy_jobs).await?;
    drain(worker).await?;
    let mut spans = spans(&bed.times(&name))?;
    let expected = before + WARM_UP + bed.sizes.busy_jobs;
    ensure!(spans.len() == expected, "{} executions instead of {expected}", spans.len());
    spans.drain(..before + WARM_UP);
    let (first, last) = spans.first().zip(spans.last()).context("no job ran")?;
    let executed: f64 = spans.iter().map(|span| span.end - span.start).sum();
    Ok(Run {
        share: executed / (last.end - first.start),
        gaps_ms: spans.windows(2).map(|pair| (pair[1].start - pair[0].end) * 1000.0).collect(),
        stages: stages(&replies),
    })
}

fn spans(times: &Path) -> Result<Vec<Span>> {
    let text = fs::read_to_string(times).with_context(|| format!("cannot read {}", times.display()))?;
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}
