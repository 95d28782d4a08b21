//! Runs jobs: accept, prepare, execute, deliver, and what follows from a failure. What a job is, the crate [`contract`]
//! defines.
//!
//! Pure (no tokio, no vendor crate): [`decision`], [`apply`], `prompt_check`. It begins in [`runner`].

mod answer;
pub mod apply;
mod attempt;
pub mod cancel;
pub mod decision;
mod execution;
mod heartbeat;
pub mod in_flight;
mod job_run;
pub mod message;
mod observer;
mod preparation;
mod progress;
mod prompt_check;
mod report;
pub mod reset;
mod retries;
pub mod runner;
pub mod scheduler;
mod stage_failure;
