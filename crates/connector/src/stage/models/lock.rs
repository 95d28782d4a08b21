//! A model's locks: files that every worker with the same models folder sees. A lock goes with its
//! holder, whatever that dies of.
//!
//! A model may be fetched from several sources at a time, each to a part of its own: a source that drips holds up
//! nobody who has another.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::sleep;

use super::index::FOLDER;
use crate::{checksum, files};

/// Between two looks at a lock that somebody holds.
const POLL: Duration = Duration::from_millis(100);

/// Hexadecimal digits of a key that name its lock for use. Its file is never removed, so there are few of them: names are
/// a publisher's choice. Two models that share a lock can both be in use; at worst neither is evicted meanwhile.
const USE_DIGITS: usize = 3;

/// Where the locks of one model are.
#[derive(Clone, Debug)]
pub(super) struct ModelLock {
    folder: PathBuf,
    name: String,
}

/// A model that is in use: it is not evicted as long as this lives.
#[derive(Debug)]
pub struct Lease(#[allow(dead_code, reason = "holds a lock")] File);

/// The right to fetch a model from one source.
#[derive(Debug)]
pub(super) struct FetchLock {
    path: PathBuf,
    _lock: File,
}

impl Drop for FetchLock {
    fn drop(&mut self) {
        // Before the lock goes: anyone who takes it next sees that it is nobody's any more, and makes another.
        let _ = fs::remove_file(&self.path);
    }
}

/// The right to remove a model, and what there is of it: anyone who fetches one has it in use.
#[derive(Debug)]
pub(super) struct Eviction(#[allow(dead_code, reason = "holds a lock")] File);

impl ModelLock {
    /// The slot of the model `name`, a path under the folder `models`.
    pub(super) fn of(models: &Path, name: &str) -> Self {
        Self { folder: models.join(FOLDER), name: name.to_owned() }
    }

    /// Marks the model as in use, by as many as like.
    pub(super) async fn lease(&self) -> io::Result<Lease> {
        let path = self.lock_for_use()?;
        wait(&path, File::try_lock_shared).await.map(Lease)
    }

    /// Waits for anyone who fetches the model from there.
    pub(super) async fn turn(&self, source: &str) -> io::Result<FetchLock> {
        let path = self.lock(&format!("{}.fetch", fetch_key(&self.name, source)))?;
        loop {
            let lock = wait(&path, File::try_lock).await?;
            // Its last holder removed it, and another may have been made since.
            let (ours, there) = (lock.metadata()?, fs::symlink_metadata(&path));
            if there.is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
                return Ok(FetchLock { path, _lock: lock });
            }
        }
    }

    /// If nobody uses or fetches the model.
    pub(super) fn evict(&self) -> Option<Eviction> {
        let used = open(&self.lock_for_use().ok()?).ok()?;
        used.try_lock().ok()?;
        Some(Eviction(used))
    }

    fn lock_for_use(&self) -> io::Result<PathBuf> {
        let mut key = key_of(&self.name);
        key.truncate(USE_DIGITS);
        self.lock(&format!("{key}.use"))
    }

    fn lock(&self, name: &str) -> io::Result<PathBuf> {
        let folder = self.folder.join("locks");
        fs::create_dir_all(&folder)?;
        Ok(folder.join(name))
    }
}

/// The name of the file beside the model that it is fetched to.
pub(super) fn part_name(name: &str, source: &str) -> String {
    format!("{FOLDER}-{}.part", fetch_key(name, source))
}

fn fetch_key(name: &str, source: &str) -> String {
    key_of(&format!("{name}\n{source}"))
}

fn key_of(text: &str) -> String {
    let mut key = checksum::of_bytes(text.as_bytes());
    key.truncate(32);
    key
}

async fn wait(path: &Path, lock: fn(&File) -> Result<(), TryLockError>) -> io::Result<File> {
    let file = open(path)?;
    loop {
        match lock(&file) {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => sleep(POLL).await,
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    let open = || files::open_regular(File::options().create(true).truncate(false).write(true), path);
    open().or_else(|_| {
        // A node's: nobody has locked what is no file.
        if !path.symlink_metadata()?.is_file() {
            fs::remove_file(path)?;
        }
        open()
    })
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
        let lock = ModelLock::of(folder.path(), "loras/x");
        let held = (lock.lease().await.unwrap(), lock.turn("s").await.unwrap());
        let locks = folder.path().join(FOLDER).join("locks");
        for lock in fs::read_dir(&locks).unwrap() {
            let path = lock.unwrap().path();
            fs::remove_file(&path).unwrap();
            mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
        }
        drop(held);
        let both = async { (lock.lease().await.unwrap(), lock.turn("s").await.unwrap()) };
        tokio::time::timeout(Duration::from_secs(20), both).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_used_or_fetched_is_not_evicted() {
        let folder = tempfile::tempdir().unwrap();
        let lock = ModelLock::of(folder.path(), "loras/x");
        let (first, second) = (lock.lease().await.unwrap(), lock.lease().await.unwrap());
        assert!(lock.evict().is_none());
        drop(first);
        assert!(lock.evict().is_none());
        drop(second);
        let turn = lock.turn("here").await.unwrap();
        assert!(lock.turn("here").now_or_never().is_none(), "one fetches at a time");
        assert!(lock.turn("there").now_or_never().unwrap().is_ok(), "another source holds nobody up");
        let next = lock.turn("here");
        let (next, ()) = tokio::join!(next, async { drop(turn) });
        assert!(
            lock.turn("here").now_or_never().is_none(),
            "the lock of the next one is the one that is there"
        );
        drop(next.unwrap());
        let locks = fs::read_dir(folder.path().join(FOLDER).join("locks")).unwrap();
        let names = locks.map(|lock| lock.unwrap().file_name().into_string().unwrap());
        assert!(
            names.collect::<Vec<_>>().iter().all(|name| name.ends_with(".use")),
            "no lock of a fetch stays"
        );
        let eviction = lock.evict().unwrap();
        assert!(lock.lease().now_or_never().is_none(), "a lease waits for the end of the eviction");
        // Another model is another matter.
        assert!(ModelLock::of(folder.path(), "loras/y").lease().await.is_ok());
        drop(eviction);
        assert!(lock.lease().await.is_ok());
    }
}
