//! The comfy-worker command.

use std::process::ExitCode;

fn main() -> ExitCode {
    connector::child::hide_from_others();
    connector::child::raise_file_limit();
    comfy_worker::cli::run()
}
