//! What the worker relies on in ComfyUI, asserted over the wire.
//!
//! Everything but [`faults`] runs against the ComfyUI at `COMFYUI_DIR` (with `COMFYUI_PYTHON`), else
//! against the stand-in of `tests/standin`: one server, one test at a time, since queue and execution
//! cache are the server's. [`faults`] needs the stand-in's misbehaviour and starts its own.

mod bed;
mod cache;
mod control;
mod faults;
mod files;
mod frames;
mod info;
mod ours;
mod prompts;
mod recorded;
mod refusals;
mod runs;
mod sockets;
