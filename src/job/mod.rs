//! One job: its life, and what becomes of it. What it is by contract says the crate [`contract`].
//!
//! Pure (no tokio, no vendor crate): [`decision`], [`apply`], `links`. The life itself is [`runner`].

pub mod again;
mod answer;
pub mod apply;
mod attempt;
pub mod cancel;
pub mod decision;
pub mod end;
mod execution;
mod heartbeat;
pub mod incoming;
pub mod lane;
mod life;
mod links;
mod met;
mod preparation;
pub mod report;
mod retries;
pub mod runner;
mod watched;
