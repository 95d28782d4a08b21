//! One job: its contract, its life, and what becomes of it.
//!
//! Pure (no tokio, no vendor crate): [`request`], [`result`], [`event`], [`failure`], [`verdict`],
//! [`apply`]. The life itself is [`runner`].

pub mod again;
pub mod apply;
mod attempt;
pub mod event;
mod execution;
pub mod failure;
mod id;
pub mod report;
pub mod request;
pub mod result;
pub mod runner;
mod runpod;
pub mod verdict;

pub use id::JobId;
