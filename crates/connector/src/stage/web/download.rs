//! A body that survives broken connections: each goes on where the last one ended, in the same version.

use std::{io, time::Duration};

use bytes::Bytes;
use contract::failure::Failure;
use futures_util::stream::{self, StreamExt};
use reqwest::{Response, header};
use tokio::time::{Instant, sleep, timeout};

use super::{BACKOFF, WebRequest, broken, is_partial, version_of};
use crate::{
    stage::fetch::OpenError,
    store::{Object, StoreError},
};

/// A server that sends nothing for this long is asked again.
const STALL_LIMIT: Duration = Duration::from_secs(20);
/// One that sends less than this much in a while is as good as silent: it would hold a worker for the whole of
/// `inputs.timeout`.
const SLOWEST: u64 = if cfg!(test) { 1 << 10 } else { 1 << 20 };
const SLOW_LIMIT: Duration = Duration::from_secs(if cfg!(test) { 5 } else { 60 });
/// Breaks in a row, with too little between them to call it progress.
const BREAKS: u32 = 5;
/// Bytes after which earlier breaks are forgotten.
const PROGRESS: u64 = 8 << 20;

pub(super) struct WebDownload {
    asked: WebRequest,
    answer: Response,
    version: Option<String>,
    /// Bytes of the whole, and of it those that have arrived.
    size: Option<u64>,
    offset: u64,
    /// Bytes to pass over, from a server that begins at the start again.
    skip: u64,
    breaks: u32,
    last_break: u64,
    /// Bytes that have come since this moment.
    lately: (Instant, u64),
}

impl WebDownload {
    pub(super) async fn start(
        asked: WebRequest,
        offset: u64,
        version: Option<&str>,
    ) -> Result<Self, OpenError> {
        let (answer, skip) = rest(&asked, offset, version).await?;
        let (found, size) = (version_of(&answer), size_of(&answer));
        let version = found.or_else(|| version.map(str::to_owned));
        let lately = (Instant::now(), 0);
        Ok(Self { asked, answer, version, size, offset, skip, breaks: 0, last_break: offset, lately })
    }

    pub(super) fn into_object(self) -> Object {
        let (size, version) = (self.size, self.version.clone());
        let body = stream::try_unfold(Box::new(self), |mut download| async move {
            let chunk = download.next().await?;
            Ok(chunk.map(|chunk| (chunk, download)))
        });
        Object { size, version, body: body.boxed() }
    }

    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            match timeout(STALL_LIMIT, self.answer.chunk()).await {
                Ok(Ok(Some(mut chunk))) => {
                    self.lately.1 += chunk.len() as u64;
                    let passed = self.skip.min(chunk.len() as u64);
                    self.skip -= passed;
                    bytes::Buf::advance(&mut chunk, usize::try_from(passed).unwrap_or_default());
                    self.offset += chunk.len() as u64;
                    if self.is_slow() {
                        self.resume("it comes too slowly").await?;
                    }
                    if !chunk.is_empty() {
                        return Ok(Some(chunk));
                    }
                }
                Ok(Ok(None)) if self.skip == 0 && self.size.is_none_or(|size| size == self.offset) => {
                    return Ok(None);
                }
                Ok(Ok(None)) => self.resume("the body ended early").await?,
                Ok(Err(error)) => self.resume(broken(&error)).await?,
                Err(_) => self.resume("nothing came any more").await?,
            }
        }
    }

    /// Whether too little came for too long.
    fn is_slow(&mut self) -> bool {
        let (since, bytes) = self.lately;
        if since.elapsed() < SLOW_LIMIT {
            return false;
        }
        self.lately = (Instant::now(), 0);
        bytes < SLOWEST
    }

    /// Asks for the rest, after a pause. From the address that the job gave: where it redirected to may
    /// have been a link of short life.
    async fn resume(&mut self, reason: &'static str) -> io::Result<()> {
        if self.offset - self.last_break >= PROGRESS {
            self.breaks = 0;
        }
        if self.breaks >= BREAKS || self.version.as_deref().is_none_or(is_weak) {
            return Err(io::Error::other(format!("{reason}, after {} bytes", self.offset)));
        }
        sleep(BACKOFF * (1 << self.breaks)).await;
        self.breaks += 1;
        self.last_break = self.offset;
        tracing::debug!(input = self.asked.shown(), offset = self.offset, reason, "resuming a download");
        let rest = rest(&self.asked, self.offset, self.version.as_deref()).await;
        self.lately = (Instant::now(), 0);
        (self.answer, self.skip) = rest.map_err(|error| match error {
            OpenError::Changed => StoreError::Changed { uri: self.asked.shown() }.into(),
            OpenError::Failed(failure) => io::Error::other(failure),
        })?;
        Ok(())
    }
}

/// Asks for what follows byte `offset`; with it, how much of the answer is not asked for.
async fn rest(asked: &WebRequest, offset: u64, version: Option<&str>) -> Result<(Response, u64), OpenError> {
    if offset > 0 && version.is_none_or(is_weak) {
        return Err(OpenError::Changed);
    }
    let range = if offset > 0 { format!("bytes={offset}-") } else { String::new() };
    let condition = version.filter(|_| offset > 0);
    let answer = asked.answer(&range, condition).await?;
    // A server may leave the version of a part unsaid, having compared it.
    let same = match (version, version_of(&answer)) {
        (Some(version), Some(found)) => version == found,
        (Some(_), None) => is_partial(&answer),
        (None, _) => true,
    };
    if !same {
        return Err(OpenError::Changed);
    }
    if !is_partial(&answer) {
        return Ok((answer, offset));
    }
    match content_range(&answer) {
        Some((first, _)) if first == offset => Ok((answer, 0)),
        _ => {
            let problem = format!("{}: the server answers with another part", asked.shown());
            Err(Failure::InputUnavailable(problem).into())
        }
    }
}

/// Weak ETags promise likeness, not the same bytes.
fn is_weak(version: &str) -> bool {
    version.starts_with("W/")
}

/// Bytes of the whole.
fn size_of(answer: &Response) -> Option<u64> {
    if is_partial(answer) {
        return content_range(answer)?.1;
    }
    // As sent: `Response::content_length` is the body's as decoded.
    answer.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// First byte and whole size of `bytes 5-9/10`.
fn content_range(answer: &Response) -> Option<(u64, Option<u64>)> {
    let text = answer.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (range, whole) = text.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, whole.parse().ok()))
}
