//! A GET whose body survives broken connections: each goes on where the last one ended.

use std::{io, ops::Range, time::Duration};

use aws_sdk_s3::{
    config::{Config, ResponseChecksumValidation},
    operation::get_object::GetObjectOutput,
    primitives::ByteStream,
};
use bytes::Bytes;
use contract::ObjectUri;
use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::time::{Instant, timeout};

use super::{S3Store, object_checksum::ObjectChecksum, object_of};
use crate::store::StoreError;

/// Broken connections in a row, with too little between them to call it progress.
const BREAKS: u32 = 5;
/// Bytes after which earlier breaks are forgotten.
const PROGRESS: u64 = 8 << 20;

/// An object on its way here.
pub(super) struct Download {
    store: S3Store,
    uri: ObjectUri,
    body: ByteStream,
    /// The version that is being read: the rest must be of the same.
    etag: Option<String>,
    /// Bytes of the whole object, where the store says.
    size: Option<u64>,
    /// The next byte, and that behind the last where not all of the rest is wanted.
    offset: u64,
    until: Option<u64>,
    claim: ObjectChecksum,
    /// Time spent waiting, and what it brought, since the last look at the throughput.
    waited: Duration,
    brought: u64,
    breaks: u32,
    last_break: u64,
}

impl Download {
    /// Everything from `offset` on; of that version, if one is named.
    pub(super) async fn start(
        store: &S3Store,
        uri: &ObjectUri,
        offset: u64,
        version: Option<&str>,
    ) -> Result<Self, StoreError> {
        let mut download = Self::unasked(store, uri, offset, version);
        let answer = download.ask().await?.ok_or_else(|| download.broken_off("the store ignores ranges"))?;
        download.size = answer
            .content_length
            .and_then(|rest| u64::try_from(rest).ok())
            .map(|rest| rest.saturating_add(offset));
        if offset == 0 {
            download.claim = ObjectChecksum::of(&answer);
        }
        download.etag = answer.e_tag.or(download.etag);
        download.body = answer.body;
        Ok(download)
    }

    /// These bytes of that version, which has them; `None` from a store that ignores ranges.
    pub(super) async fn stretch(
        store: &S3Store,
        uri: &ObjectUri,
        version: &str,
        bytes: Range<u64>,
    ) -> Result<Option<Self>, StoreError> {
        let mut download = Self::unasked(store, uri, bytes.start, Some(version));
        download.until = Some(bytes.end);
        let Some(answer) = download.ask().await? else { return Ok(None) };
        download.body = answer.body;
        Ok(Some(download))
    }

    fn unasked(store: &S3Store, uri: &ObjectUri, offset: u64, version: Option<&str>) -> Self {
        Self {
            store: store.clone(),
            uri: uri.clone(),
            body: ByteStream::default(),
            etag: version.map(str::to_owned),
            size: None,
            offset,
            until: None,
            claim: ObjectChecksum::Nothing,
            waited: Duration::ZERO,
            brought: 0,
            breaks: 0,
            last_break: offset,
        }
    }

    pub(super) fn store(&self) -> &S3Store {
        &self.store
    }

    pub(super) fn uri(&self) -> &ObjectUri {
        &self.uri
    }

    pub(super) fn size(&self) -> Option<u64> {
        self.size
    }

