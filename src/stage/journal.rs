//! What must be removed when its use is over, written down before it exists.
//!
//! Each worker has a journal file of its own and holds a lock on it as long as it lives. The next
//! worker that starts sweeps what the journals of dead owners list, and nothing else.
//!
//! Invariant: a path is listed either under a name that only we can have made (a random one), or
//! together with the inode that we made: the sweep never removes somebody else's file.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::UNIX_EPOCH,
};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// This worker's journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: Mutex<File>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Owned { path: PathBuf, inode: Option<Inode> },
    Gone { path: PathBuf, inode: Option<Inode> },
}

/// Device, number and birth (nanoseconds since 1970, where the file system tells): which file a name
/// stood for. The number alone is soon given to another file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Inode(u64, u64, Option<u64>);

impl Inode {
    fn of(path: &Path) -> io::Result<Self> {
        fs::symlink_metadata(path).map(|metadata| Self::read(&metadata))
    }

    fn of_file(file: &File) -> io::Result<Self> {
        file.metadata().map(|metadata| Self::read(&metadata))
    }

    fn read(metadata: &fs::Metadata) -> Self {
        let born = metadata.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
        let born = born.and_then(|born| u64::try_from(born.as_nanos()).ok());
        Self(metadata.dev(), metadata.ino(), born)
    }
}

/// A file or folder of ours; its drop removes it.
#[derive(Debug)]
pub struct Owned {
    path: PathBuf,
    inode: Option<Inode>,
    journal: Arc<Journal>,
}

impl Owned {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // What could not be removed stays listed, for the next start.
        if remove(&self.path, self.inode) {
            self.journal.write(&Line::Gone { path: self.path.clone(), inode: self.inode });
        }
    }
}

impl Journal {
    /// Sweeps after dead workers, then starts a journal in `state_dir`.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn open(state_dir: &Path) -> io::Result<Arc<Self>> {
        let folder = state_dir.join("journal");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        sweep(&folder)?;
        loop {
            let path = folder.join(format!("{}.jsonl", Uuid::new_v4().simple()));
            let file = OpenOptions::new().create_new(true).append(true).mode(0o600).open(&path)?;
            file.lock()?;
            // Another start may have found it before it was locked, and swept it as a dead one's.
            if is_still(&file, &path) {
                return Ok(Arc::new(Self { path, file: Mutex::new(file) }));
            }
        }
    }

    fn write(&self, line: &Line) {
        let Ok(mut text) = serde_json::to_vec(line) else { return };
        text.push(b'\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // No fsync: the journal outlives the process, and with the machine goes the container.
        if let Err(error) = file.write_all(&text) {
            tracing::error!(%error, journal = %self.path.display(), "cannot write the journal of ephemeral files");
        }
    }

    /// Owns a path whose name nobody else can have chosen, before anything is there.
    #[must_use]
    pub fn own_random(self: &Arc<Self>, path: PathBuf) -> Owned {
        self.write(&Line::Owned { path: path.clone(), inode: None });
        Owned { path, inode: None, journal: Arc::clone(self) }
    }

    /// Makes a folder `parent/name` of ours; parents are made too and stay.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] when something has that name.
    pub async fn create_folder(self: &Arc<Self>, parent: &Path, name: &str) -> io::Result<Owned> {
        let (journal, parent, name) = (Arc::clone(self), parent.to_owned(), name.to_owned());
        tokio::task::spawn_blocking(move || {
            fs::create_dir_all(&parent)?;
            let scratch =
                journal.own_random(parent.join(format!(".comfy-worker-{}", Uuid::new_v4().simple())));
            fs::create_dir(&scratch.path)?;
            journal.adopt(scratch, &parent.join(name))
        })
        .await
        .map_err(io::Error::other)?
    }

    /// Gives something of ours its final name, unless something is there.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] when something is; `scratch` is removed then.
    pub fn adopt(self: &Arc<Self>, scratch: Owned, target: &Path) -> io::Result<Owned> {
        self.rename(&scratch, target, rename_new)
    }

    /// Puts something of ours in the place of something else of ours.
    ///
    /// # Errors
    /// When it cannot be renamed; `scratch` is removed then.
    pub(super) fn replace(self: &Arc<Self>, scratch: Owned, target: &Path) -> io::Result<Owned> {
        self.rename(&scratch, target, |from, to| fs::rename(from, to))
    }

    fn rename(
        self: &Arc<Self>,
        scratch: &Owned,
        target: &Path,
        rename: impl FnOnce(&Path, &Path) -> io::Result<()>,
    ) -> io::Result<Owned> {
        let inode = Inode::of(&scratch.path)?;
        self.write(&Line::Owned { path: target.to_owned(), inode: Some(inode) });
        let owned = Owned { path: target.to_owned(), inode: Some(inode), journal: Arc::clone(self) };
        rename(&scratch.path, target)?;
        Ok(owned)
    }

    /// Whether what has this name is ours, and will be removed.
    pub(super) fn owns(&self, path: &Path) -> bool {
        let listed = left_by(&self.path).unwrap_or_default();
        Inode::of(path).is_ok_and(|found| listed.contains(&(path.to_owned(), Some(found))))
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // Everything owned holds the journal: what is still listed could not be removed.
        if left_by(&self.path).is_ok_and(|left| left.is_empty()) {
            let _ = fs::remove_file(&self.path);
        }
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

/// Whether nothing of ours is there (any more).
fn remove(path: &Path, inode: Option<Inode>) -> bool {
    let found = match Inode::of(path) {
        Ok(found) => found,
        Err(error) => return error.kind() == io::ErrorKind::NotFound,
    };
    if inode.is_some_and(|inode| inode != found) {
        return true;
    }
    let is_folder = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let outcome = if is_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match outcome {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, path = %path.display(), "an ephemeral file could not be removed");
            false
        }
        _ => true,
    }
}

/// Whether the open file is the one that has that name.
fn is_still(file: &File, path: &Path) -> bool {
    matches!((Inode::of_file(file), Inode::of(path)), (Ok(open), Ok(named)) if open == named)
}

/// What a journal lists and does not call gone, in the order in which it was made.
fn left_by(journal: &Path) -> io::Result<Vec<(PathBuf, Option<Inode>)>> {
    let mut text = Vec::new();
    File::open(journal)?.read_to_end(&mut text)?;
    let mut left: Vec<(PathBuf, Option<Inode>)> = Vec::new();
    // A last line that was cut by the death of its writer, in the middle of a character too,
    // lists nothing that exists.
    for line in text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()) {
        match line {
            Line::Owned { path, inode } => left.push((path, inode)),
            // By inode too: a file of ours may have been replaced by another of ours.
            Line::Gone { path, inode } => left.retain(|listed| *listed != (path.clone(), inode)),
        }
    }
    Ok(left)
}

/// Removes what dead workers left.
fn sweep(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "jsonl") {
            continue;
        }
        let Ok(file) = OpenOptions::new().read(true).append(true).open(&path) else { continue };
        match file.try_lock() {
            // Swept by another start since it was listed.
            Ok(()) if !is_still(&file, &path) => continue,
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => continue,
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let mut all_gone = true;
        for (path, inode) in left_by(&path)? {
            tracing::info!(path = %path.display(), "removing what a dead worker left");
            all_gone &= remove(&path, inode);
        }
        if all_gone {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
