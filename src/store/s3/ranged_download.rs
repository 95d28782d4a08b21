//! A large object on its way here: read in order from one stream, and ahead of it in stretches side by side.
//!
//! The stream (the head) needs no memory of the process's share, so that every download goes on, however much
//! others hold; what lies ahead is asked for only while memory is free. The head ends where the first stretch
//! that is there begins, and is opened again where there was no memory for the next one.

use std::{collections::VecDeque, io};

use bytes::Bytes;
use contract::ObjectUri;
use futures_util::stream::{self, BoxStream, StreamExt};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

use super::{S3Store, buffer_pool::DOWNLOADS, download::Download, object_checksum::ObjectChecksum};
use crate::store::StoreError;

/// Objects with more than this to read are read in stretches.
const SPLIT_FROM: u64 = 16 << 20;
/// Bytes of a stretch.
const STRETCH: u64 = 2 << 20;
/// Stretches of one object on their way, or waiting to be read.
const MAX_AHEAD: usize = 8;

pub(super) struct RangedDownload {
    store: S3Store,
    uri: ObjectUri,
    version: String,
    size: u64,
    /// Where the reader is.
    offset: u64,
    head: Option<Head>,
    /// In order, with no gaps between them.
    ahead: VecDeque<Stretch>,
    /// Where the next one begins.
    planned: u64,
    claim: ObjectChecksum,
}

/// A stream whose next byte is the reader's.
struct Head {
    download: Download,
    /// What it brought beyond the beginning of a stretch.
    spare: Bytes,
}

struct Stretch {
    start: u64,
    /// `None` where the store ignores ranges. Dropped, it ends.
    bytes: AbortOnDropHandle<Result<Option<Bytes>, StoreError>>,
}

impl RangedDownload {
    /// The rest of `download`: in stretches where there is much of it, else itself.
    pub(super) fn of(mut download: Download) -> BoxStream<'static, io::Result<Bytes>> {
        let (size, version) = (download.size(), download.version().map(str::to_owned));
        match (size, version, download.take_claim()) {
            // A weak ETag matches nothing.
            (Some(size), Some(version), claim)
                if size.saturating_sub(download.offset()) > SPLIT_FROM
                    && !version.starts_with("W/")
                    && !matches!(claim, ObjectChecksum::Other) =>
            {
                Self {
                    store: download.store().clone(),
                    uri: download.uri().clone(),
                    version,
                    size,
                    offset: download.offset(),
                    planned: 0,
                    head: Some(Head { download, spare: Bytes::new() }),
                    ahead: VecDeque::new(),
                    claim,
                }
                .into_stream()
            }
            _ => download.into_stream(),
        }
    }

    fn into_stream(self) -> BoxStream<'static, io::Result<Bytes>> {
        stream::try_unfold(Box::new(self), |mut ranged_download| async move {
            let chunk = ranged_download.next().await?;
            Ok(chunk.map(|chunk| (chunk, ranged_download)))
        })
        .boxed()
    }

    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        if self.offset == self.size {
            return Ok(None);
        }
        let chunk = self.chunk().await?;
        self.offset += chunk.len() as u64;
        self.claim.pass(&chunk);
        // Before the last bytes are handed over: a reader that stops at the size it knows would miss it.
        if self.offset == self.size
            && let Some(reason) = self.claim.broken()
        {
            return Err(self.unavailable(reason));
        }
        Ok(Some(chunk))
    }

    async fn chunk(&mut self) -> Result<Bytes, StoreError> {
        self.look_ahead();
        if let Some(stretch) = self.ahead.pop_front_if(|stretch| stretch.start == self.offset) {
            if let Some(bytes) = stretch.read().await? {
                self.head = None;
                return Ok(bytes);
            }
            if self.head.is_none() {
                return Err(self.unavailable("the store ignores ranges".to_owned()));
            }
            tracing::debug!(object = %self.uri, "the store ignores range requests: reading the object in one stream");
            self.ahead.clear();
            self.planned = self.size;
        }
        let limit = self.ahead.front().map_or(self.size, |stretch| stretch.start);
        let (offset, version) = (self.offset, self.version.as_str());
        let head = match &mut self.head {
            Some(head) => head,
            none => {
                let download =
                    Box::pin(Download::start(&self.store, &self.uri, offset, Some(version))).await?;
                none.insert(Head { download, spare: Bytes::new() })
            }
        };
        let mut chunk = std::mem::take(&mut head.spare);
        if chunk.is_empty() {
            let arrived = head.download.next().await?;
            chunk = arrived.ok_or_else(|| head.download.unavailable("the body ended early".to_owned()))?;
        }
        let wanted = usize::try_from(limit - offset).unwrap_or(usize::MAX);
        if chunk.len() > wanted {
            head.spare = chunk.split_off(wanted);
        }
        Ok(chunk)
    }

    /// Begins stretches while there is memory for them. It never waits: others may hold all of it for as long
    /// as their readers like.
    fn look_ahead(&mut self) {
        if self.ahead.is_empty() {
            // What the head is about to bring is not asked for twice.
            let begin = if self.head.is_some() { self.offset + STRETCH } else { self.offset };
            self.planned = self.planned.max(begin);
        }
        while self.planned < self.size && self.ahead.len() < MAX_AHEAD {
            let (start, end) = (self.planned, self.size.min(self.planned + STRETCH));
            let Some(mut buffer) = DOWNLOADS.try_take(usize::try_from(end - start).unwrap_or(usize::MAX))
            else {
                break;
            };
            let (store, uri, version) = (self.store.clone(), self.uri.clone(), self.version.clone());
            let reading = async move {
                let opened = Box::pin(Download::stretch(&store, &uri, &version, start..end)).await?;
                let Some(mut download) = opened else { return Ok(None) };
                while let Some(chunk) = download.next().await? {
                    buffer.fill(&*chunk).map_err(|error| store.unavailable(&uri, error.to_string()))?;
                }
                Ok(Some(buffer.freeze()))
            };
            let bytes = AbortOnDropHandle::new(tokio::spawn(reading.in_current_span()));
            self.ahead.push_back(Stretch { start, bytes });
            self.planned = end;
        }
    }

    fn unavailable(&self, reason: String) -> StoreError {
        self.store.unavailable(&self.uri, reason)
    }
}

impl Stretch {
    async fn read(self) -> Result<Option<Bytes>, StoreError> {
        match self.bytes.await {
            Ok(read) => read,
            Err(stopped) => std::panic::resume_unwind(stopped.into_panic()),
        }
    }
}
