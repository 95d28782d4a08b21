//! One job: its contract, its life, and what becomes of it.
//!
//! Pure (no tokio, no vendor crate): [`request`], [`result`], [`event`], [`failure`], [`verdict`],
//! [`apply`]. The life itself is [`runner`].

pub mod apply;
pub mod event;
pub mod failure;
mod id;
pub mod report;
pub mod request;
pub mod result;
mod runpod;
pub mod verdict;

pub use id::JobId;
