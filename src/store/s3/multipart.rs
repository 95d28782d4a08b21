//! A large file: sent in parts, several at a time, read once.

use std::{path::Path, pin::pin, sync::Arc, time::Duration};

use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use futures_util::{StreamExt, stream::FuturesOrdered};
use tokio::time::sleep;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use super::{
    S3Store,
    classify::Failure,
    object_of,
    source::{Source, SummedBytes},
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

/// How long parts on their way are waited for before an abort: one that the store receives after it would be
/// kept (S3's documentation of AbortMultipartUpload).
const LAST_PARTS: Duration = Duration::from_secs(3);

/// A multipart upload that is not complete. Dropped, it is aborted: its parts would be kept, unseen and paid for.
struct OpenUpload {
    target: Arc<Target>,
    /// The parts on their way: each ends by itself, or a while after `given_up`.
    parts: TaskTracker,
    given_up: CancellationToken,
    open: bool,
}

/// Where parts go.
struct Target {
    store: S3Store,
    uri: ObjectUri,
    bucket: String,
    key: String,
    id: String,
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
    let (bucket, key) = (bucket.to_owned(), key.to_owned());
    let target = Arc::new(Target { store: store.clone(), uri: uri.clone(), bucket, key, id });
    let (parts, given_up) = (TaskTracker::new(), CancellationToken::new());
    let mut upload = OpenUpload { target, parts, given_up, open: true };
    let outcome = match upload.send_parts(&mut source).await {
        Ok(parts) => upload.target.complete(parts).await,
        Err(error) => Err(Failure::last(error)),
    };
    if outcome.is_err() {
        upload.aborting().await;
    }
    upload.open = false;
    outcome.map(|()| source.finish())
}

impl OpenUpload {
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
                    Some(sent) = sending.next() => parts.push(whole(sent)?),
                }
            };
            let Some(part) = part else { break };
            let (target, given_up) = (Arc::clone(&self.target), self.given_up.clone());
            let part = async move {
                let late = async {
                    given_up.cancelled().await;
                    sleep(LAST_PARTS).await;
                };
                tokio::select! {
                    sent = target.store.again(|| target.send_part(number, &part.body)) => sent,
                    () = late => Err(target.store.unavailable(&target.uri, "given up".to_owned())),
                }
            };
            sending.push_back(self.parts.spawn(part.in_current_span()));
            if sending.len() == PARTS_IN_FLIGHT
                && let Some(sent) = sending.next().await
            {
                parts.push(whole(sent)?);
            }
        }
        while let Some(sent) = sending.next().await {
            parts.push(whole(sent)?);
        }
        Ok(parts)
    }

    /// Once no part is on its way any more.
    fn aborting(&self) -> impl Future<Output = ()> + Send + 'static {
        self.given_up.cancel();
        self.parts.close();
        let (target, parts) = (Arc::clone(&self.target), self.parts.clone());
        async move {
            parts.wait().await;
            target.abort().await;
        }
    }
}

/// A panic in a part goes on here.
fn whole(
    sent: Result<Result<CompletedPart, StoreError>, tokio::task::JoinError>,
) -> Result<CompletedPart, StoreError> {
    sent.unwrap_or_else(|stopped| std::panic::resume_unwind(stopped.into_panic()))
}

impl Target {
    async fn send_part(&self, number: i32, part: &SummedBytes) -> Result<CompletedPart, Failure> {
        let store = &self.store;
        let length = part.len();
        let request = store.client.upload_part().bucket(&self.bucket).key(&self.key);
        let request = request
            .upload_id(&self.id)
            .part_number(number)
            .set_checksum_crc32(store.checksums.then(|| part.crc32()))
            .body(part.stream());
        let sent = request.customize().config_override(time_for(store, length)).send();
        let sent = Box::pin(sent).await.map_err(|error| store.failure(&self.uri, error))?;
        Ok(CompletedPart::builder()
            .part_number(number)
            .set_e_tag(sent.e_tag)
            .set_checksum_crc32(sent.checksum_crc32)
            .build())
    }

    async fn complete(&self, parts: Vec<CompletedPart>) -> Result<(), Failure> {
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let request = self.store.client.complete_multipart_upload().bucket(&self.bucket).key(&self.key);
        let request = request.upload_id(&self.id).multipart_upload(parts);
        let request = request.customize().config_override(time_for(&self.store, COMPLETION));
        let completed = Box::pin(request.send()).await;
        completed.map(drop).map_err(|error| self.store.failure(&self.uri, error))
    }

    async fn abort(&self) {
        let request = self.store.client.abort_multipart_upload().bucket(&self.bucket).key(&self.key);
        let Err(error) = Box::pin(request.upload_id(&self.id).send()).await else { return };
        let failure = self.store.failure(&self.uri, error);
        if failure.status() != Some(404) {
            let error = failure.into_error();
            tracing::warn!(%error, "an unfinished multipart upload stays: a lifecycle rule can remove it");
        }
    }
}

impl Drop for OpenUpload {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        // Cancelled in the middle: nobody is left to wait for the abort but `settled`.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.target.store.cleanup.spawn_on(self.aborting(), &runtime);
        }
    }
}
