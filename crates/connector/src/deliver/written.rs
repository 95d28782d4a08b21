//! Files that nodes wrote beside the job's own folder: under a name of their own choice, or previews. They are
//! removed so that the disk does not fill, whatever became of their job, but never by a thread of the runtime.

use std::{
    collections::HashMap,
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use contract::request::FolderType;
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

static REMOVALS: LazyLock<TaskTracker> = LazyLock::new(|| {
    let removals = TaskTracker::new();
    // So that one can wait for those that there are; more may come.
    removals.close();
    removals
});

/// File systems tell the time in steps, so that a file can be older than the moment before it was written; and more than a
/// step, because a file system may be another machine's.
const CLOCK_STEP: Duration = Duration::from_secs(1);

/// Where a job's nodes write: a folder of its own under `output`, and since when. Older files elsewhere are
/// not the job's: a node can list any file whose name is known.
#[derive(Clone, Debug)]
pub struct OwnFolder {
    pub(super) name: String,
    since: SystemTime,
}

impl OwnFolder {
    /// Makes that folder. Blocks.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        // The file system's clock, which can be another machine's; ours where that one is ahead.
        let since = fs::metadata(path)?.modified()?.min(SystemTime::now());
        Ok(Self { name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(), since })
    }

    /// None: all that was written since then lies elsewhere.
    #[must_use]
    pub fn none(since: SystemTime) -> Self {
        // No folder is called so.
        Self { name: "/".to_owned(), since: since - CLOCK_STEP }
    }

    /// Whether a listed file is outside the folder, which goes as a whole.
    pub(super) fn is_beside(&self, folder: FolderType, subfolder: &str) -> bool {
        let within = Path::new(subfolder.trim_start_matches('/')).starts_with(&self.name);
        folder != FolderType::Output || !within
    }

    /// Whether a file was written since.
    pub(super) fn is_as_young(&self, file: &Metadata) -> bool {
        let (seconds, nanoseconds) = (file.ctime(), file.ctime_nsec());
        let changed = u64::try_from(seconds).ok().zip(u32::try_from(nanoseconds).ok());
        changed.is_some_and(|(seconds, nanoseconds)| {
            UNIX_EPOCH + Duration::new(seconds, nanoseconds) >= self.since
        })
    }
}

/// Waits until the removals that have begun are over. A file system may hang: to be waited for within a limit.
pub async fn settled() {
    REMOVALS.wait().await;
}

/// Device, number, size, and when it was changed: seconds and nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileIdentity(u64, u64, u64, i64, i64);

impl FileIdentity {
    pub(super) fn of(metadata: &Metadata) -> Self {
        let changed = (metadata.mtime(), metadata.mtime_nsec());
        Self(metadata.dev(), metadata.ino(), metadata.size(), changed.0, changed.1)
    }

    /// Its size in bytes.
    pub(super) fn size(&self) -> u64 {
        self.2
    }
}

/// Such files as they were when they were found. With it they are removed.
#[derive(Debug, Default)]
pub(super) struct WrittenFiles(Mutex<HashMap<PathBuf, (FileIdentity, SystemTime)>>);

impl WrittenFiles {
    pub(super) fn note(&self, path: PathBuf, identity: FileIdentity, own: &OwnFolder) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(path, (identity, own.since));
    }

    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }
}

impl Drop for WrittenFiles {
    fn drop(&mut self) {
        let files = std::mem::take(self.0.get_mut().unwrap_or_else(PoisonError::into_inner));
        if files.is_empty() {
            return;
        }
        let remove =
            move || files.iter().for_each(|(path, (identity, since))| remove(path, *identity, *since));
        match Handle::try_current() {
            Ok(runtime) => drop(REMOVALS.spawn_blocking_on(remove, &runtime)),
            Err(_) => remove(),
        }
    }
}

/// Removes a file unless it was there before the job, or another one has written it again since.
fn remove(path: &Path, identity: FileIdentity, since: SystemTime) {
    let ours = path.symlink_metadata().is_ok_and(|found| {
        FileIdentity::of(&found) == identity && found.created().is_ok_and(|born| born >= since)
    });
    if !ours {
        return;
    }
    crate::phases::reached_by_thread("removing-outputs");
    if let Err(error) = fs::remove_file(path) {
        tracing::debug!(%error, path = %path.display(), "cannot remove what a node wrote");
    }
}
