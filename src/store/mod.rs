//! S3 or a local folder, told apart by the address; and whether the place for results is there.

mod monitor;
mod s3;

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use contract::ObjectUri;
use secrecy::SecretString;
use url::Url;

pub use connector::store::{Content, Creation, LocalStore, Object, ObjectStore, StoreError, Stored};
pub use monitor::StoreMonitor;
pub use s3::S3Store;

use crate::config::StoreConfig;

/// Every place that this process can reach, told apart by the address.
#[derive(Clone, Debug)]
pub struct Stores {
    s3: S3Store,
    local: LocalStore,
}

impl Stores {
    /// The places that `config` and the AWS chain (environment, profile, web identity) open.
    /// Nothing is contacted yet.
    pub async fn new(config: &StoreConfig) -> Self {
        Self { s3: S3Store::new(config, None).await, local: LocalStore }
    }

    /// The same with this access key and secret instead of the AWS chain's: for programs that hold them.
    pub async fn with_credentials(config: &StoreConfig, access_key: &str, secret_key: &SecretString) -> Self {
        Self { s3: S3Store::new(config, Some((access_key, secret_key))).await, local: LocalStore }
    }

    /// Writes multipart uploads down in this folder as long as they are not complete, and aborts, while others go on,
    /// those that dead processes left there. Needs a runtime.
    #[must_use]
    pub fn with_upload_notes(self, folder: PathBuf) -> Self {
        Self { s3: self.s3.with_notes(folder), ..self }
    }

    /// Waits until what dropped calls left behind (multipart uploads) is cleared away; each has a time
    /// limit. A drain calls it last, or the process ends before them.
    pub async fn settled(&self) {
        self.s3.settled().await;
    }

    fn of(&self, uri: &ObjectUri) -> &dyn ObjectStore {
        match uri {
            ObjectUri::S3 { .. } => &self.s3,
            ObjectUri::File(_) => &self.local,
        }
    }
}

#[async_trait::async_trait]
impl ObjectStore for Stores {
    async fn open_from(
        &self,
        uri: &ObjectUri,
        offset: u64,
        version: Option<&str>,
    ) -> Result<Object, StoreError> {
        self.of(uri).open_from(uri, offset, version).await
    }

    async fn version(&self, uri: &ObjectUri) -> Result<Option<String>, StoreError> {
        self.of(uri).version(uri).await
    }

    async fn put(&self, uri: &ObjectUri, content: Content, content_type: &str) -> Result<Stored, StoreError> {
        self.of(uri).put(uri, content, content_type).await
    }

    async fn create(&self, uri: &ObjectUri, body: Bytes, content_type: &str) -> Result<Creation, StoreError> {
        self.of(uri).create(uri, body, content_type).await
    }

    async fn delete(&self, uri: &ObjectUri) -> Result<(), StoreError> {
        self.of(uri).delete(uri).await
    }

    async fn presign_get(&self, uri: &ObjectUri, lifetime: Duration) -> Result<Option<Url>, StoreError> {
        self.of(uri).presign_get(uri, lifetime).await
    }

    async fn probe(&self, prefix: &ObjectUri) -> Result<(), StoreError> {
        self.of(prefix).probe(prefix).await
    }
}
