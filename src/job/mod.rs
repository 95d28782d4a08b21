//! One job: its contract, its life, and what becomes of it.
//!
//! Pure (no tokio, no vendor crate): [`request`], [`result`], [`event`], [`failure`], [`verdict`],
//! [`apply`]. The life itself is [`runner`].

pub mod again;
mod answer;
pub mod apply;
mod attempt;
pub(crate) mod bounds;
pub mod cancel;
pub mod end;
pub mod event;
mod execution;
pub mod failure;
mod id;
pub mod incoming;
pub mod lane;
mod met;
mod preparation;
pub mod report;
pub mod request;
pub mod result;
pub mod runner;
mod runpod;
#[cfg(feature = "schema")]
pub mod schema;
pub mod verdict;
mod watched;

pub use id::JobId;
