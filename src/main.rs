//! The comfy-worker binary.
fn main() {}
