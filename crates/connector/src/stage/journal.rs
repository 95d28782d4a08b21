//! Journal of ephemeral files: each is written down before it exists and removed when its use is over.
//!
//! Each worker has a journal file of its own and holds a lock on it as long as it lives. The next
//! worker that starts sweeps what the journals of dead owners list, and nothing else.
//!
//! Invariant: a path is listed either under a name that only we can have made (a random one), or
//! together with the inode that we made: the sweep never removes somebody else's file.
//!
//! No thread of the runtime waits for a file system here: what is written is written by threads that may block,
//! what is removed by one of the journal's own.

mod file;
mod folders;
mod remover;

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use tokio::task::spawn_blocking;
use uuid::Uuid;

use super::{Folders, parents};
use file::{Entry, Inode, JournalFile};
use folders::RemovableFolders;
use remover::Remover;

/// This worker's journal.
#[derive(Debug)]
pub struct Journal {
    // First: its end is that of the thread, which holds the book too.
    remover: Remover,
    book: Arc<Mutex<JournalFile>>,
    /// Held while a file of ours takes a name that another file of ours may have.
    placing: Arc<Mutex<()>>,
}

/// A file or folder of ours; its drop has it removed.
#[derive(Debug)]
pub struct EphemeralPath {
    entry: Entry,
    journal: Arc<Journal>,
}

impl EphemeralPath {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.entry.path
    }
}

impl Drop for EphemeralPath {
    fn drop(&mut self) {
        // What cannot be removed stays listed, for the next start.
        self.journal.remover.take(self.entry.clone());
    }
}

impl Journal {
    /// Sweeps after dead workers within `folders`, then starts a journal in `state_dir`. Blocks, and gigabytes take
    /// their time.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn open(state_dir: &Path, folders: &Folders) -> io::Result<Arc<Self>> {
        let folder = state_dir.join("journal");
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let placing = Arc::default();
        let territory = RemovableFolders::of(folders);
        file::of_the_dead(&folder, |left| {
            left.iter().fold(true, |all_gone, entry| {
                if !territory.holds(&entry.path) {
                    tracing::warn!(path = %entry.path.display(), "ignoring a journal entry outside of the worker's folders");
                    return all_gone;
                }
                tracing::info!(path = %entry.path.display(), "removing what a dead worker left");
                remover::remove(entry, &placing, folders) && all_gone
            })
        })?;
        let book = Arc::new(Mutex::new(JournalFile::start(&folder)?));
        let remover = Remover::start(Arc::clone(&book), Arc::clone(&placing), folders.clone())?;
        Ok(Arc::new(Self { remover, book, placing }))
    }

    fn book(&self) -> MutexGuard<'_, JournalFile> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all that was let go of is removed. A file system may hang: to be waited for within a limit.
    pub async fn settled(&self) {
        self.remover.settled().await;
    }

    /// Waits until what was let go of under this name is removed, so that the name is free.
    pub(super) async fn gone(&self, path: &Path) {
        self.remover.gone(path).await;
    }

    /// Owns a path whose name nobody else can have chosen, before anything is there.
    ///
    /// # Errors
    /// When it cannot be listed; then nothing may be made there.
    pub async fn own(self: &Arc<Self>, path: PathBuf) -> io::Result<EphemeralPath> {
        self.remover.room().await;
        let journal = Arc::clone(self);
        spawn_blocking(move || journal.own_now(path)).await.map_err(io::Error::other)?
    }

    /// [`Journal::own`] on a thread that may block.
    pub(super) fn own_now(self: &Arc<Self>, path: PathBuf) -> io::Result<EphemeralPath> {
        self.list(Entry { path, inode: None })
    }

    /// Makes a folder `parent/name` of ours; parents are made too, and go once they are empty.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] when something has that name.
    pub async fn create_folder(self: &Arc<Self>, parent: &Path, name: &str) -> io::Result<EphemeralPath> {
        self.remover.room().await;
        let (journal, parent, name) = (Arc::clone(self), parent.to_owned(), name.to_owned());
        spawn_blocking(move || {
            let scratch =
                journal.own_now(parent.join(format!(".comfy-worker-{}", Uuid::new_v4().simple())))?;
            parents::within(&parent, || fs::create_dir(scratch.path()))?;
            journal.adopt(scratch, &parent.join(name))
        })
        .await
        .map_err(io::Error::other)?
    }

    /// Gives something of ours its final name, unless something is there. Blocks.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] when something is; `scratch` is removed then.
    pub fn adopt(self: &Arc<Self>, scratch: EphemeralPath, target: &Path) -> io::Result<EphemeralPath> {
        self.rename(&scratch, target, rename_new)
    }

    /// Puts something of ours in the place of something else of ours. Blocks.
    ///
    /// # Errors
    /// When it cannot be renamed; `scratch` is removed then.
    pub(super) fn replace(
        self: &Arc<Self>,
        scratch: EphemeralPath,
        target: &Path,
    ) -> io::Result<EphemeralPath> {
        self.rename(&scratch, target, |from, to| fs::rename(from, to))
    }

    fn rename(
        self: &Arc<Self>,
        scratch: &EphemeralPath,
        target: &Path,
        rename: impl FnOnce(&Path, &Path) -> io::Result<()>,
    ) -> io::Result<EphemeralPath> {
        let inode = Some(Inode::of(scratch.path())?);
        let owned = self.list(Entry { path: target.to_owned(), inode })?;
        rename(scratch.path(), target)?;
        Ok(owned)
    }

    fn list(self: &Arc<Self>, entry: Entry) -> io::Result<EphemeralPath> {
        self.book().list(&entry)?;
        Ok(EphemeralPath { entry, journal: Arc::clone(self) })
    }

    /// Whether what has this name is ours, and will be removed.
    pub(super) fn owns(&self, path: &Path) -> bool {
        Inode::of(path)
            .is_ok_and(|found| self.book().lists(&Entry { path: path.to_owned(), inode: Some(found) }))
    }

    /// Held while a file takes a name that one of ours may have, so that none is removed in another's stead.
    pub(super) fn placing(&self) -> MutexGuard<'_, ()> {
        self.placing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Renames unless the target exists.
pub(super) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // File systems without that flag (NFS): a look before the rename, which can race.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            if to.symlink_metadata().is_ok() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            fs::rename(from, to)
        }
        outcome => outcome.map_err(io::Error::from),
    }
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
