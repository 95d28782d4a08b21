//! Conversion in a real Chromium with the frontend that ComfyUI serves: the real one at
//! `COMFYUI_DIR`, else the stand-in.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bare;
mod conversions;
mod draw;
mod early;
mod failures;
mod frontends;
mod golden;
mod hostile;
mod installed;
mod isolation;
mod kinds;
mod known;
mod processes;
mod start_and_end;
mod started;
mod templates;
mod workflows;
