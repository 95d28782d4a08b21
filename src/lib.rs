//! comfy-worker: the serverless ComfyUI worker.

pub mod browser;
pub(crate) mod checksum;
pub mod child;
pub mod comfy;
pub mod config;
pub mod connector;
pub mod deliver;
pub mod job;
pub mod queue;
pub mod stage;
pub mod store;
pub(crate) mod text;
