//! What is run.

use serde_json::{Value, json};

/// Computes (sleeps) and writes so much; `1.file` is its input.
pub(crate) fn work(seconds: f64, megabytes: u64, seed: usize) -> Value {
    json!({"1": {"class_type": "StandinWork", "inputs": {
        "file": "", "seconds": seconds, "megabytes": megabytes, "filename_prefix": "work", "seed": seed,
    }}})
}

/// A picture of one color, saved. A color of its own each time: nothing is cached.
pub(crate) fn tiny(color: u32) -> Value {
    json!({
        "1": {"class_type": "EmptyImage",
              "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": color}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "tiny"}},
    })
}
