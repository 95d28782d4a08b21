//! comfy-worker: the serverless ComfyUI worker.

pub mod browser;
pub mod child;
pub mod config;
pub mod queue;
pub mod store;
pub(crate) mod text;
