//! The journal's file: appended to, read by the next start, and compacted while its worker lives.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::files;

/// A file of fewer lines is left as it is.
const FEW_LINES: usize = if cfg!(test) { 16 } else { 1024 };
/// Compacted when it has so many lines for each entry that still counts.
const LINES_AN_ENTRY: usize = 4;
/// More of a dead worker's journal is not read: nodes can write to it as well.
const LARGEST: u64 = 64 << 20;
const EXTENSION: &str = "jsonl";
/// What a compaction writes, until it takes the journal's name.
const NEW_EXTENSION: &str = "jsonl-new";

/// Something of ours: where it is, and which file it is, where the name alone does not tell.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) path: PathBuf,
    pub(super) inode: Option<Inode>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum JournalLine {
    Owned(Entry),
    Gone(Entry),
}

/// Device, number and birth (nanoseconds since 1970, where the file system tells): which file a name
/// stood for. The number alone is soon given to another file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Inode(u64, u64, Option<u64>);

impl Inode {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
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

/// A journal file, locked as long as this lives.
#[derive(Debug)]
pub(super) struct JournalFile {
    path: PathBuf,
    file: File,
    /// What is listed and not gone.
    live: HashSet<Entry>,
    lines: usize,
    /// How many lines there are when it is next compacted.
    compact_at: usize,
    /// Whether the last line may lack its end.
    is_torn: bool,
}

impl JournalFile {
    /// Starts a new one in `folder`.
    pub(super) fn start(folder: &Path) -> io::Result<Self> {
        loop {
            let path = folder.join(format!("{}.{EXTENSION}", Uuid::new_v4().simple()));
            let file = create(&path)?;
            file.lock()?;
            // Another start may have found it before it was locked, and swept it as a dead one's.
            if is_still(&file, &path) {
                let (live, compact_at) = (HashSet::new(), FEW_LINES);
                return Ok(Self { path, file, live, lines: 0, compact_at, is_torn: false });
            }
        }
    }

    /// Lists something before it exists: what cannot be listed must not be made.
    pub(super) fn list(&mut self, entry: &Entry) -> io::Result<()> {
        self.append(&JournalLine::Owned(entry.clone())).map_err(|error| {
            let place = self.path.display();
            io::Error::new(error.kind(), format!("cannot write the journal {place}: {error}"))
        })?;
        self.live.insert(entry.clone());
        Ok(())
    }

    /// Strikes out what is gone.
    pub(super) fn strike(&mut self, entry: &Entry) {
        self.live.remove(entry);
        // Listed in vain it costs the next start a look.
        if let Err(error) = self.append(&JournalLine::Gone(entry.clone())) {
            tracing::warn!(%error, journal = %self.path.display(), "cannot write the journal of ephemeral files");
        }
        if self.lines < self.compact_at {
            return;
        }
        let worth_it = self.lines >= self.live.len() * LINES_AN_ENTRY;
        let compacted = if worth_it { self.compact() } else { Ok(()) };
        self.compact_at = FEW_LINES.max(self.live.len() * LINES_AN_ENTRY);
        if let Err(error) = compacted {
            tracing::warn!(%error, journal = %self.path.display(), "cannot compact the journal of ephemeral files");
            self.compact_at = self.lines + FEW_LINES;
        }
    }

    /// Whether this is listed.
    pub(super) fn lists(&self, entry: &Entry) -> bool {
        self.live.contains(entry)
    }

    #[cfg(test)]
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// As its owner's death leaves it.
    #[cfg(test)]
    pub(super) fn unlock(&self) -> PathBuf {
        let _ = self.file.unlock();
        self.path.clone()
    }

    fn append(&mut self, line: &JournalLine) -> io::Result<()> {
        // An empty line is none, and one that a full disk cut off must not spoil the next.
        let mut text = if self.is_torn { vec![b'\n'] } else { Vec::new() };
        write_line(&mut text, line)?;
        // No fsync: the journal outlives the process, and with the machine goes the container.
        let written = self.file.write_all(&text);
        self.is_torn = written.is_err();
        written?;
        self.lines += 1;
        Ok(())
    }

    /// Writes what still counts to a new file, which takes the journal's place. Killed at any moment, one of the
    /// two whole ones has the name; the other lists nothing more.
    fn compact(&mut self) -> io::Result<()> {
        let new = self.path.with_extension(NEW_EXTENSION);
        let replaced = self.write_anew(&new);
        match replaced {
            Ok(file) => {
                // Not before: the old one's lock goes with it.
                self.file = file;
                (self.lines, self.is_torn) = (self.live.len(), false);
                Ok(())
            }
            Err(error) => {
                let _ = fs::remove_file(&new);
                Err(error)
            }
        }
    }

    fn write_anew(&self, new: &Path) -> io::Result<File> {
        let mut text = Vec::new();
        for entry in &self.live {
            write_line(&mut text, &JournalLine::Owned(entry.clone()))?;
        }
        let mut file = create(new)?;
        // Before it has the journal's name: a start that finds that one unlocked sweeps what we have in use.
        file.try_lock()?;
        file.write_all(&text)?;
        file.sync_data()?;
        fs::rename(new, &self.path)?;
        Ok(file)
    }
}

impl Drop for JournalFile {
    fn drop(&mut self) {
        // What is still listed could not be removed.
        if self.live.is_empty() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The journals in `folder` whose owners are dead, each with what it lists, locked until `each` returns: whether
/// all of it is gone, and the journal can go too.
pub(super) fn of_the_dead(folder: &Path, mut each: impl FnMut(Vec<Entry>) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_whole = match path.extension().and_then(|extension| extension.to_str()) {
            Some(EXTENSION) => true,
            // Its owner died before it could take the journal's place.
            Some(NEW_EXTENSION) => false,
            _ => continue,
        };
        let Ok(mut file) = files::open_regular(OpenOptions::new().read(true).append(true), &path) else {
            continue;
        };
        match file.try_lock() {
            // Swept by another start since it was listed, or compacted.
            Ok(()) if !is_still(&file, &path) => continue,
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => continue,
            Err(TryLockError::Error(error)) => return Err(error),
        }
        if is_whole && !each(left_in(&mut file)?) {
            continue;
        }
        match fs::remove_file(&path) {
            // A living owner that found it locked has given up that compaction.
            Err(error) if !is_whole && error.kind() == io::ErrorKind::NotFound => {}
            removed => removed?,
        }
    }
    Ok(())
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().create_new(true).append(true).mode(0o600).open(path)
}

fn write_line(text: &mut Vec<u8>, line: &JournalLine) -> io::Result<()> {
    serde_json::to_writer(&mut *text, line)?;
    text.push(b'\n');
    Ok(())
}

/// Whether the open file is the one that has that name.
fn is_still(file: &File, path: &Path) -> bool {
    matches!((Inode::of_file(file), Inode::of(path)), (Ok(open), Ok(named)) if open == named)
}

/// What a journal lists and does not call gone.
fn left_in(journal: &mut File) -> io::Result<Vec<Entry>> {
    let mut text = Vec::new();
    journal.take(LARGEST).read_to_end(&mut text)?;
    let mut left = HashSet::new();
    // A last line that was cut by the death of its writer, in the middle of a character too,
    // lists nothing that exists.
    for line in text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()) {
        match line {
            JournalLine::Owned(entry) => left.insert(entry),
            // By inode too: a file of ours may have been replaced by another of ours.
            JournalLine::Gone(entry) => left.remove(&entry),
        };
    }
    Ok(left.into_iter().collect())
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
