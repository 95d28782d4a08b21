//! A GET whose body survives broken connections: each goes on where the last one ended.

use std::{pin::Pin, time::Duration};

use aws_sdk_s3::{
    config::{Config, ResponseChecksumValidation},
    operation::get_object::GetObjectOutput,
    primitives::ByteStream,
};
use bytes::Bytes;
use tokio::{
    io::AsyncRead,
    time::{Instant, timeout},
};
use tokio_util::io::StreamReader;

use super::{S3Store, object_of};
use crate::store::{Object, ObjectUri, StoreError};

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
    /// Bytes of the whole object, and of it those that have arrived.
    size: Option<u64>,
    offset: u64,
    /// Time spent waiting, and what it brought, since the last look at the throughput.
    waited: Duration,
    brought: u64,
    breaks: u32,
    last_break: u64,
}

impl Download {
    pub(super) async fn start(
        store: &S3Store,
        uri: &ObjectUri,
        offset: u64,
        version: Option<&str>,
    ) -> Result<Self, StoreError> {
        let mut download = Self {
            store: store.clone(),
            uri: uri.clone(),
            etag: version.map(str::to_owned),
            size: None,
            body: ByteStream::default(),
            offset,
            waited: Duration::ZERO,
            brought: 0,
            breaks: 0,
            last_break: offset,
        };
        let answer = download.rest().await?;
        download.size = answer
            .content_length
            .and_then(|rest| u64::try_from(rest).ok())
            .map(|rest| rest.saturating_add(offset));
        download.etag = answer.e_tag.or(download.etag);
        download.body = answer.body;
        Ok(download)
    }

    pub(super) fn into_object(self) -> Object {
        Object { size: self.size, version: self.etag.clone(), body: self.into_reader() }
    }

    /// The bytes as they arrive: one chunk is held in memory.
    fn into_reader(self) -> Pin<Box<dyn AsyncRead + Send>> {
        let chunks = futures_util::stream::try_unfold(Box::new(self), |mut download| async move {
            let chunk = download.next().await.map_err(std::io::Error::from)?;
            Ok::<_, std::io::Error>(chunk.map(|chunk| (chunk, download)))
        });
        Box::pin(StreamReader::new(chunks))
    }

    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        loop {
            match self.receive().await {
                Ok(Some(chunk)) => {
                    self.offset += chunk.len() as u64;
                    return Ok(Some(chunk));
                }
                Ok(None) if self.size.is_none_or(|size| size == self.offset) => return Ok(None),
                Ok(None) => self.resume("the body ended early".to_owned()).await?,
                Err(reason) => self.resume(reason).await?,
            }
        }
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
        let done = self.size.is_some_and(|size| self.offset >= size);
        // Nothing left to ask for: what arrived is not what the store's checksum says.
        if done || self.breaks >= BREAKS || self.etag.is_none() {
            return Err(self.unavailable(format!("broken off after {} bytes: {reason}", self.offset)));
        }
        tokio::time::sleep(self.store.limits.backoff * (1 << self.breaks)).await;
        self.breaks += 1;
        self.last_break = self.offset;
        tracing::debug!(object = %self.uri, offset = self.offset, reason, "a download goes on after a break");

        let answer = Box::pin(self.rest()).await?;
        self.body = answer.body;
        self.waited = Duration::ZERO;
        self.brought = 0;
        Ok(())
    }

    async fn rest(&self) -> Result<GetObjectOutput, StoreError> {
        let (bucket, key) = object_of(&self.uri)?;
        let request = self.store.client.get_object().bucket(bucket).key(key);
        let request = request.set_if_match(self.etag.clone());
        let answer = if self.offset == 0 {
            request.send().await
        } else {
            // A checksum, where there is one, is of the whole object, and this is a part of it.
            let unchecked =
                Config::builder().response_checksum_validation(ResponseChecksumValidation::WhenRequired);
            let request = request.range(format!("bytes={}-", self.offset)).customize();
            request.config_override(unchecked).send().await
        };
        let answer = answer.map_err(|error| {
            let failure = self.store.failure(&self.uri, error);
            match failure.status() {
                Some(412) => StoreError::Changed { uri: self.uri.to_string() },
                _ => failure.into_error(),
            }
        })?;
        // A store that ignores ranges begins at the start again.
        let begins = answer.content_range.as_deref().unwrap_or_default();
        if self.offset > 0 && !begins.starts_with(&format!("bytes {}-", self.offset)) {
            let reason = format!("broken off after {} bytes, and the store ignores ranges", self.offset);
            return Err(self.unavailable(reason));
        }
        Ok(answer)
    }

    fn unavailable(&self, reason: String) -> StoreError {
        StoreError::Unavailable {
            uri: self.uri.to_string(),
            reason: format!("{}: {reason}", self.store.place),
        }
    }
}
