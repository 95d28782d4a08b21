//! Runs jobs: accept, prepare, execute, deliver, and what follows from a failure. What a job is, the crate [`contract`]
//! defines.
//!
//! Pure (no tokio, no vendor crate): [`decision`], [`apply`], `prompt_check`. It begins in [`runner`].

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
mod progress;
mod prompt_check;
mod report;
mod retries;
pub mod runner;
pub mod scheduler;
mod stage_failure;
