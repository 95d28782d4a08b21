//! Objects in local folders: whole files, each put in place by one rename.

use std::{
    fs::{self, File, Permissions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use contract::ObjectUri;
use futures_util::StreamExt;
use tempfile::NamedTempFile;
use tokio_util::{io::ReaderStream, sync::CancellationToken};
use url::Url;

use super::{Content, Creation, Object, ObjectStore, StoreError, Stored, probe};
use crate::{checksum::RunningChecksum, files};

/// Bytes read at a time, or copied between two looks at whether somebody still waits for the copy.
const CHUNK: usize = 1 << 20;

/// Objects in local folders.
#[derive(Clone, Debug)]
pub struct LocalStore;

#[async_trait]
impl ObjectStore for LocalStore {
    async fn open_from(
        &self,
        uri: &ObjectUri,
        offset: u64,
        version: Option<&str>,
    ) -> Result<Object, StoreError> {
        let path = path_of(uri)?;
        let open = move || {
            let (mut file, metadata) = open_regular(&path)?;
            file.seek(SeekFrom::Start(offset))?;
            Ok((file, metadata))
        };
        let (file, metadata) = blocking(uri, open).await.map_err(missing)?;
        let found = version_of(&metadata);
        if version.is_some_and(|version| version != found) {
            return Err(StoreError::Changed { uri: uri.to_string() });
        }
        let body = ReaderStream::with_capacity(tokio::fs::File::from_std(file), CHUNK);
        Ok(Object { size: Some(metadata.len()), version: Some(found), body: body.boxed() })
    }

    async fn version(&self, uri: &ObjectUri) -> Result<Option<String>, StoreError> {
        let path = path_of(uri)?;
        let (_, metadata) = blocking(uri, move || open_regular(&path)).await.map_err(missing)?;
        Ok(Some(version_of(&metadata)))
    }

    async fn put(
        &self,
        uri: &ObjectUri,
        content: Content,
        _content_type: &str,
    ) -> Result<Stored, StoreError> {
        let path = path_of(uri)?;
        // A blocking task outlives the future that waits for it: it looks at this token.
        let abandoned = CancellationToken::new();
        let _abandon_on_drop = abandoned.clone().drop_guard();
        let write = move || {
            let mut sum = RunningChecksum::default();
            let (part, size) = match content {
                Content::Bytes(bytes) => {
                    sum.update(&bytes);
                    (written(&path, |part| part.write_all(&bytes))?, bytes.len() as u64)
                }
                Content::File { path: source, size } => {
                    (written(&path, |part| copy(&source, size, part, &mut sum, &abandoned))?, size)
                }
            };
            if abandoned.is_cancelled() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            part.persist(&path).map_err(|error| error.error)?;
            sync_folder(&path)?;
            Ok(Stored { size, sha256: sum.finish() })
        };
        blocking(uri, write).await
    }

    async fn create(
        &self,
        uri: &ObjectUri,
        body: Bytes,
        _content_type: &str,
    ) -> Result<Creation, StoreError> {
        let path = path_of(uri)?;
        let write = move || {
            let part = written(&path, |part| part.write_all(&body))?;
            // Atomic: renameat2(RENAME_NOREPLACE), or a hard link where the file system has no such rename.
            match part.persist_noclobber(&path) {
                Ok(_) => sync_folder(&path).map(|()| Creation::Created),
                Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(Creation::Exists),
                Err(error) => Err(error.error),
            }
        };
        blocking(uri, write).await
    }

    async fn delete(&self, uri: &ObjectUri) -> Result<(), StoreError> {
        let path = path_of(uri)?;
        let removed = blocking(uri, move || match fs::remove_file(&path) {
            Err(error) if is_missing(&error) => Ok(()),
            Err(error) => Err(error),
            Ok(()) => sync_folder(&path),
        });
        removed.await
    }

    async fn presign_get(&self, _uri: &ObjectUri, _lifetime: Duration) -> Result<Option<Url>, StoreError> {
        Ok(None)
    }

    async fn probe(&self, prefix: &ObjectUri) -> Result<(), StoreError> {
        let uri = probe::object_beneath(prefix)?;
        let outcome = probe::run(self, prefix, &uri).await;
        outcome.and(self.delete(&uri).await)
    }
}

fn path_of(uri: &ObjectUri) -> Result<PathBuf, StoreError> {
    match uri {
        ObjectUri::File(path) => Ok(path.clone()),
        ObjectUri::S3 { .. } => Err(StoreError::Misconfigured {
            uri: uri.to_string(),
            reason: "is no local file: use file:///folder".to_owned(),
        }),
    }
}

/// Runs file work off the async threads and names the object in its error.
async fn blocking<T: Send + 'static>(
    uri: &ObjectUri,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, StoreError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|stopped| Err(io::Error::other(stopped)))
        .map_err(|source| StoreError::Local { uri: uri.to_string(), source })
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn missing(error: StoreError) -> StoreError {
    match error {
        StoreError::Local { uri, source } if is_missing(&source) => StoreError::NotFound { uri },
        other => other,
    }
}

/// Another file, another size or another time of change is another version.
fn version_of(metadata: &fs::Metadata) -> String {
    let (inode, size) = (metadata.ino(), metadata.size());
    format!("{inode:x}-{size:x}-{:x}.{:09}", metadata.mtime(), metadata.mtime_nsec())
}

fn open_regular(path: &Path) -> io::Result<(File, fs::Metadata)> {
    let file = files::open_regular(File::options().read(true), path)?;
    let metadata = file.metadata()?;
    Ok((file, metadata))
}

/// A synced temporary file beside `path`; dropped before it is persisted, it is removed.
fn written(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<NamedTempFile> {
    let folder = folder_of(path);
    fs::create_dir_all(folder).map_err(|error| naming("cannot make the folder", folder, &error))?;
    let mut part = tempfile::Builder::new()
        .prefix(".comfy-worker-")
        .suffix(".part")
        // Less the umask, like any file; tempfile's own 0600 would hide results from other users.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)?;
    write(part.as_file_mut())?;
    // Before the rename, or a power cut could leave the name without the content.
    part.as_file().sync_all()?;
    Ok(part)
}

fn copy(
    source: &Path,
    size: u64,
    part: &mut File,
    sum: &mut RunningChecksum,
    abandoned: &CancellationToken,
) -> io::Result<()> {
    let file = File::open(source).map_err(|error| naming("cannot read", source, &error))?;
    let mut rest = file.take(size);
    let mut chunk = vec![0; CHUNK];
    while rest.limit() > 0 {
        if abandoned.is_cancelled() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let read = rest.read(&mut chunk)?;
        if read == 0 {
            let reason = format!("{} is shorter than the {size} bytes it had", source.display());
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, reason));
        }
        let passing = chunk.get(..read).unwrap_or_default();
        sum.update(passing);
        part.write_all(passing)?;
    }
    Ok(())
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

/// An error of another file than the object itself.
fn naming(what: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
}
