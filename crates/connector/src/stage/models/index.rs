//! What the cache knows of the models that it placed, in a file beside them.
//!
//! It lies in the models folder and not in a worker's state folder, because that folder is what workers
//! share, and what outlives a container.

use std::{
    collections::BTreeMap,
    fs::{self, File, Metadata},
    io::{self, Read as _, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{files, stage::names::Subfolder};

/// The cache's folder under `models`. ComfyUI looks into the folders of kinds only.
pub(super) const FOLDER: &str = ".comfy-worker";

/// Bytes of an index that are read: some hundred thousand models.
const LARGEST: u64 = 64 << 20;

/// What is known of each model, by its path under the models folder.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Index {
    /// Uses so far. An order that no wrong clock upsets.
    uses: u64,
    pub(super) models: BTreeMap<String, Model>,
    /// Models that are not whole, by the names of their files.
    pub(super) parts: BTreeMap<String, Part>,
}

/// A whole model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Model {
    pub(super) origin: Option<Origin>,
    pub(super) sha256: String,
    pub(super) file: FileStamp,
    /// The number of its latest use.
    pub(super) used: u64,
    /// It, or what it replaced, was somebody's: never evicted.
    pub(super) kept: bool,
}

/// A model that is not whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    /// Its path under the models folder once it is whole; empty where that was the part's key (0.1).
    #[serde(default)]
    pub(super) model: String,
    pub(super) path: PathBuf,
    pub(super) origin: Option<Origin>,
    /// Bytes of the whole, if known.
    pub(super) size: Option<u64>,
}

/// Where bytes came from: the same origin has the same bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    /// SHA-256 of the address, which may be a secret.
    pub(super) source: String,
    pub(super) version: String,
}

/// Which file a name stood for: one that was written since is somebody else's. No inode: that of a
/// network file system may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileStamp {
    pub(super) size: u64,
    /// Seconds since 1970 and nanoseconds.
    modified: (i64, i64),
}

impl FileStamp {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self { size: metadata.len(), modified: (metadata.mtime(), metadata.mtime_nsec()) }
    }

    pub(super) fn at(path: &Path) -> io::Result<Self> {
        fs::metadata(path).map(|metadata| Self::of(&metadata))
    }
}

impl Index {
    /// Notes that a model is used now.
    pub(super) fn touch(&mut self, name: &str) {
        self.uses += 1;
        if let Some(model) = self.models.get_mut(name) {
            model.used = self.uses;
        }
    }

    /// Bytes of the models that may be evicted.
    pub(super) fn bytes(&self) -> u64 {
        self.models.values().filter(|model| !model.kept).map(|model| model.file.size).sum()
    }

    /// How many those are.
    pub(super) fn evictable(&self) -> usize {
        self.models.values().filter(|model| !model.kept).count()
    }

    /// The models that may be evicted, the least recently used first.
    pub(super) fn by_age(&self) -> Vec<String> {
        let mut names: Vec<_> = self.models.iter().filter(|(_, model)| !model.kept).collect();
        names.sort_by_key(|(_, model)| model.used);
        names.into_iter().map(|(name, _)| name.clone()).collect()
    }
}

/// The index on the disk.
#[derive(Clone, Debug)]
pub(super) struct IndexFile {
    folder: PathBuf,
}

impl IndexFile {
    /// That of a models folder.
    pub(super) fn of(models: &Path) -> Self {
        Self { folder: models.join(FOLDER) }
    }

    /// What is known now. Nothing where there is no index, or none that can be read: then nothing is evicted.
    pub(super) fn read(&self) -> Index {
        let path = self.path();
        let mut text = Vec::new();
        let read = files::open_regular(File::options().read(true), &path)
            .and_then(|file| file.take(LARGEST).read_to_end(&mut text));
        if read.is_err() {
            return Index::default();
        }
        let mut index: Index = serde_json::from_slice(&text).unwrap_or_else(|error| {
            tracing::warn!(%error, index = %path.display(), "the index of models cannot be read: they stay for good");
            Index::default()
        });
        // What is evicted lies under the models folder, no matter who wrote the index.
        index.models.retain(|name, _| Subfolder::parse(name).is_ok());
        index
    }

    /// Changes the index, one worker after the other; readers see it before or after.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Index) -> T) -> io::Result<T> {
        fs::create_dir_all(&self.folder)?;
        let lock = files::open_regular(
            File::options().create(true).truncate(false).write(true),
            &self.folder.join("index.lock"),
        )?;
        lock.lock()?;
        let mut index = self.read();
        let outcome = change(&mut index);
        let mut file = tempfile::Builder::new().prefix(".index-").tempfile_in(&self.folder)?;
        file.write_all(&serde_json::to_vec_pretty(&index)?)?;
        file.persist(self.path()).map_err(|error| error.error)?;
        Ok(outcome)
    }

    fn path(&self) -> PathBuf {
        self.folder.join("index.json")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn model(used: u64, size: u64, kept: bool) -> Model {
        let file = FileStamp { size, modified: (0, 0) };
        Model { origin: None, sha256: String::new(), file, used, kept }
    }

    #[test]
    fn what_changes_is_there_for_the_next_reader() {
        let folder = tempfile::tempdir().unwrap();
        let file = IndexFile::of(folder.path());
        assert!(file.read().models.is_empty());
        file.change(|index| {
            index.models.insert("loras/a".into(), model(0, 1, false));
            index.models.insert("loras/b".into(), model(0, 2, false));
            index.models.insert("loras/theirs".into(), model(0, 4, true));
        })
        .unwrap();
        for name in ["loras/b", "loras/a", "loras/theirs", "loras/none"] {
            file.change(|index| index.touch(name)).unwrap();
        }
        let index = file.read();
        assert_eq!((index.by_age(), index.bytes()), (vec!["loras/b".into(), "loras/a".into()], 3));
        let left: Vec<_> = fs::read_dir(folder.path().join(FOLDER)).unwrap().collect();
        assert_eq!(left.len(), 2, "index and lock: {left:?}");
    }

    #[test]
    fn writers_wait_for_one_another() {
        let folder = tempfile::tempdir().unwrap();
        let file = IndexFile::of(folder.path());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..25).for_each(|_| file.change(|index| index.touch("x")).unwrap()));
            }
        });
        assert_eq!(file.read().uses, 200);
    }

    #[test]
    fn a_damaged_index_and_names_that_lead_out() {
        let folder = tempfile::tempdir().unwrap();
        let file = IndexFile::of(folder.path());
        file.change(|index| {
            for name in ["../x", "/etc/passwd", "loras/../../x", "loras//x", "loras/x"] {
                index.models.insert(name.into(), model(1, 1, false));
            }
        })
        .unwrap();
        assert_eq!(file.read().by_age(), ["loras/x"]);
        fs::write(file.path(), "{\"models\": {\"loras").unwrap();
        assert!(file.read().by_age().is_empty());
        file.change(|index| index.touch("x")).unwrap();
        assert_eq!(file.read().uses, 1);
    }
}
