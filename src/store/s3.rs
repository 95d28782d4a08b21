//! Objects in S3, by the AWS SDK: the only part of the crate that knows it.

mod buffer_pool;
mod classify;
mod client;
mod download;
mod multipart;
mod note;
mod object_checksum;
mod ranged_download;
mod source;
#[cfg(test)]
mod tests;
mod upload;

use std::{fmt, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use aws_sdk_s3::{Client, presigning::PresigningConfig};
use backon::Retryable;
use bytes::Bytes;
use contract::ObjectUri;
use secrecy::SecretString;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;

use self::{
    classify::S3Failure, client::TransferLimits, download::Download, ranged_download::RangedDownload,
};
use connector::store::probe;

use super::{Content, Creation, Object, ObjectStore, StoreError, Stored};
use crate::config::StoreConfig;

/// The longest life that the signature of a link can have (AWS Signature Version 4).
const LONGEST_LINK: Duration = Duration::from_secs(7 * 24 * 3600);

/// Objects in S3, by the AWS SDK.
#[derive(Clone)]
pub struct S3Store {
    client: Client,
    /// The endpoint and region, for messages.
    place: Arc<str>,
    /// Whether the parts of a multipart upload carry checksums (not where the AWS settings forbid them).
    checksums: bool,
    limits: TransferLimits,
    /// Aborts of multipart uploads whose callers are gone.
    cleanup: TaskTracker,
    /// Cancelled when such aborts are tried a last time.
    closing: CancellationToken,
    /// Where uploads that are not complete are written down.
    notes: Option<Arc<Path>>,
}

impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Store").field("place", &self.place).finish_non_exhaustive()
    }
}

impl S3Store {
    /// A store with this access key and secret, or with those of the AWS chain. Contacts nothing.
    pub(super) async fn new(config: &StoreConfig, keys: Option<(&str, &SecretString)>) -> Self {
        Self::with_limits(config, keys, TransferLimits::default()).await
    }

    /// Waits for the aborts of uploads whose callers are gone.
    pub(super) async fn settled(&self) {
        self.closing.cancel();
        self.cleanup.close();
        self.cleanup.wait().await;
    }

    fn unavailable(&self, uri: &ObjectUri, reason: String) -> StoreError {
        StoreError::Unavailable { uri: uri.to_string(), reason: format!("{}: {reason}", self.place) }
    }

    /// Sends what the SDK itself has given up on again, where that may help.
    async fn again<T, F>(&self, attempt: impl FnMut() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, S3Failure>>,
    {
        let backoff = backon::ExponentialBuilder::default()
            .with_min_delay(self.limits.backoff)
            .with_max_times(4)
            .with_jitter();
        attempt.retry(backoff).when(S3Failure::is_worth_repeating).await.map_err(S3Failure::into_error)
    }
}

#[async_trait]
impl ObjectStore for S3Store {
    async fn open_from(
        &self,
        uri: &ObjectUri,
        offset: u64,
        version: Option<&str>,
    ) -> Result<Object, StoreError> {
        let download = Box::pin(Download::start(self, uri, offset, version)).await?;
        let (size, version) = (download.size(), download.version().map(str::to_owned));
        Ok(Object { size, version, body: RangedDownload::of(download) })
    }

    async fn version(&self, uri: &ObjectUri) -> Result<Option<String>, StoreError> {
        let (bucket, key) = object_of(uri)?;
        let head = Box::pin(self.client.head_object().bucket(bucket).key(key).send()).await;
        head.map(|head| head.e_tag).map_err(|error| self.failure(uri, error).into_error())
    }

    async fn put(&self, uri: &ObjectUri, content: Content, content_type: &str) -> Result<Stored, StoreError> {
        Box::pin(upload::put(self, uri, content, content_type)).await
    }

    async fn create(&self, uri: &ObjectUri, body: Bytes, content_type: &str) -> Result<Creation, StoreError> {
        Box::pin(upload::create(self, uri, body, content_type)).await
    }

    async fn delete(&self, uri: &ObjectUri) -> Result<(), StoreError> {
        let (bucket, key) = object_of(uri)?;
        let delete = self.client.delete_object().bucket(bucket).key(key).send();
        Box::pin(delete).await.map(drop).map_err(|error| self.failure(uri, error).into_error())
    }

    async fn presign_get(&self, uri: &ObjectUri, lifetime: Duration) -> Result<Option<Url>, StoreError> {
        let (bucket, key) = object_of(uri)?;
        let wrong = |reason: String| StoreError::Misconfigured { uri: uri.to_string(), reason };
        let signing = PresigningConfig::expires_in(lifetime.min(LONGEST_LINK))
            .map_err(|error| wrong(format!("a link cannot live {lifetime:?}: {error}")))?;
        let request = self.client.get_object().bucket(bucket).key(key).presigned(signing);
        // Signing contacts no store, but it may have to fetch credentials first.
        let signed = tokio::time::timeout(self.limits.attempt, Box::pin(request)).await;
        let signed = signed.map_err(|_| StoreError::Unavailable {
            uri: uri.to_string(),
            reason: format!("no credentials to sign a link with after {:?}", self.limits.attempt),
        })?;
        let link = signed.map_err(|error| self.failure(uri, error).into_error())?;
        // The link opens the object: it must not show up in an error.
        Url::parse(link.uri()).map(Some).map_err(|error| wrong(format!("the signed link is no URL: {error}")))
    }

    async fn probe(&self, prefix: &ObjectUri) -> Result<(), StoreError> {
        let uri = probe::object_beneath(prefix)?;
        let outcome = probe::run(self, prefix, &uri).await;
        match self.delete(&uri).await {
            // Jobs need no right to delete: a place that refuses it is fit for work all the same.
            Err(StoreError::Forbidden { reason, .. }) => {
                tracing::warn!(object = %uri, reason, "the probe's object stays: the credentials cannot delete");
                outcome
            }
            removed => outcome.and(removed),
        }
    }
}

/// How browsers take an object of that type, by the header Content-Disposition: what could run scripts, in the name of
/// the bucket's host, is saved and not shown. HTML, SVG and XML among it, and what nobody knows.
fn disposition(content_type: &str) -> Option<String> {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    let kind = essence.split('/').next().unwrap_or_default();
    let harmless = matches!(kind, "image" | "video" | "audio") && !essence.ends_with("xml")
        || matches!(essence, "text/plain" | "application/json" | "application/octet-stream");
    (!harmless).then(|| "attachment".to_owned())
}

/// Bucket and key of an object.
fn object_of(uri: &ObjectUri) -> Result<(&str, &str), StoreError> {
    match uri {
        ObjectUri::S3 { bucket, key } if !key.is_empty() => Ok((bucket, key)),
        _ => Err(StoreError::Misconfigured {
            uri: uri.to_string(),
            reason: "names no object in S3: use s3://bucket/key".to_owned(),
        }),
    }
}
