//! `comfy-worker completions`: what a shell offers behind the Tab key.

use clap_complete::{Shell, generate};

use super::print;

const ABOUT: &str = "\
For example:
  comfy-worker completions bash > /usr/share/bash-completion/completions/comfy-worker
  comfy-worker completions zsh > /usr/share/zsh/vendor-completions/_comfy-worker
  comfy-worker completions fish > /usr/share/fish/vendor_completions.d/comfy-worker.fish";

#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub(super) struct Args {
    /// The shell.
    shell: Shell,
}

pub(super) fn completions(args: &Args, mut command: clap::Command) {
    // Not straight to standard output: a reader that goes away would be a panic.
    let mut script = Vec::new();
    generate(args.shell, &mut command, "comfy-worker", &mut script);
    // clap #6421: in bash a name with a hyphen is written in two ways, and nothing behind a subcommand
    // is completed. Once that is fixed there is nothing to replace.
    let script = String::from_utf8_lossy(&script).replace("comfy__subcmd__worker", "comfy__worker");
    print::result(script.trim_end());
}
