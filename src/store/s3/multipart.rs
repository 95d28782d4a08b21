//! A large file: sent in parts, several at a time, read once.

use std::{path::Path, pin::pin, sync::Arc, time::Duration};

use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use contract::ObjectUri;
use futures_util::{StreamExt, stream::FuturesOrdered};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use super::{
    S3Store,
    classify::S3Failure,
    disposition,
    note::Note,
    object_of,
    source::{Source, SummedBytes},
    upload::time_for,
};
use crate::store::{StoreError, Stored};

/// Bytes of a part, the fewest that S3 takes; more where the file would need more parts than it takes.
const PART: u64 = 5 << 20;
/// The most parts of one upload (S3's limit).
const MAX_PARTS: u64 = 10_000;
/// Parts in memory at a time: read, or on their way.
const PARTS_IN_FLIGHT: usize = 3;
/// Putting the parts of the largest objects together may take S3 minutes: as long as these bytes would.
const COMPLETION: u64 = 16 << 20;

/// How long parts on their way are waited for before an abort: one that the store receives after it would be
/// kept (S3's documentation of AbortMultipartUpload).
const LAST_PARTS: Duration = Duration::from_secs(3);

/// How long those of a dead worker are waited for: nobody knows how far they are, and a proxy may hold them.
pub(super) const LOST_PARTS: Duration = Duration::from_secs(10);

/// Before an abort that failed is tried again; the pauses double up to the longest, for as long as it is worth.
const ABORT_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_ABORT_PAUSE: Duration = Duration::from_secs(60);
const ABORT_PATIENCE: Duration = Duration::from_secs(3600);

/// A multipart upload that is not complete. Dropped, it is aborted: its parts would be kept, unseen and paid for.
struct OpenUpload {
    target: Arc<UploadTarget>,
    /// The parts on their way: each ends by itself, or a while after `given_up`.
    parts: TaskTracker,
    given_up: CancellationToken,
    open: bool,
}

/// Where parts go.
pub(super) struct UploadTarget {
    store: S3Store,
    uri: ObjectUri,
    bucket: String,
    key: String,
    id: String,
    note: Option<Note>,
}

/// Sends the file from its start; a call that follows a failed one reads it again.
pub(super) async fn put(
    store: &S3Store,
    uri: &ObjectUri,
    path: &Path,
    size: u64,
    content_type: &str,
) -> Result<Stored, S3Failure> {
    let mut source = Source::open(uri, path, size).await.map_err(S3Failure::last)?;
    let begun = OpenUpload::begin(store.clone(), uri.clone(), content_type.to_owned()).in_current_span();
    let (told, tell) = oneshot::channel();
    // A task of its own: given up while the request is on its way, the upload would be there and nobody would know it.
    // What nobody hears of is dropped there, before the task ends.
    store.cleanup.spawn(async { drop(told.send(begun.await)) });
    let upload = tell.await.map_err(|_| S3Failure::last(store.unavailable(uri, "given up".to_owned())));
    let mut upload = upload??;
    let outcome = match upload.send_parts(&mut source).await {
        Ok(parts) => upload.target.complete(parts).await,
        Err(error) => Err(S3Failure::last(error)),
    };
    if outcome.is_err() {
        upload.aborting().await;
    }
    upload.open = false;
    outcome.map(|()| source.finish())
}

impl OpenUpload {
    async fn begin(store: S3Store, uri: ObjectUri, content_type: String) -> Result<Self, S3Failure> {
        let (bucket, key) = object_of(&uri).map_err(S3Failure::last)?;
        let (bucket, key) = (bucket.to_owned(), key.to_owned());
        let created = store
            .client
            .create_multipart_upload()
            .bucket(&bucket)
            .key(&key)
            .set_content_disposition(disposition(&content_type))
            .content_type(content_type);
        let created =
            created.set_checksum_algorithm(store.checksums.then_some(ChecksumAlgorithm::Crc32)).send();
        let created = Box::pin(created).await.map_err(|error| store.failure(&uri, error))?;
        let id = created.upload_id.ok_or_else(|| {
            let reason = format!("{} began a multipart upload without an id", store.place);
            S3Failure::last(StoreError::Misconfigured { uri: uri.to_string(), reason })
        })?;
        let mut target = UploadTarget { store, uri, bucket, key, id, note: None };
        target.write_down().await;
        let (target, parts, given_up) = (Arc::new(target), TaskTracker::new(), CancellationToken::new());
        Ok(Self { target, parts, given_up, open: true })
    }

