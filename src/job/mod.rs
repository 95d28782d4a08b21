//! One job: its life, and what becomes of it. What it is by contract says the crate [`contract`].
//!
//! Pure (no tokio, no vendor crate): [`decision`], [`apply`], `prompt_check`. The life itself is [`runner`].

pub mod again;
mod answer;
pub mod apply;
mod attempt;
pub mod cancel;
pub mod decision;
mod execution;
mod heartbeat;
pub mod in_flight;
pub mod incoming;
mod job_run;
mod observer;
mod preparation;
mod prompt_check;
pub mod report;
mod retries;
pub mod runner;
pub mod scheduler;
mod stage_failure;
