//! Sources: read in a stream, bounded before and while they are read, summed as they pass.

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use base64::Engine;
use tokio::{
    fs::File,
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use uuid::Uuid;

use super::names::FileName;
use crate::{
    checksum,
    job::{failure::Failure, request::FileSource},
    store::{ObjectStore, ObjectUri, StoreError, UriError},
    text::one_line,
};

/// A read that brings nothing for this long has failed.
const STALL_LIMIT: Duration = Duration::from_secs(60);
const CHUNK: usize = 256 * 1024;

/// What is left of the bytes that one job may fetch.
#[derive(Debug)]
pub(super) struct Budget {
    limit: u64,
    used: AtomicU64,
}

impl Budget {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, used: AtomicU64::new(0) }
    }

    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: u64, source: &str) -> Result<(), Failure> {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if used > self.limit {
            let limit = self.limit;
            return Err(Failure::InputTooLarge(format!(
                "{}: the job's inputs are larger than {limit} bytes (inputs.max_bytes)",
                show(source)
            )));
        }
        Ok(())
    }

    fn check(&self, bytes: u64, source: &str) -> Result<(), Failure> {
        if self.used().saturating_add(bytes) > self.limit { self.take(bytes, source) } else { Ok(()) }
    }
}

/// Reads sources from where they may be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fetcher<'a> {
    pub(super) store: &'a dyn ObjectStore,
    pub(super) allow: &'a [String],
}

impl Fetcher<'_> {
    /// Fetches `source` to `target`, by way of a `.part` file beside it.
    pub(super) async fn fetch(
        self,
        source: &str,
        sha256: Option<&str>,
        target: PathBuf,
        budget: &Budget,
    ) -> Result<(), Failure> {
        // A random name: `x.part` could be the name of another input.
        let part = target.with_file_name(format!(".{}.part", Uuid::new_v4().simple()));
        let local = |error: std::io::Error| Failure::local(part.display(), &error);
        let mut file = File::create_new(&part).await.map_err(local)?;
        let fetched = match self.open(source, budget).await {
            Ok(body) => copy(body, &mut file, source, budget).await,
            Err(failure) => Err(failure),
        };
        let outcome = match fetched {
            Ok(sum) if sha256.is_some_and(|expected| !expected.eq_ignore_ascii_case(&sum)) => {
                Err(Failure::ChecksumMismatch(format!(
                    "{}: its SHA-256 is {sum}, not {}",
                    show(source),
                    sha256.unwrap_or_default()
                )))
            }
            Ok(_) => tokio::fs::rename(&part, &target).await.map_err(local),
            Err(failure) => Err(failure),
        };
        if outcome.is_err() {
            let _ = tokio::fs::remove_file(&part).await;
        }
        outcome
    }

    /// Reads an object of at most `limit` bytes into memory.
    pub(super) async fn read(&self, source: &str, limit: u64) -> Result<bytes::Bytes, Failure> {
        self.store.read(&self.allowed(source)?, limit).await.map_err(store_failure)
    }

    fn allowed(&self, source: &str) -> Result<ObjectUri, Failure> {
        let uri: ObjectUri = source
            .parse()
            .map_err(|error: UriError| Failure::UnsupportedUri(one_line(&error.to_string(), 400)))?;
        if uri.is_beneath(self.allow) {
            return Ok(uri);
        }
        let source = show(source);
        Err(Failure::InputForbidden(format!("{source}: inputs may not come from there (inputs.allow)")))
    }

    async fn open(&self, source: &str, budget: &Budget) -> Result<Pin<Box<dyn AsyncRead + Send>>, Failure> {
        if let Some(content) = source.strip_prefix("data:") {
            let bytes = decode_data(content)
                .map_err(|problem| Failure::Invalid(format!("{}: {problem}", show(source))))?;
            budget.check(bytes.len() as u64, source)?;
            return Ok(Box::pin(std::io::Cursor::new(bytes)));
        }
        if source.starts_with("http://") || source.starts_with("https://") {
            return Err(Failure::InputForbidden(format!(
                "{}: web hosts are not open to jobs here",
                show(source)
            )));
        }
        let uri = self.allowed(source)?;
        let object = self.store.open(&uri).await.map_err(store_failure)?;
        if let Some(size) = object.size {
            budget.check(size, source)?;
        }
        Ok(object.body)
    }
}

