//! A Chromium for a machine that has none: Chrome for Testing's headless shell, downloaded once.
//!
//! ```text
//! <InstallConfig::folder>/.lock           held while one worker installs
//!                         download.part   the archive so far
//!                         .unpack-…       what is being unpacked
//!                         <source>/       an installed one, renamed into place whole
//! ```

use std::{
    error::Error,
    fs::{self, DirBuilder, File, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use contract::text::one_line;
use reqwest::{Client, Response, redirect::Policy};
use serde_json::Value;
use tokio::{
    io::AsyncWriteExt,
    task::spawn_blocking,
    time::{sleep, timeout},
};
use url::Url;

use super::{ConvertError, find, unpack::unpack};
use crate::{
    checksum,
    config::{BrowserConfig, InstallConfig},
};

/// The download, or the wait for another worker's.
const LIMIT: Duration = Duration::from_secs(30 * 60);
/// A server that sends nothing for this long is given up.
const STALL_LIMIT: Duration = Duration::from_secs(30);
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const ARCHIVE_BYTES: u64 = 1 << 30;
/// The index of Chrome for Testing has 4 KB.
const INDEX_BYTES: u64 = 4 << 20;
const REDIRECTS: usize = 5;
const PLATFORM: &str = "linux64";
const BUILD: &str = "chrome-headless-shell";
const PROGRAMS: [&str; 3] = [BUILD, "chrome", "headless_shell"];

/// The Chromium to start: the one that is found, else the one that was installed before, else, where
/// `browser.auto_install` allows it, a new one.
///
/// # Errors
/// [`ConvertError::Browser`] with one line: how to get one, or what the installation met.
pub(super) async fn chromium(config: &BrowserConfig) -> Result<PathBuf, ConvertError> {
    if let Some(program) = find::chromium(config.executable.as_deref())? {
        return Ok(program);
    }
    let failed = |reason: String| ConvertError::Browser(one_line(&reason, 600));
    let Some(install) = &config.install else {
        return Err(failed(
            "there is no Chromium: install one (apt install chromium), name one in browser.executable or \
             CHROME, or allow the worker to download one (browser.auto_install = true)"
                .into(),
        ));
    };
    let InstallConfig { source, folder } = install;
    installed(folder, source).await.map_err(|reason| {
        failed(format!("there is no Chromium, and none could be installed from {source}: {reason}"))
    })
}

/// The program installed from `source`, now or earlier.
async fn installed(folder: &Path, source: &Url) -> Result<PathBuf, String> {
    let name = checksum::of_bytes(source.as_str().as_bytes());
    let home = folder.join(name.get(..16).unwrap_or(&name));
    if let Some(program) = program_in(&home) {
        return Ok(program);
    }
    let in_folder = |error: io::Error| format!("{}: {error}", folder.display());
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(in_folder)?;
    let lock = lock(&folder.join(".lock")).await?;
    // Another worker may have been faster.
    if let Some(program) = program_in(&home) {
        return Ok(program);
    }
    remove_leftovers(folder);
    let part = folder.join("download.part");
    let downloaded = timeout(LIMIT, download(source, &part)).await;
    if let Err(reason) = downloaded.unwrap_or_else(|_| Err(format!("not there after {LIMIT:?}"))) {
        let _ = fs::remove_file(&part);
        return Err(reason);
    }
    let (folder, into) = (folder.to_owned(), home.clone());
    let placed = spawn_blocking(move || {
        let placed = place(&folder, &part, &into);
        let _ = fs::remove_file(&part);
        // Only now, whether somebody still waits for it or not.
        drop(lock);
        placed
    });
    placed.await.map_err(|error| error.to_string())??;
    let program = program_in(&home).ok_or("the archive was removed at once")?;
    tracing::info!(program = %program.display(), "Chromium is installed");
    Ok(program)
}

/// Held until it is dropped, or this process ends.
async fn lock(path: &Path) -> Result<File, String> {
    let told = |error: io::Error| format!("{}: {error}", path.display());
    let file = File::options().create(true).truncate(false).write(true).open(path).map_err(told)?;
    let started = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(told(error)),
            Err(TryLockError::WouldBlock) if started.elapsed() < LIMIT => {
                sleep(Duration::from_millis(200)).await
            }
            Err(TryLockError::WouldBlock) => return Err("another worker installs it and does not end".into()),
        }
    }
}

/// What a worker left that was killed while it installed. The caller holds the lock.
fn remove_leftovers(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(".unpack-") {
            let _ = crate::files::remove_folder(&entry.path());
        }
    }
}

