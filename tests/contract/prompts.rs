//! Prompts that no other test has put into the execution cache.

use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};
use uuid::Uuid;

/// A number that this run has not used.
pub(crate) fn fresh() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

pub(crate) fn image(batch_size: u32) -> Value {
    json!({"class_type": "EmptyImage",
           "inputs": {"width": 64, "height": 64, "batch_size": batch_size, "color": fresh()}})
}

pub(crate) fn save(from: &str, prefix: &str) -> Value {
    json!({"class_type": "SaveImage", "inputs": {"images": [from, 0], "filename_prefix": prefix}})
}

/// A picture made, inverted and saved.
pub(crate) fn inverted(prefix: &str) -> Value {
    let invert = json!({"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}});
    json!({"1": image(1), "2": invert, "3": save("2", prefix)})
}

/// A picture made and saved under a prefix of its own.
pub(crate) fn saved() -> Value {
    json!({"1": image(1), "2": save("1", &prefix())})
}

pub(crate) fn prefix() -> String {
    format!("p{}", Uuid::new_v4().simple())
}

/// Works for long, and looks for an interrupt between its many nodes.
pub(crate) fn busy() -> Value {
    const NODES: u32 = 80;
    let mut prompt = json!({"1": {"class_type": "EmptyImage",
        "inputs": {"width": 1024, "height": 1024, "batch_size": 1, "color": fresh()}}});
    for id in 2..NODES {
        prompt[id.to_string()] = json!({"class_type": "ImageBlur",
            "inputs": {"image": [(id - 1).to_string(), 0], "blur_radius": 9, "sigma": 4.0}});
    }
    prompt["save"] = save(&(NODES - 1).to_string(), &prefix());
    prompt
}
