//! PUT: small things at once, files streamed from disk, large ones in parts.

use std::{io, path::Path, time::Duration};

use aws_sdk_s3::{
    config::{Config, timeout::TimeoutConfig},
    operation::put_object::builders::PutObjectFluentBuilder,
    primitives::{ByteStream, Length},
    types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart},
};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{S3Store, classify::Failure, object_of};
use crate::store::{Content, Creation, ObjectUri, StoreError};

/// Larger files go up in parts, so that a break costs one part.
const MULTIPART_FROM: u64 = 64 << 20;
/// Bytes of a part; more where the file would need more parts than S3 takes.
const PART: u64 = 16 << 20;
/// The most parts of one upload (S3's limit).
const MOST_PARTS: u64 = 10_000;
/// Parts on their way at a time.
const PARTS_IN_FLIGHT: usize = 4;
/// Bytes of a file held in memory for each request.
const READ_BUFFER: usize = 128 << 10;
/// The slowest upload that is waited for, in bytes a second.
const SLOWEST: u64 = 64 << 10;

pub(super) async fn put(
    store: &S3Store,
    uri: &ObjectUri,
    content: Content,
    content_type: &str,
) -> Result<(), StoreError> {
    let (bucket, key) = object_of(uri)?;
    let request = || store.client.put_object().bucket(bucket).key(key).content_type(content_type);
    match content {
        Content::Bytes(bytes) => {
            let size = bytes.len() as u64;
            let attempt = || send(store, uri, request().body(bytes.clone().into()), size);
            store.again(attempt).await
        }
        Content::File { path, size } if size > MULTIPART_FROM => {
            holds(uri, &path, size).await?;
            let whole = || Box::pin(in_parts(store, uri, &path, size, content_type));
            store.again(whole).await
        }
        Content::File { path, size } => {
            holds(uri, &path, size).await?;
            let attempt = || async {
                let body = section(uri, &path, 0, size).await?;
                send(store, uri, request().body(body), size).await
            };
            store.again(attempt).await
        }
    }
}

pub(super) async fn create(
    store: &S3Store,
    uri: &ObjectUri,
    body: Bytes,
    content_type: &str,
) -> Result<Creation, StoreError> {
    let (bucket, key) = object_of(uri)?;
    let attempt = || async {
        let request = store.client.put_object().bucket(bucket).key(key).content_type(content_type);
        let request = request.if_none_match("*").body(body.clone().into());
        match send(store, uri, request, body.len() as u64).await {
            Ok(()) => Ok(Creation::Created),
            Err(failure) if failure.status() == Some(412) => Ok(Creation::Exists),
            Err(failure) => Err(failure),
        }
    };
    store.again(attempt).await
}

async fn send(
    store: &S3Store,
    uri: &ObjectUri,
    request: PutObjectFluentBuilder,
    size: u64,
) -> Result<(), Failure> {
    let sent = request.customize().config_override(time_for(store, size)).send();
    Box::pin(sent).await.map(drop).map_err(|error| store.failure(uri, error))
}

/// Time limits for a request that carries `size` bytes.
fn time_for(store: &S3Store, size: u64) -> aws_sdk_s3::config::Builder {
    let attempt = store.limits.attempt + Duration::from_secs(size / SLOWEST);
    let all = store.limits.operation.max(attempt * 2);
    Config::builder().timeout_config(
        TimeoutConfig::builder()
            .connect_timeout(store.limits.connect)
            .operation_attempt_timeout(attempt)
            .operation_timeout(all)
            .build(),
    )
}

/// Errs unless the file has the bytes that are to be sent: a body that ends early would look like a broken connection.
async fn holds(uri: &ObjectUri, path: &Path, size: u64) -> Result<(), StoreError> {
    let local = |source| StoreError::Local { uri: uri.to_string(), source };
    let metadata = tokio::fs::metadata(path).await.map_err(|error| {
        local(io::Error::new(error.kind(), format!("cannot read {}: {error}", path.display())))
    })?;
    if metadata.len() < size {
        let reason = format!("{} is shorter than the {size} bytes it had", path.display());
        return Err(local(io::Error::new(io::ErrorKind::UnexpectedEof, reason)));
    }
    Ok(())
}

/// `length` bytes of the file from `offset`, read while they are sent, and anew for each retry.
async fn section(uri: &ObjectUri, path: &Path, offset: u64, length: u64) -> Result<ByteStream, Failure> {
    let body = ByteStream::read_from()
        .path(path)
        .offset(offset)
        .length(Length::Exact(length))
        .buffer_size(READ_BUFFER)
        .build();
    body.await.map_err(|error| {
        let source = io::Error::other(format!("cannot read {}: {error}", path.display()));
        Failure::last(StoreError::Local { uri: uri.to_string(), source })
    })
}

