//! A file on its way up: read once, from its start, piece by piece, its SHA-256 made of what was read.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use contract::ObjectUri;
use crc_fast::CrcAlgorithm;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::SemaphorePermit;

use super::buffer_pool::UPLOADS;
use crate::store::{StoreError, Stored};
use connector::checksum::RunningChecksum;

/// Bytes handed to a connection at a time: the SDK's watch for stalled uploads counts them.
const SLICE: usize = 128 << 10;

/// Bytes of the file, and the loan of their memory, which goes back with this.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) body: SummedBytes,
    _lent: SemaphorePermit<'static>,
}

pub(super) struct Source {
    uri: ObjectUri,
    path: PathBuf,
    file: Arc<File>,
    size: u64,
    read: u64,
    sum: RunningChecksum,
}

impl Source {
    /// Errs unless the file has the bytes that are to be sent.
    pub(super) async fn open(uri: &ObjectUri, path: &Path, size: u64) -> Result<Self, StoreError> {
        let (uri, path) = (uri.clone(), path.to_owned());
        let open = move || {
            let file = File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
            match file {
                Ok((length, _)) if length < size => Err(shorter(&uri, &path, size)),
                Ok((_, file)) => Ok(Self {
                    uri,
                    path,
                    file: Arc::new(file),
                    size,
                    read: 0,
                    sum: RunningChecksum::default(),
                }),
                Err(error) => Err(unreadable(&uri, &path, &error)),
            }
        };
        blocking(open).await
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The next bytes, `most` of them where there are so many; `None` after the last. Waits for memory.
    pub(super) async fn next(&mut self, most: u64) -> Result<Option<Piece>, StoreError> {
        let length = most.min(self.size - self.read);
        if length == 0 {
            return Ok(None);
        }
        let lent = UPLOADS.take(usize::try_from(length).unwrap_or(usize::MAX)).await;
        let mut buffer = lent.map_err(|error| unreadable(&self.uri, &self.path, &error))?;
        let (file, mut sum) = (Arc::clone(&self.file), std::mem::take(&mut self.sum));
        let read = move || {
            buffer.fill(&*file)?;
            sum.update(buffer.as_ref());
            let crc32 = crc32(buffer.as_ref());
            Ok((buffer, sum, crc32))
        };
        let read = blocking(read).await;
        let (buffer, sum, crc32) =
            read.map_err(|error: io::Error| unreadable(&self.uri, &self.path, &error))?;
        if (buffer.as_ref().len() as u64) < length {
            return Err(shorter(&self.uri, &self.path, self.size));
        }
        self.sum = sum;
        self.read += length;
        let (bytes, lent) = buffer.split();
        Ok(Some(Piece { body: SummedBytes { bytes, crc32 }, _lent: lent }))
    }

    /// What was read.
    pub(super) fn finish(self) -> Stored {
        Stored { size: self.read, sha256: self.sum.finish() }
    }
}

fn shorter(uri: &ObjectUri, path: &Path, size: u64) -> StoreError {
    let reason = format!("{} is shorter than the {size} bytes it had", path.display());
    StoreError::Local { uri: uri.to_string(), source: io::Error::new(io::ErrorKind::UnexpectedEof, reason) }
}

fn unreadable(uri: &ObjectUri, path: &Path, error: &io::Error) -> StoreError {
    let source = io::Error::new(error.kind(), format!("cannot read {}: {error}", path.display()));
    StoreError::Local { uri: uri.to_string(), source }
}

/// Runs file work and sums off the async threads. A panic in it goes on here.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(stopped) => std::panic::resume_unwind(stopped.into_panic()),
    }
}

/// The body of a request, with the checksum that its header names. Were it left to the SDK, it would send the
/// body in `aws-chunked` encoding with the checksum behind it, which not every store reads, and where there is no
/// TLS make a SHA-256 of it all, too.
#[derive(Clone, Debug)]
pub(super) struct SummedBytes {
    bytes: Bytes,
    crc32: String,
}

impl SummedBytes {
    pub(super) fn of(bytes: Bytes) -> Self {
        Self { crc32: crc32(&bytes), bytes }
    }

    pub(super) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// `x-amz-checksum-crc32`
    pub(super) fn crc32(&self) -> String {
        self.crc32.clone()
    }

    /// These very bytes, for each of a request's tries.
    pub(super) fn stream(&self) -> ByteStream {
        let bytes = self.bytes.clone();
        ByteStream::new(SdkBody::retryable(move || SdkBody::from_body_1_x(Slices(bytes.clone()))))
    }
}

fn crc32(bytes: &[u8]) -> String {
    let sum = crc_fast::checksum(CrcAlgorithm::Crc32IsoHdlc, bytes).to_be_bytes();
    STANDARD.encode(&sum[4..])
}

struct Slices(Bytes);

impl Body for Slices {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.0.is_empty() {
            return Poll::Ready(None);
        }
        let length = self.0.len().min(SLICE);
        Poll::Ready(Some(Ok(Frame::data(self.0.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.len() as u64)
    }
}
