//! Sources: read in a stream, bounded before and while they are read, summed as they pass.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use base64::Engine;
use bytes::Bytes;
use contract::{
    JobId, ObjectUri, UriError, failure::Failure, records::is_anothers, request::FileSource, text::one_line,
};
use futures_util::stream::{self, StreamExt};
use tokio::time::timeout;
use uuid::Uuid;

use super::{
    names::FileName,
    web::{self, Web},
};
use crate::{
    checksum, files,
    store::{Object, ObjectStore, StoreError},
};

/// A read that brings nothing for this long has failed.
const STALL_LIMIT: Duration = Duration::from_secs(60);

/// A `data:` address is its content.
const DATA_VERSION: &str = "data";

/// Why a source could not be read.
#[derive(Debug)]
pub(super) enum OpenError {
    /// It is no longer the version that was asked for.
    Changed,
    /// Whose fault it is says the [`Failure`].
    Failed(Failure),
}

impl From<Failure> for OpenError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl OpenError {
    /// For a caller to whom all versions are alike.
    pub(super) fn into_failure(self, source: &str) -> Failure {
        match self {
            Self::Changed => {
                Failure::InputUnavailable(format!("{}: it was replaced while it was read", show(source)))
            }
            Self::Failed(failure) => failure,
        }
    }
}

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

    /// Refuses so many bytes before they are read.
    fn check(&self, bytes: u64, source: &str) -> Result<(), Failure> {
        if self.used().saturating_add(bytes) > self.limit { self.take(bytes, source) } else { Ok(()) }
    }
}

/// One source's part in a budget: given back unless the source is kept.
#[derive(Debug)]
pub(super) struct BudgetReservation<'a> {
    budget: &'a Budget,
    source: &'a str,
    taken: u64,
}

impl<'a> BudgetReservation<'a> {
    pub(super) fn of(budget: &'a Budget, source: &'a str) -> Self {
        Self { budget, source, taken: 0 }
    }

    pub(super) fn take(&mut self, bytes: u64) -> Result<(), Failure> {
        self.taken += bytes;
        self.budget.take(bytes, self.source)
    }

    /// Refuses so many more bytes before they are read.
    pub(super) fn check(&self, bytes: u64) -> Result<(), Failure> {
        self.budget.check(bytes, self.source)
    }

    pub(super) fn keep(mut self) {
        self.taken = 0;
    }
}

impl Drop for BudgetReservation<'_> {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.taken, Ordering::Relaxed);
    }
}

/// Reads sources from where they may be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fetcher<'a> {
    pub(super) store: &'a dyn ObjectStore,
    pub(super) web: &'a Web,
    pub(super) allow: &'a [String],
    /// Where results are, others' among them, and the job that reads.
    pub(super) results: Option<(&'a ObjectUri, &'a JobId)>,
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
        let local = |error: io::Error| Failure::local(part.display(), &error);
        let fetched = async {
            // None is made of what nobody can compare it with.
            let sum = sha256.map(|_| checksum::RunningChecksum::default());
            let file = PartWriter { file: File::create_new(&part).map_err(local)?, sum };
            let written = copy(self.open(source).await?, file, source, budget).await?;
            if let Some((expected, sum)) = sha256.zip(written.sum) {
                let found = sum.finish();
                if !expected.eq_ignore_ascii_case(&found) {
                    return Err(checksum_mismatch(source, &found, expected));
                }
            }
            tokio::fs::rename(&part, &target).await.map_err(local)
        };
        let outcome = fetched.await;
        if outcome.is_err() {
            let _ = tokio::fs::remove_file(&part).await;
        }
        outcome
    }

    /// Reads an object of at most `limit` bytes into memory.
    pub(super) async fn read(self, source: &str, limit: u64) -> Result<Bytes, Failure> {
        if !web::is_web(source) {
            return self.store.read(&self.allowed(source)?, limit).await.map_err(store_failure);
        }
        let mut object = self.open(source).await?;
        let budget = Budget::new(limit);
        let too_large = |_| Failure::InputTooLarge(format!("{}: larger than {limit} bytes", show(source)));
        budget.check(object.size.unwrap_or_default(), source).map_err(too_large)?;
        let mut text = Vec::new();
        while let Some(chunk) = next(&mut object, source).await.map_err(|error| error.into_failure(source))? {
            budget.take(chunk.len() as u64, source).map_err(too_large)?;
            text.extend_from_slice(&chunk);
        }
        Ok(text.into())
    }

    fn allowed(&self, source: &str) -> Result<ObjectUri, Failure> {
        let uri: ObjectUri = source
            .parse()
            .map_err(|error: UriError| Failure::UnsupportedUri(one_line(&error.to_string(), 400)))?;
        let source = show(source);
        if self.results.is_some_and(|(base, own)| is_anothers(&uri, base, own, self.allow)) {
            return Err(Failure::InputForbidden(format!(
                "{source}: it lies among other jobs' results (store.uri), which inputs.allow does not open"
            )));
        }
        if uri.is_beneath(self.allow) {
            return Ok(uri);
        }
        Err(Failure::InputForbidden(format!("{source}: inputs may not come from there (inputs.allow)")))
    }

    async fn open(self, source: &str) -> Result<Object, Failure> {
        self.open_from(source, 0, None).await.map_err(|error| error.into_failure(source))
    }

    /// Opens a source from byte `offset` on, in this version, where one is given.
    pub(super) async fn open_from(
        self,
        source: &str,
        offset: u64,
        version: Option<&str>,
    ) -> Result<Object, OpenError> {
        if let Some(content) = source.strip_prefix("data:") {
            let bytes: Bytes = decode_data(content)
                .map_err(|problem| Failure::Invalid(format!("{}: {problem}", show(source))))?
                .into();
            let size = Some(bytes.len() as u64);
            let bytes = bytes.slice(usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len())..);
            let body = stream::once(async { Ok(bytes) }).boxed();
            return Ok(Object { size, version: Some(DATA_VERSION.to_owned()), body });
        }
        if web::is_web(source) {
            return self.web.open(source, self.allow, offset, version).await;
        }
        let uri = self.allowed(source)?;
        self.store.open_from(&uri, offset, version).await.map_err(|error| match error {
            StoreError::Changed { .. } => OpenError::Changed,
            error => store_failure(error).into(),
        })
    }

    /// The version that a source has now, where it tells.
    pub(super) async fn version(self, source: &str) -> Result<Option<String>, Failure> {
        if source.starts_with("data:") {
            return Ok(Some(DATA_VERSION.to_owned()));
        }
        if web::is_web(source) {
            let version = self.web.version(source, self.allow).await;
            return version.map_err(|error| error.into_failure(source));
        }
        self.store.version(&self.allowed(source)?).await.map_err(store_failure)
    }
}