/// A multipart upload that is not complete. Dropped, it is aborted: its parts would be kept, unseen and paid for.
struct OpenUpload<'a> {
    store: &'a S3Store,
    uri: &'a ObjectUri,
    bucket: &'a str,
    key: &'a str,
    id: String,
    open: bool,
}

async fn in_parts(
    store: &S3Store,
    uri: &ObjectUri,
    path: &Path,
    size: u64,
    content_type: &str,
) -> Result<(), Failure> {
    let (bucket, key) = object_of(uri).map_err(Failure::last)?;
    let created = store.client.create_multipart_upload().bucket(bucket).key(key).content_type(content_type);
    let created = created.set_checksum_algorithm(store.checksums.then_some(ChecksumAlgorithm::Crc32)).send();
    let created = Box::pin(created).await.map_err(|error| store.failure(uri, error))?;
    let id = created.upload_id.ok_or_else(|| {
        let reason = format!("{} began a multipart upload without an id", store.place);
        Failure::last(StoreError::Misconfigured { uri: uri.to_string(), reason })
    })?;
    let mut upload = OpenUpload { store, uri, bucket, key, id, open: true };
    let outcome = match upload.send_parts(path, size).await {
        Ok(parts) => upload.complete(parts).await,
        Err(error) => Err(Failure::last(error)),
    };
    if outcome.is_err() {
        upload.aborting().await;
    }
    upload.open = false;
    outcome
}

impl OpenUpload<'_> {
    async fn send_parts(&self, path: &Path, size: u64) -> Result<Vec<CompletedPart>, StoreError> {
        let part_size = PART.max(size.div_ceil(MOST_PARTS));
        let sending = (0..size.div_ceil(part_size)).map(|index| {
            let offset = index * part_size;
            let length = part_size.min(size - offset);
            self.store.again(move || self.send_part(path, index + 1, offset, length))
        });
        // In order, as completion wants them.
        stream::iter(sending).buffered(PARTS_IN_FLIGHT).try_collect().await
    }

    async fn send_part(
        &self,
        path: &Path,
        number: u64,
        offset: u64,
        length: u64,
    ) -> Result<CompletedPart, Failure> {
        let number = i32::try_from(number).unwrap_or(i32::MAX);
        let store = self.store;
        let request = store.client.upload_part().bucket(self.bucket).key(self.key);
        let request = request
            .upload_id(&self.id)
            .part_number(number)
            .set_checksum_algorithm(store.checksums.then_some(ChecksumAlgorithm::Crc32))
            .body(section(self.uri, path, offset, length).await?);
        let sent = request.customize().config_override(time_for(store, length)).send();
        let sent = Box::pin(sent).await.map_err(|error| store.failure(self.uri, error))?;
        Ok(CompletedPart::builder()
            .part_number(number)
            .set_e_tag(sent.e_tag)
            .set_checksum_crc32(sent.checksum_crc32)
            .build())
    }

    async fn complete(&self, parts: Vec<CompletedPart>) -> Result<(), Failure> {
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let request = self.store.client.complete_multipart_upload().bucket(self.bucket).key(self.key);
        let request = request.upload_id(&self.id).multipart_upload(parts);
        // Putting the parts of the largest objects together may take S3 minutes.
        let request = request.customize().config_override(time_for(self.store, PART));
        let completed = Box::pin(request.send()).await;
        completed.map(drop).map_err(|error| self.store.failure(self.uri, error))
    }

    fn aborting(&self) -> impl Future<Output = ()> + Send + 'static {
        let (store, uri) = (self.store.clone(), self.uri.clone());
        let request =
            store.client.abort_multipart_upload().bucket(self.bucket).key(self.key).upload_id(&self.id);
        async move {
            let Err(error) = Box::pin(request.send()).await else { return };
            let failure = store.failure(&uri, error);
            if failure.status() != Some(404) {
                let error = failure.into_error();
                tracing::warn!(%error, "an unfinished multipart upload stays: a lifecycle rule can remove it");
            }
        }
    }
}

impl Drop for OpenUpload<'_> {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        // Cancelled in the middle: nobody is left to wait for the abort but `settled`.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.store.cleanup.spawn_on(self.aborting(), &runtime);
        }
    }
}
