//! A large file: sent in parts, several at a time, read once.

use std::{path::Path, pin::pin};

use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesOrdered};

use super::{
    S3Store,
    classify::Failure,
    object_of,
    source::{self, Source},
    upload::time_for,
};
use crate::store::{ObjectUri, StoreError, Stored};

/// Bytes of a part, the fewest that S3 takes; more where the file would need more parts than it takes.
const PART: u64 = 5 << 20;
/// The most parts of one upload (S3's limit).
const MOST_PARTS: u64 = 10_000;
/// Parts in memory at a time: read, or on their way.
const PARTS_IN_FLIGHT: usize = 3;
/// Putting the parts of the largest objects together may take S3 minutes: as long as these bytes would.
const COMPLETION: u64 = 16 << 20;

/// A multipart upload that is not complete. Dropped, it is aborted: its parts would be kept, unseen and paid for.
struct OpenUpload<'a> {
    store: &'a S3Store,
    uri: &'a ObjectUri,
    bucket: &'a str,
    key: &'a str,
    id: String,
    open: bool,
}

/// Sends the file from its start; a call that follows a failed one reads it anew.
pub(super) async fn put(
    store: &S3Store,
    uri: &ObjectUri,
    path: &Path,
    size: u64,
    content_type: &str,
) -> Result<Stored, Failure> {
    let (bucket, key) = object_of(uri).map_err(Failure::last)?;
    let mut source = Source::open(uri, path, size).await.map_err(Failure::last)?;
    let created = store.client.create_multipart_upload().bucket(bucket).key(key).content_type(content_type);
    let created = created.set_checksum_algorithm(store.checksums.then_some(ChecksumAlgorithm::Crc32)).send();
    let created = Box::pin(created).await.map_err(|error| store.failure(uri, error))?;
    let id = created.upload_id.ok_or_else(|| {
        let reason = format!("{} began a multipart upload without an id", store.place);
        Failure::last(StoreError::Misconfigured { uri: uri.to_string(), reason })
    })?;
    let mut upload = OpenUpload { store, uri, bucket, key, id, open: true };
    let outcome = match upload.send_parts(&mut source).await {
        Ok(parts) => upload.complete(parts).await,
        Err(error) => Err(Failure::last(error)),
    };
    if outcome.is_err() {
        upload.aborting().await;
    }
    upload.open = false;
    outcome.map(|()| source.finish())
}

impl OpenUpload<'_> {
    async fn send_parts(&self, source: &mut Source) -> Result<Vec<CompletedPart>, StoreError> {
        let part_size = PART.max(source.size().div_ceil(MOST_PARTS));
        let mut sending = FuturesOrdered::new();
        // In order, as completion wants them.
        let mut parts = Vec::new();
        for number in 1.. {
            // What waits for memory here holds none: the parts before it are whole, and go on being sent.
            let mut reading = pin!(source.next(part_size));
            let part = loop {
                tokio::select! {
                    part = &mut reading => break part?,
                    Some(sent) = sending.next() => parts.push(sent?),
                }
            };
            let Some(part) = part else { break };
            sending.push_back(async move {
                self.store.again(|| self.send_part(number, part.bytes.clone())).await
            });
            if sending.len() == PARTS_IN_FLIGHT
                && let Some(sent) = sending.next().await
            {
                parts.push(sent?);
            }
        }
        while let Some(sent) = sending.next().await {
            parts.push(sent?);
        }
        Ok(parts)
    }

    async fn send_part(&self, number: i32, part: Bytes) -> Result<CompletedPart, Failure> {
        let store = self.store;
        let length = part.len() as u64;
        let request = store.client.upload_part().bucket(self.bucket).key(self.key);
        let request = request
            .upload_id(&self.id)
            .part_number(number)
            .set_checksum_algorithm(store.checksums.then_some(ChecksumAlgorithm::Crc32))
            .body(source::body(part));
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
        let request = request.customize().config_override(time_for(self.store, COMPLETION));
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