pub(super) fn checksum_mismatch(source: &str, found: &str, expected: &str) -> Failure {
    Failure::ChecksumMismatch(format!("{}: its SHA-256 is {found}, not {expected}", show(source)))
}

/// What a store's answer means for a job that wanted to read.
fn store_failure(error: StoreError) -> Failure {
    let message = error.to_string();
    match error {
        StoreError::NotFound { .. } => Failure::InputNotFound(message),
        StoreError::Forbidden { .. } => Failure::InputForbidden(message),
        StoreError::TooLarge { .. } => Failure::InputTooLarge(message),
        StoreError::Misplaced { .. }
        | StoreError::Misconfigured { .. }
        | StoreError::Changed { .. }
        | StoreError::Unavailable { .. } => Failure::InputUnavailable(message),
        StoreError::Local { .. } => Failure::Local(message),
    }
}

/// A file that is written, and the sum of what it holds, where somebody wants it.
#[derive(Debug)]
struct PartWriter {
    file: File,
    sum: Option<checksum::RunningChecksum>,
}

impl PartWriter {
    async fn append(mut self, bytes: Bytes) -> io::Result<Self> {
        let append = move || {
            self.file.write_all(&bytes)?;
            if let Some(sum) = &mut self.sum {
                sum.update(&bytes);
            }
            Ok(self)
        };
        tokio::task::spawn_blocking(append).await.map_err(io::Error::other)?
    }
}

async fn copy(
    mut object: Object,
    mut file: PartWriter,
    source: &str,
    budget: &Budget,
) -> Result<PartWriter, Failure> {
    budget.check(object.size.unwrap_or_default(), source)?;
    while let Some(chunk) = next(&mut object, source).await.map_err(|error| error.into_failure(source))? {
        budget.take(chunk.len() as u64, source)?;
        file = file.append(chunk).await.map_err(|error| Failure::local("staging", &error))?;
    }
    Ok(file)
}

/// The next bytes of a source; `None` at its end.
pub(super) async fn next(object: &mut Object, source: &str) -> Result<Option<Bytes>, OpenError> {
    let unavailable = |reason: String| Failure::InputUnavailable(format!("{}: {reason}", show(source)));
    let arrival = timeout(STALL_LIMIT, object.body.next())
        .await
        .map_err(|_| unavailable(format!("nothing came for {STALL_LIMIT:?}")))?;
    match arrival.transpose() {
        Ok(chunk) => Ok(chunk),
        Err(error) => Err(match error.downcast::<StoreError>() {
            Ok(StoreError::Changed { .. }) => OpenError::Changed,
            Ok(error) => unavailable(error.to_string()).into(),
            // What a web input met on the way to the rest of it says itself whose fault it is.
            Err(error) => match error.downcast::<Failure>() {
                Ok(failure) => failure.into(),
                Err(error) => unavailable(error.to_string()).into(),
            },
        }),
    }
}

/// Whether a file is there and what its checksum says; without one it is taken as it is.
pub(super) async fn matches(path: &Path, sha256: Option<&str>) -> bool {
    let Some(expected) = sha256 else { return path.is_file() };
    let path = path.to_owned();
    let sum = tokio::task::spawn_blocking(move || {
        checksum::of_reader(files::open_regular(File::options().read(true), &path)?)
    });
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

/// A source fit for a message: neither a data URI's content nor what may open a web address to others.
pub fn show(source: &str) -> String {
    if web::is_web(source) {
        return web::shown(source);
    }
    one_line(source, if source.starts_with("data:") { 40 } else { 300 })
}

#[cfg(test)]
#[path = "fetch_tests.rs"]
mod tests;
