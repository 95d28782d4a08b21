//! `comfy-worker man`: the manual, made of the same texts as `--help` and docs/configuration.md.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::Command;
use clap_mangen::{
    Man,
    roff::{Inline, Roff, bold, italic, roman},
};

use super::{Failed, print};
use crate::config::settings::{SETTINGS, Setting};

const ABOUT: &str = "\
For example:
  comfy-worker man | man -l -
  comfy-worker man -o /usr/local/share/man/man1";

/// What an exit code of any command means.
const EXIT_STATUS: [(&str, &str); 4] = [
    ("0", "Done; for serve: drained, also because it was idle, had run its jobs, or had grown too large."),
    ("1", "The job failed, a workflow could not be converted, or there is no such dead letter."),
    ("2", "The call or the configuration must be changed: every mistake is named, with an example."),
    ("3", "The environment failed: ComfyUI, the browser, the broker or the store."),
];

#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub(super) struct Args {
    /// A page for each command into DIR; else that of comfy-worker to standard output.
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// `command`: the command line without a flag for each setting; those get a section of their own.
pub(super) fn man(args: &Args, command: Command) -> Result<(), Failed> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    match &args.output {
        None => print::result(page(&command)?.trim_end()),
        Some(folder) => write_pages(&command, folder)?,
    }
    Ok(())
}

fn write_pages(command: &Command, folder: &Path) -> Result<(), Failed> {
    let cannot =
        |what: &Path, error: &io::Error| Failed::Usage(format!("cannot write {}: {error}", what.display()));
    fs::create_dir_all(folder).map_err(|error| cannot(folder, &error))?;
    let file = folder.join(format!("{}.1", name(command)));
    fs::write(&file, page(command)?).map_err(|error| cannot(&file, &error))?;
    command.get_subcommands().try_for_each(|command| write_pages(command, folder))
}

/// `comfy-worker-dead-list`
fn name(command: &Command) -> &str {
    command.get_display_name().unwrap_or(command.get_name())
}

fn page(command: &Command) -> Result<String, Failed> {
    let whole = name(command) == "comfy-worker";
    let source = concat!("comfy-worker ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).source(source).manual("comfy-worker");
    let mut page = Vec::new();
    let rendered = man
        .render_title(&mut page)
        .and_then(|()| man.render_name_section(&mut page))
        .and_then(|()| man.render_synopsis_section(&mut page))
        .and_then(|()| man.render_description_section(&mut page))
        .and_then(|()| man.render_options_section(&mut page))
        .and_then(|()| match command.has_subcommands() {
            true => man.render_subcommands_section(&mut page),
            false => Ok(()),
        })
        .and_then(|()| rest(command, whole).to_writer(&mut page));
    rendered.map_err(|error| Failed::Environment(format!("the manual: {error}")))?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}

/// What clap knows nothing of.
fn rest(command: &Command, whole: bool) -> Roff {
    let mut roff = Roff::new();
    if let Some(notes) = command.get_after_help() {
        roff.control("SH", ["NOTES"]);
        // As it stands: examples have lines of their own.
        roff.control("nf", []);
        roff.text([roman(notes.to_string())]);
        roff.control("fi", []);
    }
    if whole {
        settings(&mut roff);
        roff.control("SH", ["EXIT STATUS"]);
        for (code, meaning) in EXIT_STATUS {
            item(&mut roff, vec![bold(code)], meaning);
        }
        roff.control("SH", ["SEE ALSO"]);
        let pages: Vec<_> =
            command.get_subcommands().map(|command| format!("{}(1)", name(command))).collect();
        roff.text([roman(pages.join(", "))]);
    } else {
        roff.control("SH", ["SEE ALSO"]);
        roff.text([bold("comfy-worker"), roman("(1): settings, which every command takes, and exit status")]);
    }
    roff
}

fn settings(roff: &mut Roff) {
    roff.control("SH", ["SETTINGS"]);
    // Addresses are long: lines that end where they end.
    roff.control("na", []);
    roff.text([
        roman("Defaults give way to the file of "),
        bold("--config"),
        roman(" (TOML or JSON), that to environment variables, those to flags. All mistakes are reported at once."),
    ]);
    for setting in SETTINGS {
        let Setting { key, default, example, help, .. } = setting;
        item(roff, vec![bold(format!("--{}", setting.flag())), roman(" "), italic("VALUE")], help);
        let mut names = vec![roman("Key "), bold(*key), roman(", variable "), bold(setting.variable())];
        for (label, value) in [("default", default), ("for example", example)] {
            if !value.is_empty() {
                names.extend([roman(format!(", {label} ")), bold(*value)]);
            }
        }
        names.push(roman("."));
        roff.control("br", []);
        roff.text(names);
    }
    roff.control("ad", []);
}

fn item(roff: &mut Roff, head: Vec<Inline>, text: &str) {
    roff.control("TP", []);
    roff.text(head);
    roff.text([roman(text)]);
}
