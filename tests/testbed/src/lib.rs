//! Real parts for tests and the quick start: a private RabbitMQ, an S3 server, ComfyUI (a real one
//! or its stand-in) and the worker itself, each on free loopback ports with its data in a folder of
//! the caller's.
//!
//! Invariant: whatever is started here ends with the process that started it, SIGKILL included,
//! and touches nothing outside the folder it was given.

mod background;
mod collector;
pub mod contract;
mod engine;
mod figures;
mod front;
mod gate;
mod limits;
mod picture;
mod pixels;
mod ports;
mod processes;
mod rabbitmq;
mod s3;
mod scratch;
mod stop;
mod svg;
mod wait;
mod worker;

pub use collector::{Collector, Reception, TracedSpan};
pub use engine::{Engine, RunningEngine};
pub use figures::{Machine, median, quantile, table};
pub use front::{Front, Spoil};
pub use gate::{Fault, Gate};
pub use picture::{landscape, png};
pub use pixels::Pixels;
pub use ports::free_port;
pub use processes::{
    ProcessInfo, alive, cpu_seconds, descendants, processes_with_env_or_cwd_beneath, zombies,
};
pub use rabbitmq::{Extras, RabbitMq, RawMessage};
pub use rustix::process::Signal;
pub use s3::S3Server;
pub use scratch::{build_folder, checkout, folder_of_process, scratch_root};
pub use stop::{nothing_left, stopped};
pub use svg::Svg;
pub use wait::{wait_for, wait_for_value};
pub use worker::{Worker, WorkerBuilder};
