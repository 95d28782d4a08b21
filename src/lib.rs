//! comfy-worker: the serverless ComfyUI worker.
//!
//! One process a container boots ComfyUI and a headless Chromium once, takes jobs from RabbitMQ,
//! stages their inputs, turns UI workflows into prompts with ComfyUI's own frontend, runs them,
//! uploads what they made, answers, acks, and drains when it is told to.
//!
//! ```text
//! main → cli → app ─┬─ queue ............ RabbitMQ (lapin)
//!                   ├─ job::runner ─┬─ connector ─┬─ comfy ..... process, HTTP, websocket, tracker
//!                   │               │             ├─ browser ... Chromium, graphToPrompt
//!                   │               │             ├─ stage ..... inputs → ComfyUI's folders, journalled
//!                   │               │             └─ deliver ... outputs → store
//!                   │               └─ store .... S3 or a folder
//!                   ├─ admin ............ health, status, the status page
//!                   └─ telemetry ........ logs, traces, secrets taken out of both
//! ```
//!
//! A delivery is taken and settled in [`app`]; its job runs in [`job::runner`]; what follows from a failure is
//! decided in one function, [`job::decision::decide`].
//!
//! Invariants: outputs are durable before the result (`result.json`), the result before the
//! published result's confirm, the confirm before the ack. A result is created once and never
//! changed. No child, file or listener outlives the worker.

pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod dependency;
pub mod events;
pub mod job;
pub mod lifecycle;
pub mod metrics;
pub mod queue;
pub mod requeue;
pub mod store;
pub mod telemetry;

pub use config::Config;
pub use connector;
pub use contract;
