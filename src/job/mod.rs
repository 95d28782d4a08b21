//! One job: its contract, its life, and what becomes of it.
//!
//! Pure (no tokio, no vendor crate): [`request`], [`result`], [`event`], [`failure`], [`decision`],
//! [`apply`]. The life itself is [`runner`].

pub mod again;
mod answer;
pub mod apply;
mod attempt;
pub(crate) mod bounds;
pub mod cancel;
pub mod decision;
pub mod end;
pub mod event;
mod execution;
pub mod failure;
mod heartbeat;
mod id;
pub mod incoming;
pub mod lane;
mod life;
mod met;
mod preparation;
pub mod report;
pub mod request;
pub mod result;
mod retries;
pub mod runner;
mod runpod;
#[cfg(feature = "schema")]
pub mod schema;
mod watched;

pub use id::JobId;