    pub(super) fn version(&self) -> Option<&str> {
        self.etag.as_deref()
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// What the store says of the whole object; for one caller.
    pub(super) fn take_claim(&mut self) -> ObjectChecksum {
        std::mem::replace(&mut self.claim, ObjectChecksum::Nothing)
    }

    /// The bytes as they arrive: one chunk is held in memory.
    pub(super) fn into_stream(self) -> BoxStream<'static, io::Result<Bytes>> {
        stream::try_unfold(Box::new(self), |mut download| async move {
            let chunk = download.next().await?;
            Ok(chunk.map(|chunk| (chunk, download)))
        })
        .boxed()
    }

    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        loop {
            match self.receive().await {
                Ok(Some(mut chunk)) => {
                    let wanted = self.until.map_or(u64::MAX, |until| until - self.offset);
                    chunk.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
                    self.offset += chunk.len() as u64;
                    return Ok(Some(chunk).filter(|chunk| !chunk.is_empty()));
                }
                Ok(None) if self.end().is_none_or(|end| end == self.offset) => return Ok(None),
                Ok(None) => self.resume("the body ended early".to_owned()).await?,
                Err(reason) => self.resume(reason).await?,
            }
        }
    }

    fn end(&self) -> Option<u64> {
        self.until.or(self.size)
    }

    /// The next chunk of this connection's body. Only waiting counts as slow: a reader that takes its time does not.
    async fn receive(&mut self) -> Result<Option<Bytes>, String> {
        let limits = self.store.limits;
        loop {
            let since = Instant::now();
            let arrival = timeout(limits.stall.saturating_sub(self.waited), self.body.next()).await;
            self.waited += since.elapsed();
            match arrival {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(chunk))) => {
                    self.brought += chunk.len() as u64;
                    if !chunk.is_empty() {
                        return Ok(Some(chunk));
                    }
                }
                Ok(Some(Err(error))) => return Err(super::classify::chain(&error)),
                Err(_) if self.brought < limits.least_bytes => {
                    return Err(format!("only {} bytes in {:?}", self.brought, limits.stall));
                }
                Err(_) => {
                    self.waited = Duration::ZERO;
                    self.brought = 0;
                }
            }
        }
    }

    /// Asks for the rest of the same version, after a pause.
    async fn resume(&mut self, reason: String) -> Result<(), StoreError> {
        if self.offset - self.last_break >= PROGRESS {
            self.breaks = 0;
        }
        let done = self.end().is_some_and(|end| self.offset >= end);
        // Nothing left to ask for: what arrived is not what the store's checksum says.
        if done || self.breaks >= BREAKS || self.etag.is_none() {
            return Err(self.broken_off(&reason));
        }
        tokio::time::sleep(self.store.limits.backoff * (1 << self.breaks)).await;
        self.breaks += 1;
        self.last_break = self.offset;
        tracing::debug!(object = %self.uri, offset = self.offset, reason, "resuming a download");

        let answer = Box::pin(self.ask()).await?;
        let answer = answer.ok_or_else(|| self.broken_off("the store ignores ranges"))?;
        self.body = answer.body;
        self.waited = Duration::ZERO;
        self.brought = 0;
        Ok(())
    }

    /// Asks for what has not arrived yet. `None` from a store that ignores ranges: it begins at the start again.
    async fn ask(&self) -> Result<Option<GetObjectOutput>, StoreError> {
        let (bucket, key) = object_of(&self.uri)?;
        let request = self.store.client.get_object().bucket(bucket).key(key);
        let request = request.set_if_match(self.etag.clone());
        let range = match (self.offset, self.until) {
            (0, None) => None,
            (offset, None) => Some(format!("bytes={offset}-")),
            (offset, Some(until)) => Some(format!("bytes={offset}-{}", until - 1)),
        };
        let ranged = range.is_some();
        let answer = if ranged {
            // A checksum, where there is one, is of the whole object, and this is a part of it.
            let unchecked =
                Config::builder().response_checksum_validation(ResponseChecksumValidation::WhenRequired);
            request.set_range(range).customize().config_override(unchecked).send().await
        } else {
            request.send().await
        };
        let changed = || StoreError::Changed { uri: self.uri.to_string() };
        let answer = answer.map_err(|error| {
            let failure = self.store.failure(&self.uri, error);
            if failure.status() == Some(412) { changed() } else { failure.into_error() }
        })?;
        // A store may pass over If-Match, too.
        if let (Some(asked), Some(found)) = (&self.etag, &answer.e_tag)
            && asked != found
        {
            return Err(changed());
        }
        let begins = answer.content_range.as_deref().unwrap_or_default();
        Ok((!ranged || begins.starts_with(&format!("bytes {}-", self.offset))).then_some(answer))
    }

    fn broken_off(&self, reason: &str) -> StoreError {
        self.unavailable(format!("broken off after {} bytes: {reason}", self.offset))
    }

    pub(super) fn unavailable(&self, reason: String) -> StoreError {
        self.store.unavailable(&self.uri, reason)
    }
}
