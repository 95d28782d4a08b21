//! ComfyUI: its process, its HTTP calls, its websocket, and the tracking of one prompt.
//!
//! Pure (no tokio, no vendor crate): [`events`], [`tracker`], [`history`] and `json`, so that
//! recorded transcripts replay through them.

mod activity;
pub mod classes;
mod client;
mod environment;
pub mod events;
mod execute;
mod follow;
pub mod forecast;
pub mod frontend;
pub mod history;
mod inbox;
mod json;
mod liveness;
mod port;
mod process;
mod prompt_status;
mod prompt_thread;
mod socket;
pub mod tracker;

pub use client::{Client, Device, PostError, Posted, PromptPost, RequestError};
pub use execute::{ExecuteError, Executed, Execution, Observer, QueuedBehind, execute};
pub use process::{BootError, Server};
pub use socket::Socket;

use std::fmt;

use uuid::Uuid;

/// The id under which a prompt runs: ours, a new one for every post, so that an answer that was
/// lost can be looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PromptId(Uuid);

impl PromptId {
    /// A new id.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for PromptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
