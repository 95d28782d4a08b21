//! Multipart uploads that are not complete, written down where the next start finds them: each in a file of its
//! own, which its worker holds a lock on. Their parts would be kept, unseen and paid for.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use contract::ObjectUri;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

use super::{
    S3Store,
    multipart::{LOST_PARTS, UploadTarget},
};
use connector::files;

/// Nodes can write there too: more of a file is not read.
const LARGEST: u64 = 16 << 10;

/// An upload's file, locked as long as this lives. Only [`Note::strike`] removes it.
#[derive(Debug)]
pub(super) struct Note {
    path: PathBuf,
    file: File,
}

#[derive(Debug, Serialize, Deserialize)]
struct Upload {
    object: String,
    id: String,
}

impl Note {
    pub(super) async fn write(folder: &Arc<Path>, object: &ObjectUri, id: &str) -> io::Result<Self> {
        let (folder, upload) = (Arc::clone(folder), Upload { object: object.to_string(), id: id.to_owned() });
        spawn_blocking(move || {
            // Locked before there is anything to read: another start that finds it takes it for a dead worker's.
            let mut file = tempfile::Builder::new().prefix("upload-").suffix(".json").tempfile_in(&folder)?;
            file.as_file().try_lock()?;
            file.write_all(&serde_json::to_vec(&upload)?)?;
            let (file, path) = file.keep()?;
            Ok(Self { path, file })
        })
        .await?
    }

    /// The upload is complete, or gone.
    pub(super) async fn strike(&self) {
        // What cannot be removed costs the next start one request.
        if let Err(error) = tokio::fs::remove_file(&self.path).await {
            tracing::debug!(%error, path = %self.path.display(), "cannot remove the note of a multipart upload");
        }
    }

    /// What dead workers left in `folder`, locked. Blocks.
    fn left_in(folder: &Path) -> io::Result<Vec<(Self, ObjectUri, String)>> {
        let mut left = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let Ok(file) = files::open_regular(OpenOptions::new().read(true).write(true), &path) else {
                continue;
            };
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(error)) => return Err(error),
            }
            let mut note = Self { path, file };
            match note.read() {
                Some((object, id)) => left.push((note, object, id)),
                // Its worker died before it had written it.
                None => fs::remove_file(&note.path)?,
            }
        }
        Ok(left)
    }

    fn read(&mut self) -> Option<(ObjectUri, String)> {
        let mut text = Vec::new();
        self.file.rewind().ok()?;
        (&self.file).take(LARGEST).read_to_end(&mut text).ok()?;
        let upload: Upload = serde_json::from_slice(&text).ok()?;
        Some((upload.object.parse().ok()?, upload.id))
    }
}

impl S3Store {
    /// Writes multipart uploads down in `folder`, and aborts those that dead workers left there, while others go on.
    pub(in crate::store) fn with_notes(mut self, folder: PathBuf) -> Self {
        let folder: Arc<Path> = folder.into();
        self.notes = Some(Arc::clone(&folder));
        let store = self.clone();
        let sweep = async move {
            let left = spawn_blocking(move || {
                fs::create_dir_all(&folder)?;
                Note::left_in(&folder)
            });
            match left.await.map_err(io::Error::other).flatten() {
                Ok(left) => {
                    for (note, object, id) in left {
                        tracing::info!(%object, "aborting a multipart upload that a dead worker left");
                        if let Some(target) = UploadTarget::left(&store, object, id, note) {
                            store.cleanup.spawn(target.abort_once_it_can(LOST_PARTS));
                        }
                    }
                }
                Err(error) => tracing::warn!(%error, "cannot look for unfinished multipart uploads"),
            }
        };
        self.cleanup.spawn(sweep);
        self
    }
}