    async fn send_parts(&self, source: &mut Source) -> Result<Vec<CompletedPart>, StoreError> {
        let part_size = PART.max(source.size().div_ceil(MAX_PARTS));
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
            if let Err(error) = target.abort().await {
                tracing::debug!(%error, "an unfinished multipart upload is not aborted yet");
                let cleanup = target.store.cleanup.clone();
                cleanup.spawn(target.abort_once_it_can(ABORT_PAUSE));
            }
        }
    }
}

/// A panic in a part goes on here.
fn whole(
    sent: Result<Result<CompletedPart, StoreError>, tokio::task::JoinError>,
) -> Result<CompletedPart, StoreError> {
    sent.unwrap_or_else(|stopped| std::panic::resume_unwind(stopped.into_panic()))
}

impl UploadTarget {
    /// An upload that a dead worker began.
    pub(super) fn left(store: &S3Store, uri: ObjectUri, id: String, note: Note) -> Option<Arc<Self>> {
        let (bucket, key) = object_of(&uri).ok()?;
        let (bucket, key) = (bucket.to_owned(), key.to_owned());
        Some(Arc::new(Self { store: store.clone(), uri, bucket, key, id, note: Some(note) }))
    }

    async fn write_down(&mut self) {
        let Some(folder) = &self.store.notes else { return };
        match Note::write(folder, &self.uri, &self.id).await {
            Ok(note) => self.note = Some(note),
            // A full disk must not keep outputs from the store.
            Err(error) => tracing::debug!(%error, "cannot write the note of a multipart upload"),
        }
    }

    async fn send_part(&self, number: i32, part: &SummedBytes) -> Result<CompletedPart, S3Failure> {
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

    async fn complete(&self, parts: Vec<CompletedPart>) -> Result<(), S3Failure> {
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let request = self.store.client.complete_multipart_upload().bucket(&self.bucket).key(&self.key);
        let request = request.upload_id(&self.id).multipart_upload(parts);
        let request = request.customize().config_override(time_for(&self.store, COMPLETION));
        Box::pin(request.send()).await.map_err(|error| self.store.failure(&self.uri, error))?;
        self.over().await;
        Ok(())
    }

    /// Nothing of it is left to abort.
    async fn over(&self) {
        if let Some(note) = &self.note {
            note.strike().await;
        }
    }

    async fn abort(&self) -> Result<(), StoreError> {
        let request = self.store.client.abort_multipart_upload().bucket(&self.bucket).key(&self.key);
        if let Err(error) = Box::pin(request.upload_id(&self.id).send()).await {
            let failure = self.store.failure(&self.uri, error);
            // Completed, or aborted: an answer was lost.
            if failure.status() != Some(404) {
                return Err(failure.into_error());
            }
        }
        self.over().await;
        Ok(())
    }

    /// Nobody waits for this: what broke the upload, a store that is away, is there for as long as it likes. Once the
    /// worker ends it is tried a last time, then it is left to the next start.
    pub(super) async fn abort_once_it_can(self: Arc<Self>, first_pause: Duration) {
        let (since, mut pause, mut next_pause) = (Instant::now(), first_pause, ABORT_PAUSE);
        loop {
            tokio::select! {
                () = sleep(pause) => {}
                () = self.store.closing.cancelled() => {}
            }
            let Err(error) = self.abort().await else { return };
            if self.store.closing.is_cancelled() || since.elapsed() > ABORT_PATIENCE {
                tracing::warn!(%error, "an unfinished multipart upload stays until the next start, or until a lifecycle rule removes it");
                return;
            }
            (pause, next_pause) = (next_pause, (next_pause * 2).min(LONGEST_ABORT_PAUSE));
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
