//! The comfy-worker command.

use std::process::ExitCode;

fn main() -> ExitCode {
    comfy_worker::cli::run()
}