/// What a store's answer means for a job that wanted to read.
fn store_failure(error: StoreError) -> Failure {
    let message = error.to_string();
    match error {
        StoreError::NotFound { .. } => Failure::InputNotFound(message),
        StoreError::Forbidden { .. } => Failure::InputForbidden(message),
        StoreError::TooLarge { .. } => Failure::InputTooLarge(message),
        StoreError::Misconfigured { .. } | StoreError::Changed { .. } | StoreError::Unavailable { .. } => {
            Failure::StoreUnavailable(message)
        }
        StoreError::Local { .. } => Failure::Local(message),
    }
}

async fn copy(
    mut body: Pin<Box<dyn AsyncRead + Send>>,
    file: &mut File,
    source: &str,
    budget: &Budget,
) -> Result<String, Failure> {
    let mut sum = checksum::Running::default();
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = timeout(STALL_LIMIT, body.read(&mut chunk))
            .await
            .map_err(|_| {
                Failure::StoreUnavailable(format!("{}: nothing came for {STALL_LIMIT:?}", show(source)))
            })?
            .map_err(|error| Failure::StoreUnavailable(format!("{}: {error}", show(source))))?;
        let Some(bytes) = chunk.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        budget.take(read as u64, source)?;
        sum.update(bytes);
        file.write_all(bytes).await.map_err(|error| Failure::local("staging", &error))?;
    }
    file.flush().await.map_err(|error| Failure::local("staging", &error))?;
    Ok(sum.finish())
}

/// Whether a file is there and what its checksum says; without one it is taken as it is.
pub(super) async fn matches(path: &Path, sha256: Option<&str>) -> bool {
    let Some(expected) = sha256 else { return path.is_file() };
    let path = path.to_owned();
    let sum = tokio::task::spawn_blocking(move || checksum::of_reader(std::fs::File::open(path)?));
    matches!(sum.await, Ok(Ok((sum, _))) if sum.eq_ignore_ascii_case(expected))
}

/// The name that a source is staged under: its own, or the last part of its address.
pub(super) fn name_of(source: &FileSource) -> Result<FileName, Failure> {
    let invalid = |error: super::NameError| Failure::Invalid(format!("{}: {error}", show(&source.source)));
    if let Some(name) = &source.name {
        return FileName::parse(name).map_err(invalid);
    }
    if let Some(content) = source.source.strip_prefix("data:") {
        let media_type = content.split([';', ',']).next().unwrap_or_default();
        return FileName::parse(&format!("input.{}", extension(media_type))).map_err(invalid);
    }
    let address = source.source.split(['?', '#']).next().unwrap_or_default();
    FileName::parse(address.trim_end_matches('/').rsplit('/').next().unwrap_or_default()).map_err(invalid)
}

fn extension(media_type: &str) -> &str {
    match media_type {
        "image/jpeg" => "jpg",
        "audio/mpeg" => "mp3",
        "text/plain" => "txt",
        "video/quicktime" => "mov",
        other => match other.split_once('/') {
            Some((
                _,
                known @ ("png" | "webp" | "gif" | "bmp" | "mp4" | "webm" | "wav" | "flac" | "ogg" | "json"),
            )) => known,
            _ => "bin",
        },
    }
}

/// `[<media type>][;base64],<data>` of a data URI.
fn decode_data(content: &str) -> Result<Vec<u8>, String> {
    let (head, data) = content.split_once(',').ok_or("a data URI needs a comma before its data")?;
    if !head.ends_with(";base64") {
        return Ok(percent_encoding::percent_decode_str(data).collect());
    }
    let compact: Vec<u8> = data.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let engine = base64::engine::GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        base64::engine::GeneralPurposeConfig::new()
            .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
    );
    engine.decode(compact).map_err(|error| format!("no base64: {error}"))
}

/// A source fit for a message: a data URI's content is not repeated.
fn show(source: &str) -> String {
    one_line(source, if source.starts_with("data:") { 40 } else { 300 })
}

#[cfg(test)]
#[path = "fetch_tests.rs"]
mod tests;
