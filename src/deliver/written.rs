//! Files that nodes wrote beside the job's own folder: under a name of their own choice, or previews. They are
//! removed so that the disk does not fill, whatever became of their job, but never by a thread of the runtime.

use std::{
    collections::HashMap,
    fs::{self, Metadata},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex, PoisonError},
    time::SystemTime,
};

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use crate::job::request::FolderType;

static PROCESS_START: LazyLock<SystemTime> = LazyLock::new(SystemTime::now);

static REMOVALS: LazyLock<TaskTracker> = LazyLock::new(|| {
    let removals = TaskTracker::new();
    // So that one can wait for those that there are; more may come.
    removals.close();
    removals
});

/// Fixes the moment from which on files count as made by this worker.
pub fn mark_start() {
    LazyLock::force(&PROCESS_START);
}

/// Waits until the removals that have begun are over. A file system may hang: to be waited for within a limit.
pub async fn settled() {
    REMOVALS.wait().await;
}

/// Device, number, size, and when it was changed: seconds and nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity(u64, u64, u64, i64, i64);

impl Identity {
    pub(super) fn of(metadata: &Metadata) -> Self {
        let changed = (metadata.mtime(), metadata.mtime_nsec());
        Self(metadata.dev(), metadata.ino(), metadata.size(), changed.0, changed.1)
    }

    /// Its size in bytes.
    pub(super) fn size(&self) -> u64 {
        self.2
    }
}

/// Whether a listed file is outside the job's own folder, which goes as a whole.
pub(super) fn is_beside(own_folder: &str, folder: FolderType, subfolder: &str) -> bool {
    let within = Path::new(subfolder.trim_start_matches('/')).starts_with(own_folder);
    own_folder.is_empty() || folder != FolderType::Output || !within
}

/// Such files as they were when they were found. With it they are removed.
#[derive(Debug, Default)]
pub(super) struct Written(Mutex<HashMap<PathBuf, Identity>>);

impl Written {
    pub(super) fn note(&self, path: PathBuf, identity: Identity) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(path, identity);
    }

    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        let files = std::mem::take(self.0.get_mut().unwrap_or_else(PoisonError::into_inner));
        if files.is_empty() {
            return;
        }
        let remove = move || files.iter().for_each(|(path, identity)| remove(path, *identity));
        match Handle::try_current() {
            Ok(runtime) => drop(REMOVALS.spawn_blocking_on(remove, &runtime)),
            Err(_) => remove(),
        }
    }
}

/// Removes a file unless it was there before the worker, or another job has written it again since.
fn remove(path: &Path, identity: Identity) {
    let ours = path.symlink_metadata().is_ok_and(|found| {
        // Born within this process's life means: written by one of its jobs.
        Identity::of(&found) == identity && found.created().is_ok_and(|born| born >= *PROCESS_START)
    });
    if !ours {
        return;
    }
    crate::phases::reached_by_thread("removing-outputs");
    if let Err(error) = fs::remove_file(path) {
        tracing::debug!(%error, path = %path.display(), "what a node wrote stays on disk");
    }
}
