//! Everything that `ComfyConnector` promises a Rust program: its life and its ends, what is fixed
//! and what is told, uploads, the original's configuration, the examples. With ComfyUI (the one at
//! `COMFYUI_DIR`, else the stand-in) and a real Chromium.

mod bed;
mod endings;
mod examples;
mod failures;
mod life;
mod recovery;
mod starts;
mod uploads;
