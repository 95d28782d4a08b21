//! The status page in a headless Chromium: on a board that a test writes (looks, hostile texts, keys), and
//! on the real parts (a worker's life).
//!
//! Pictures of it lie in `target/tmp/page` afterwards. With `STATUS_PAGE_PICTURE=1` the one in the README is
//! made again.

// Broker, store and place of a worker are those of the drain tests.
#[path = "../drain/bed.rs"]
#[allow(dead_code, reason = "the drain tests need more of it")]
mod bed;
mod board;
mod browser;
mod hostile;
mod keys;
mod life;
mod line;
mod looks;
#[path = "../drain/site.rs"]
#[allow(dead_code, reason = "the drain tests need more of it")]
mod site;

use std::time::Duration;

/// For a boot: 5 s on an idle machine, more on a busy one.
const BOOT: Duration = Duration::from_secs(300);
/// For what takes milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(60);
/// For a job with everything around it.
const JOB: Duration = Duration::from_secs(240);
/// After the grace: interrupting, handing back, stopping ComfyUI and the browser.
const ENDING: Duration = Duration::from_secs(8);
