//! The comfy-worker command.

use std::process::ExitCode;

fn main() -> ExitCode {
    comfy_worker::child::hide_from_others();
    comfy_worker::child::raise_file_limit();
    comfy_worker::cli::run()
}
