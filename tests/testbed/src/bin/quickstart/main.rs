//! The quick start: every real part on this machine, one job through them, everything stopped.
//! `scripts/quickstart` installs and builds what this needs and starts it.

mod demo;
mod parts;
mod report;

use std::{
    env, fs,
    fs::File,
    io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

use parts::Parts;

const USAGE: &str = "\
usage: scripts/quickstart [FOLDER]
  FOLDER: where all data goes, emptied if an earlier one's; default: target/quickstart
  COMFYUI_DIR, COMFYUI_PYTHON: run that ComfyUI instead of the stand-in";
/// Shows that a folder is a quick start's, to be emptied by the next one.
const MARK: &str = ".quickstart";
/// As a shell reports a program ended by Ctrl-C.
const INTERRUPTED: u8 = 130;

#[tokio::main]
async fn main() -> ExitCode {
    let folder = match env::args_os().nth(1) {
        Some(argument) if argument.as_encoded_bytes().starts_with(b"-") => {
            println!("{USAGE}");
            let help = argument == "-h" || argument == "--help";
            return if help { ExitCode::SUCCESS } else { ExitCode::from(2) };
        }
        argument => argument.map(PathBuf::from),
    };
    match run(folder).await {
        Ok(Ending::Done) => ExitCode::SUCCESS,
        Ok(Ending::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(error) => {
            // `{:#}`: the whole chain on one line, and no backtrace.
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

enum Ending {
    Done,
    Interrupted,
}

async fn run(folder: Option<PathBuf>) -> Result<Ending> {
    let folder = match folder {
        Some(folder) => std::path::absolute(folder)?,
        None => testbed::scratch_root()?.with_file_name("quickstart"),
    };
    let _lock = take_folder(&folder)?;
    // Listen before anything is started: a Ctrl-C must find somebody who cleans up.
    let mut interrupt = Interrupt::listen()?;

    let mut parts = Parts::new(folder);
    let outcome = tokio::select! {
        outcome = demo::run(&mut parts) => outcome.map(|()| Ending::Done),
        () = interrupt.wait() => {
            println!("\nInterrupted: stopping everything (once more: at once).");
            Ok(Ending::Interrupted)
        }
    };
    if let Err(error) = &outcome {
        eprintln!("\nfailed: {error:#}");
    }
    // The children's parent-death signal does what is left to do after a second signal.
    let stopped = tokio::select! {
        stopped = parts.stop() => stopped,
        () = interrupt.wait() => {
            println!("\nInterrupted again: what still runs is killed.");
            return Ok(Ending::Interrupted);
        }
    };
    match (outcome, stopped) {
        (Err(_), Ok(())) => bail!("the quick start failed; logs are in {}", parts.folder.display()),
        (Err(_), Err(stop)) => Err(stop.context("the quick start failed, and so did stopping it")),
        (Ok(ending), stopped) => stopped.map(|()| ending),
    }
}

/// Empties the quick start's folder and holds it against a second one. The lock lies beside it.
fn take_folder(folder: &Path) -> Result<File> {
    let path: PathBuf = folder.with_extension("lock");
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    let lock = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    if let Err(fs::TryLockError::WouldBlock) = lock.try_lock() {
        bail!("another quick start is running in this checkout");
    }
    let in_use = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
    if in_use && !folder.join(MARK).exists() {
        bail!("{} is not empty and not a quick start's: name another folder", folder.display());
    }
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot empty {}", folder.display()));
        }
        _ => fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?,
    }
    fs::write(folder.join(MARK), "").with_context(|| format!("cannot write in {}", folder.display()))?;
    Ok(lock)
}

/// INT, TERM and HUP: whichever comes, the answer is the same.
struct Interrupt(tokio::sync::watch::Receiver<u32>);

impl Interrupt {
    fn listen() -> Result<Self> {
        let (count, receiver) = tokio::sync::watch::channel(0);
        for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
            let mut signals = signal(kind).context("cannot listen for signals")?;
            let count = count.clone();
            tokio::spawn(async move {
                while signals.recv().await.is_some() {
                    count.send_modify(|count| *count += 1);
                }
            });
        }
        Ok(Self(receiver))
    }

    /// Returns at the next signal that this has not returned for.
    async fn wait(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}