/// Downloads the archive that `source` is, or that its index names.
async fn download(source: &Url, part: &Path) -> Result<(), String> {
    if cfg!(not(target_arch = "x86_64")) && !is_archive(source) {
        return Err("there is no build for this machine: name an archive in browser.download".into());
    }
    let client = Client::builder()
        .connect_timeout(CONNECT_LIMIT)
        .read_timeout(STALL_LIMIT)
        .redirect(Policy::custom(|attempt| {
            let secure = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
            if attempt.previous().len() > REDIRECTS {
                attempt.error("too many redirects")
            } else if secure && attempt.url().scheme() != "https" {
                attempt.error("a redirect away from https")
            } else {
                attempt.follow()
            }
        }))
        .build()
        .map_err(|error| describe(&error))?;
    let archive = if is_archive(source) { source.clone() } else { latest(&client, source).await? };
    let response = get(&client, &archive).await?;
    save(response, &archive, part).await
}

fn is_archive(url: &Url) -> bool {
    url.path().ends_with(".zip")
}

/// The archive of the stable channel that Chrome for Testing's index names.
async fn latest(client: &Client, index: &Url) -> Result<Url, String> {
    let mut response = get(client, index).await?;
    let mut text = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| describe(&error))? {
        text.extend_from_slice(&chunk);
        if text.len() as u64 > INDEX_BYTES {
            return Err(format!("the index has more than {} MiB", INDEX_BYTES >> 20));
        }
    }
    let names: Value =
        serde_json::from_slice(&text).map_err(|error| format!("the index is no JSON: {error}"))?;
    let builds = names["channels"]["Stable"]["downloads"][BUILD].as_array().into_iter().flatten();
    let url = builds
        .filter(|build| build["platform"] == PLATFORM)
        .find_map(|build| build["url"].as_str()?.parse::<Url>().ok())
        .ok_or_else(|| format!("the index names no {BUILD} for {PLATFORM}"))?;
    match (url.scheme(), index.scheme()) {
        ("https", _) | ("http", "http") => Ok(url),
        _ => Err(format!("the index leads away from https, to {url}")),
    }
}

async fn get(client: &Client, url: &Url) -> Result<Response, String> {
    let response =
        client.get(url.clone()).send().await.map_err(|error| format!("{url}: {}", describe(&error)))?;
    match response.status() {
        status if status.is_success() => Ok(response),
        status => Err(format!("{url} answered {status}")),
    }
}

async fn save(mut response: Response, url: &Url, part: &Path) -> Result<(), String> {
    let whole = response.content_length();
    let too_large = || format!("{url} has more than {} GiB", ARCHIVE_BYTES >> 30);
    if whole.is_some_and(|bytes| bytes > ARCHIVE_BYTES) {
        return Err(too_large());
    }
    tracing::info!(%url, bytes = whole, "downloading Chromium");
    let cannot_write = |error: io::Error| format!("cannot write {}: {error}", part.display());
    let mut file = tokio::fs::File::create(part).await.map_err(cannot_write)?;
    let (mut bytes, mut told) = (0, Instant::now());
    while let Some(chunk) = response.chunk().await.map_err(|error| format!("{url}: {}", describe(&error)))? {
        bytes += chunk.len() as u64;
        if bytes > ARCHIVE_BYTES {
            return Err(too_large());
        }
        file.write_all(&chunk).await.map_err(cannot_write)?;
        if told.elapsed() > Duration::from_secs(5) {
            tracing::info!(bytes, of = whole, "downloading Chromium");
            told = Instant::now();
        }
    }
    file.flush().await.map_err(cannot_write)
}

/// Unpacks `part` beside `home`, and renames the whole there. Blocks.
fn place(folder: &Path, part: &Path, home: &Path) -> Result<(), String> {
    let told = |error: io::Error| format!("{}: {error}", folder.display());
    let unpacked = tempfile::Builder::new().prefix(".unpack-").tempdir_in(folder).map_err(told)?;
    unpack(File::open(part).map_err(told)?, unpacked.path())?;
    let program = candidates(unpacked.path()).into_iter().find(|path| path.is_file());
    let program = program.ok_or_else(|| format!("it holds none of {}", PROGRAMS.join(", ")))?;
    fs::set_permissions(program, fs::Permissions::from_mode(0o755)).map_err(told)?;
    // One that is no program, or it would have been taken.
    let _ = crate::files::remove_folder(home);
    fs::rename(unpacked.path(), home).map_err(told)
}

fn program_in(home: &Path) -> Option<PathBuf> {
    candidates(home).into_iter().find(|path| find::is_program(path))
}

/// Where an archive may keep the program: at its top, or in the one folder that it holds.
fn candidates(home: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(home).into_iter().flatten().flatten().map(|entry| entry.path());
    let folders = std::iter::once(home.to_owned()).chain(entries);
    folders.flat_map(|folder| PROGRAMS.map(|name| folder.join(name))).collect()
}

/// The innermost cause: reqwest's own text says only "error sending request".
fn describe(error: &reqwest::Error) -> String {
    let mut cause: &dyn Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
#[path = "install_tests.rs"]
mod tests;
