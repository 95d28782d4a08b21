//! How jobs and workers end, and what they leave: cancels, deadlines, signals, kills, outages. `comfy-worker serve` runs as a
//! process of its own, with a real RabbitMQ, S3 protocol server and Chromium, and ComfyUI or its
//! stand-in.

mod away;
mod bed;
mod cancel;
mod dead;
mod deadlines;
mod engine;
mod envelopes;
mod hostile;
mod kills;
mod lookahead;
mod metrics;
mod models;
mod outages;
mod outputs;
mod proof;
mod refusals;
mod removals;
mod second;
mod serverless;
mod signals;
mod site;
mod supervision;

use std::time::Duration;

/// For a boot: 5 s on an idle machine, more on a busy one, and a real ComfyUI reads much from disk.
const BOOT: Duration = Duration::from_secs(300);
/// For what takes milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(60);
/// For a job with everything around it.
const JOB: Duration = Duration::from_secs(240);
/// After the grace: interrupting, handing back, stopping ComfyUI and the browser.
const ENDING: Duration = Duration::from_secs(8);
