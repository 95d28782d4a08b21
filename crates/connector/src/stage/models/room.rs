//! Room for models: the least recently used go.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

use super::{
    ModelRequest, Models,
    index::{FOLDER, FileStamp, Index, Model},
    lock::ModelLock,
};

/// Files that a cache with a limit keeps, however small: each is a line of its index, which is written whenever it
/// changes.
const MAX_FILES: usize = if cfg!(test) { 20 } else { 4_000 };

impl Models {
    /// Evicts until `incoming` more bytes fit into the limit, as far as nobody uses the rest.
    pub(super) async fn trim(&self, incoming: u64) {
        let Some(limit) = self.limit else { return };
        let models = self.clone();
        let fits = move |index: &Index| {
            let bytes = index.bytes().saturating_add(bytes_of_parts(index)).saturating_add(incoming);
            bytes <= limit && index.evictable() + index.parts.len() <= MAX_FILES
        };
        if fits(&self.index.read()) {
            return;
        }
        let trim = move |index: &mut Index| {
            // What a job that has failed began to fetch.
            models.drop_parts(index, |_| true);
            models.evict(index, |_| true, fits)
        };
        let trimmed = self.change(trim).await;
        if let Err(error) = trimmed {
            tracing::warn!(%error, "models cannot be evicted");
        }
    }

    /// Evicts until the file system of `folder` has `need` bytes; how many that freed.
    pub(in crate::stage) async fn free(&self, folder: &Path, need: u64) -> u64 {
        let index = self.index.read();
        if index.models.is_empty() && index.parts.is_empty() {
            return 0;
        }
        let (models, folder) = (self.clone(), folder.to_owned());
        let freed = self.change(move |index| {
            let here = device(&folder);
            let on_it = |path: &Path| path.parent().and_then(device) == here;
            let enough = |_: &Index| available(&folder).is_ok_and(|available| available >= need);
            models.drop_parts(index, on_it) + models.evict(index, on_it, enough)
        });
        freed.await.unwrap_or_else(|error| {
            tracing::warn!(%error, "models cannot be evicted");
            0
        })
    }

    /// Bytes that are still to come, for all that is known.
    pub(super) fn missing(&self, order: &ModelRequest) -> u64 {
        let part = self.index.read().parts.remove(&order.part_name());
        let here = part.as_ref().and_then(|part| fs::metadata(&part.path).ok()).map_or(0, |part| part.len());
        part.and_then(|part| part.size).map_or(u64::MAX, |size| size.saturating_sub(here))
    }

    /// Removes what nobody goes on fetching.
    fn drop_parts(&self, index: &mut Index, from: impl Fn(&Path) -> bool) -> u64 {
        let mut freed = 0;
        index.parts.retain(|key, part| {
            if !self.is_our_part(&part.path) {
                return false;
            }
            let lock = ModelLock::of(&self.root, if part.model.is_empty() { key } else { &part.model });
            let Some(_eviction) = lock.evict().filter(|_| from(&part.path)) else { return true };
            let size = fs::metadata(&part.path).map_or(0, |part| part.len());
            if fs::remove_file(&part.path).is_ok() {
                freed += size;
            }
            self.folders.remove_empty(part.path.parent().unwrap_or(&self.root));
            false
        });
        freed
    }

    /// Nodes, too, can write an index: only what has a name that no job can give is removed.
    fn is_our_part(&self, path: &Path) -> bool {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_named = name.starts_with(FOLDER) && name.ends_with(".part");
        is_named
            && path.starts_with(&self.root)
            && !path.components().any(|part| part == Component::ParentDir)
    }

    /// Removes models, the least recently used first, until it is `enough`; those in use stay.
    fn evict(&self, index: &mut Index, from: impl Fn(&Path) -> bool, enough: impl Fn(&Index) -> bool) -> u64 {
        self.drop_stale(index);
        let mut freed = 0;
        for name in index.by_age() {
            if enough(index) {
                break;
            }
            let path = self.root.join(&name);
            if !from(&path) {
                continue;
            }
            let Some(_eviction) = ModelLock::of(&self.root, &name).evict() else { continue };
            let Some(model) = index.models.remove(&name) else { continue };
            if !self.is_as_placed(&name, &model) {
                continue;
            }
            match fs::remove_file(&path) {
                Ok(()) => {
                    let bytes = model.file.size;
                    tracing::info!(model = name, bytes, "evicted: the least recently used model");
                    freed += bytes;
                    self.folders.remove_empty(path.parent().unwrap_or(&self.root));
                }
                Err(error) => {
                    tracing::warn!(%error, model = name, "cannot be evicted");
                    index.models.insert(name, model);
                }
            }
        }
        freed
    }

    /// Forgets models that are gone, or that somebody has written since: those are theirs.
    fn drop_stale(&self, index: &mut Index) {
        index.models.retain(|name, model| {
            // One that is about to be renamed into its place is not stale.
            self.is_as_placed(name, model) || ModelLock::of(&self.root, name).evict().is_none()
        });
    }

    fn is_as_placed(&self, name: &str, model: &Model) -> bool {
        let found = fs::symlink_metadata(self.root.join(name));
        found.is_ok_and(|found| FileStamp::of(&found) == model.file)
    }
}

/// What is there of files that are not whole.
fn bytes_of_parts(index: &Index) -> u64 {
    index.parts.values().filter_map(|part| fs::metadata(&part.path).ok()).map(|part| part.len()).sum()
}

/// The file system that a folder is on, or will be on.
fn device(folder: &Path) -> Option<u64> {
    folder.ancestors().find_map(|folder: &Path| fs::metadata(folder).ok()).map(|folder| folder.dev())
}

/// Bytes that are free.
fn available(folder: &PathBuf) -> io::Result<u64> {
    let room = rustix::fs::statvfs(folder)?;
    Ok(room.f_bavail.saturating_mul(room.f_frsize))
}
