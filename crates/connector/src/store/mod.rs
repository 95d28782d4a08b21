//! Objects: read, written and created once, behind one trait; and a local folder that holds some.

mod local;
pub mod probe;

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use contract::ObjectUri;
use futures_util::stream::BoxStream;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_util::io::StreamReader;
use url::Url;

pub use local::LocalStore;

use crate::checksum;

/// Bytes whose SHA-256 takes well below a millisecond.
const SUMMED_AT_ONCE: usize = 256 << 10;

/// Why an object could not be read or written; each variant says whose fault it is.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such object or bucket: the job's fault.
    #[error("{uri}: not found")]
    NotFound {
        /// What was asked for.
        uri: String,
    },
    /// The credentials do not open it, or are refused themselves. The job's fault for an input or an output's place, as
    /// long as the store takes these credentials elsewhere: keys that are exchanged are refused for a while.
    #[error("{uri}: access denied: {reason}")]
    Forbidden {
        /// What was asked for.
        uri: String,
        /// The store's own words.
        reason: String,
    },
    /// No longer the version that was asked for.
    #[error("{uri}: the object was replaced meanwhile")]
    Changed {
        /// What was asked for.
        uri: String,
    },
    /// Larger than the caller allows.
    #[error("{uri}: larger than {limit} bytes")]
    TooLarge {
        /// What was asked for.
        uri: String,
        /// The limit.
        limit: u64,
    },
    /// The bucket is in another region than the one that is asked.
    #[error("{uri}: {reason}")]
    Misplaced {
        /// What was asked for.
        uri: String,
        /// The region it is in, where the store says so.
        reason: String,
    },
    /// Wrong settings: no credentials, no such scheme here. Trying again does not help.
    #[error("{uri}: {reason}")]
    Misconfigured {
        /// What was asked for.
        uri: String,
        /// What is wrong and what to change.
        reason: String,
    },
    /// Network, 5xx, throttling: trying again may help, and the store has done so already.
    #[error("{uri}: {reason}")]
    Unavailable {
        /// What was asked for.
        uri: String,
        /// The last answer.
        reason: String,
    },
    /// The local side failed (disk full, no permission).
    #[error("{uri}: {source}")]
    Local {
        /// What was asked for.
        uri: String,
        /// What the operating system said.
        source: std::io::Error,
    },
}

impl StoreError {
    /// What an error of [`Object::body`] meant; `uri` only names the object in the message.
    #[must_use]
    pub fn from_read(uri: &ObjectUri, error: std::io::Error) -> Self {
        error.downcast::<Self>().unwrap_or_else(|source| Self::Local { uri: uri.to_string(), source })
    }
}

impl From<StoreError> for std::io::Error {
    fn from(error: StoreError) -> Self {
        Self::other(error)
    }
}

/// An object that is being read.
pub struct Object {
    /// The size of all of it in bytes, where the store says so before the body.
    pub size: Option<u64>,
    /// What changes when its content does (an ETag), where the store tells.
    pub version: Option<String>,
    /// Its content from where it was opened. Dropping it ends the transfer. It ends early only with an error, which
    /// [`StoreError::from_read`] turns back into the reason.
    pub body: BoxStream<'static, std::io::Result<Bytes>>,
}

impl Object {
    /// Its content for those who read rather than take what comes.
    pub fn into_reader(self) -> impl AsyncRead + Send + Unpin {
        StreamReader::new(self.body)
    }
}

/// What is written.
#[derive(Clone, Debug)]
pub enum Content {
    /// Held in memory: small things only.
    Bytes(Bytes),
    /// A file, streamed from `path`, exactly `size` bytes of it.
    File {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
}

/// What [`ObjectStore::put`] wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its size in bytes.
    pub size: u64,
    /// The SHA-256 of the very bytes that were sent, in lower-case hexadecimal digits.
    pub sha256: String,
}

impl Stored {
    /// Of bytes in memory, off the async threads where there are many.
    pub async fn of(bytes: &Bytes) -> Self {
        let size = bytes.len() as u64;
        if bytes.len() <= SUMMED_AT_ONCE {
            return Self { size, sha256: checksum::of_bytes(bytes) };
        }
        let shared = bytes.clone();
        match tokio::task::spawn_blocking(move || checksum::of_bytes(&shared)).await {
            Ok(sha256) => Self { size, sha256 },
            Err(stopped) => std::panic::resume_unwind(stopped.into_panic()),
        }
    }
}

/// What [`ObjectStore::create`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Creation {
    /// This call wrote the object.
    Created,
    /// The object was there before and has not been touched. After a lost answer and a retry
    /// inside the store it may be this very call's own: compare contents.
    Exists,
}

/// A place for objects. Implementations retry what is worth it (backoff) within each call.
#[async_trait::async_trait]
pub trait ObjectStore: Send + Sync + std::fmt::Debug {
    /// Opens an object for reading, from byte `offset` on. With a `version` it is that one or
    /// [`StoreError::Changed`].
    async fn open_from(
        &self,
        uri: &ObjectUri,
        offset: u64,
        version: Option<&str>,
    ) -> Result<Object, StoreError>;

    /// What [`Object::version`] would say, without a body.
    async fn version(&self, uri: &ObjectUri) -> Result<Option<String>, StoreError>;

    /// Opens an object for reading.
    async fn open(&self, uri: &ObjectUri) -> Result<Object, StoreError> {
        self.open_from(uri, 0, None).await
    }

    /// Writes an object, replacing what is there; whole or not at all.
    async fn put(&self, uri: &ObjectUri, content: Content, content_type: &str) -> Result<Stored, StoreError>;

    /// Writes an object unless there is one already; atomically.
    async fn create(&self, uri: &ObjectUri, body: Bytes, content_type: &str) -> Result<Creation, StoreError>;

    /// Removes an object; one that is not there is no error.
    async fn delete(&self, uri: &ObjectUri) -> Result<(), StoreError>;

    /// A link that reads the object without credentials for `lifetime` (at most 7 days, and no longer
    /// than the credentials live that sign it); `None` where there is no such thing.
    async fn presign_get(&self, uri: &ObjectUri, lifetime: Duration) -> Result<Option<Url>, StoreError>;

    /// Writes, creates again, reads and removes a small object under `prefix`: shows that the
    /// place is there, writable, and that its create-once is honoured.
    async fn probe(&self, prefix: &ObjectUri) -> Result<(), StoreError>;

    /// Reads an object of at most `limit` bytes into memory.
    async fn read(&self, uri: &ObjectUri, limit: u64) -> Result<Bytes, StoreError> {
        let object = self.open(uri).await?;
        let too_large = || StoreError::TooLarge { uri: uri.to_string(), limit };
        if object.size.is_some_and(|size| size > limit) {
            return Err(too_large());
        }
        let mut body = Vec::new();
        let read = object.into_reader().take(limit.saturating_add(1)).read_to_end(&mut body).await;
        read.map_err(|error| StoreError::from_read(uri, error))?;
        if body.len() as u64 > limit { Err(too_large()) } else { Ok(body.into()) }
    }
}
