//! A model's locks: files that every worker with the same models folder sees. A lock goes with its
//! holder, whatever that dies of.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::sleep;

use super::index::FOLDER;
use crate::{checksum, files};

/// Between two looks at a lock that somebody holds.
const POLL: Duration = Duration::from_millis(100);

/// Hexadecimal digits of a key that name its locks: 4,096 of each kind.
const LOCK_DIGITS: usize = 3;

/// Where the locks of one model are.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    folder: PathBuf,
    key: String,
}

/// A model that is in use: it is not evicted as long as this lives.
#[derive(Debug)]
pub struct Lease(#[allow(dead_code, reason = "holds a lock")] File);

/// The right to fetch a model.
#[derive(Debug)]
pub(super) struct Turn(#[allow(dead_code, reason = "holds a lock")] File);

/// The right to remove a model, and what there is of it.
#[derive(Debug)]
pub(super) struct Eviction(#[allow(dead_code, reason = "holds locks")] (File, File));

impl Slot {
    /// The slot of the model `name`, a path beneath the folder `models`.
    pub(super) fn of(models: &Path, name: &str) -> Self {
        let mut key = checksum::of_bytes(name.as_bytes());
        key.truncate(32);
        Self { folder: models.join(FOLDER), key }
    }

    /// The name of the file beside the model that it is fetched to.
    pub(super) fn part_name(&self) -> String {
        format!("{FOLDER}-{}.part", self.key)
    }

    /// Marks the model as in use, by as many as like.
    pub(super) async fn lease(&self) -> io::Result<Lease> {
        self.wait("use", File::try_lock_shared).await.map(Lease)
    }

    /// Waits for whoever fetches the model.
    pub(super) async fn turn(&self) -> io::Result<Turn> {
        self.wait("fetch", File::try_lock).await.map(Turn)
    }

    /// If nobody uses or fetches the model.
    pub(super) fn evict(&self) -> Option<Eviction> {
        let used = self.open("use").ok()?;
        used.try_lock().ok()?;
        let fetched = self.open("fetch").ok()?;
        fetched.try_lock().ok()?;
        Some(Eviction((used, fetched)))
    }

    async fn wait(&self, purpose: &str, lock: fn(&File) -> Result<(), TryLockError>) -> io::Result<File> {
        let file = self.open(purpose)?;
        loop {
            match lock(&file) {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => sleep(POLL).await,
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    /// A lock's file is never removed: somebody may be about to lock it. So there are few: names are a publisher's choice,
    /// and two that share a lock wait for one another at worst.
    fn open(&self, purpose: &str) -> io::Result<File> {
        let folder = self.folder.join("locks");
        fs::create_dir_all(&folder)?;
        let path = folder.join(format!("{}.{purpose}", self.key.get(..LOCK_DIGITS).unwrap_or(&self.key)));
        let open = || files::open_regular(File::options().create(true).truncate(false).write(true), &path);
        open().or_else(|_| {
            // A node's: nobody has locked what is no file.
            if !path.symlink_metadata()?.is_file() {
                fs::remove_file(&path)?;
            }
            open()
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use futures_util::FutureExt as _;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    /// What a node put there would stop every worker that shares the models.
    #[tokio::test]
    async fn a_fifo_in_a_locks_place_holds_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        let slot = Slot::of(folder.path(), "loras/x");
        drop(slot.turn().await.unwrap());
        let locks = folder.path().join(FOLDER).join("locks");
        for lock in fs::read_dir(&locks).unwrap() {
            let path = lock.unwrap().path();
            fs::remove_file(&path).unwrap();
            mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
        }
        let turn = tokio::task::spawn_blocking(move || slot.open("fetch"));
        assert!(tokio::time::timeout(Duration::from_secs(20), turn).await.unwrap().unwrap().is_ok());
    }

    #[tokio::test]
    async fn what_is_used_or_fetched_is_not_evicted() {
        let folder = tempfile::tempdir().unwrap();
        let slot = Slot::of(folder.path(), "loras/x");
        let (first, second) = (slot.lease().await.unwrap(), slot.lease().await.unwrap());
        assert!(slot.evict().is_none());
        drop(first);
        assert!(slot.evict().is_none());
        drop(second);
        let turn = slot.turn().await.unwrap();
        assert!(slot.evict().is_none());
        assert!(slot.turn().now_or_never().is_none(), "one fetches at a time");
        drop(turn);
        let eviction = slot.evict().unwrap();
        assert!(slot.lease().now_or_never().is_none(), "a lease waits for the end of the eviction");
        // Another model is another matter.
        assert!(Slot::of(folder.path(), "loras/y").lease().await.is_ok());
        drop(eviction);
        assert!(slot.lease().await.is_ok());
    }
}
