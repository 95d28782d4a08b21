//! What a worker tells: traces, taken by a real OTLP receiver; logs, line by line; and that neither tells a secret.
//! `comfy-worker serve` runs as a process of its own, with a real RabbitMQ, S3 protocol server and Chromium, and the
//! stand-in.

// The publisher and the place of a worker are those of the drain tests.
#[path = "../drain/bed.rs"]
#[allow(dead_code, reason = "the drain tests need more of it")]
mod bed;
mod broken;
mod logs;
mod secrets;
#[path = "../drain/site.rs"]
#[allow(dead_code, reason = "the drain tests need more of it")]
mod site;
mod story;
mod submit;
mod traces;

use std::time::Duration;

use anyhow::Result;
use bed::Bed;
use site::Site;
use testbed::Collector;

/// For a boot: 5 s on an idle machine, more on a busy one.
const BOOT: Duration = Duration::from_secs(300);
/// For what takes milliseconds on an idle machine, and a batch of spans 5 s.
const SOON: Duration = Duration::from_secs(60);
/// For a job with everything around it.
const JOB: Duration = Duration::from_secs(240);
/// After the grace: interrupting, handing back, stopping ComfyUI and the browser.
const ENDING: Duration = Duration::from_secs(8);

/// A worker that is traced.
fn traced(bed: &Bed, name: &str, collector: &Collector) -> Result<Site> {
    Ok(Site::light(bed, name)?.set("traces.endpoint", collector.url()).env("OTEL_BSP_SCHEDULE_DELAY", "200"))
}
