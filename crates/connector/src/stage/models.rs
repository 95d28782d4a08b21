//! Models, and other files, that jobs bring for good: fetched once from each address, kept, and shared between jobs, workers and restarts.
//!
//! ```text
//! models/.comfy-worker/index.json         what was placed here, and what is not whole yet
//!                      locks/<k>.use      shared by the jobs that use a model
//!                      locks/<k>.fetch    held while it is fetched from one source
//! models/loras/.comfy-worker-<k>.part     a model that is not whole, from that source
//! models/loras/x.safetensors              a whole one, renamed into place
//! ```
//!
//! Invariants: only what the index lists, and still finds as it was placed, is ever evicted; never a model
//! that a job uses; and a model is in the index before it is in its place, so that none is forgotten.

mod index;
mod lock;
mod part;
mod room;

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::Arc,
};

use contract::{failure::Failure, request::FolderType};
use tokio::task::spawn_blocking;

use super::{
    Folders,
    fetch::{self, Budget, BudgetReservation, Fetcher, OpenError},
    files::place_failure,
    journal::rename_new,
    model_folders::ModelFolders,
    place::PlaceError,
};
use crate::checksum;
use index::{FOLDER, FileStamp, IndexFile, Model, Origin, Part};
use lock::{FetchLock, ModelLock};
use part::PartFile;

pub use lock::Lease;

/// How often a model may change at its source while it is fetched.
const RESTARTS: u32 = 3;

/// So much room is made at a time for a model that comes.
const ROOM_STEP: u64 = if cfg!(test) { 4 } else { 64 << 20 };

/// The models of one models folder.
#[derive(Clone, Debug)]
pub(super) struct Models {
    folders: Folders,
    root: PathBuf,
    index: IndexFile,
    limit: Option<u64>,
}

/// A model that a job wants.
#[derive(Debug)]
pub(super) struct ModelRequest {
    /// Its path under the models folder.
    pub(super) name: String,
    /// The same, whole and checked.
    pub(super) target: PathBuf,
    pub(super) source: String,
    pub(super) sha256: Option<String>,
    pub(super) overwrite: bool,
    /// Whether `overwrite` goes for what the cache has not placed, too.
    pub(super) replace_foreign: bool,
    /// Whether a file of that name is taken for it where no checksum says more.
    pub(super) by_name: bool,
    /// Where else ComfyUI looks for it, where that counts.
    pub(super) searched: Option<ModelFolders>,
}

impl ModelRequest {
    /// The file beside the model that it is fetched to: each source has its own.
    fn part_name(&self) -> String {
        lock::part_name(&self.name, &self.source)
    }
}

/// A model that is there.
#[derive(Debug)]
pub(super) struct Placed {
    /// Keeps it there; `None` where nobody can remove it.
    pub(super) lease: Option<Lease>,
    pub(super) bytes: u64,
    /// Whether it had to be fetched.
    pub(super) is_cold: bool,
}

/// Whether a job may give this name to a model, or to a folder of models.
pub(super) fn is_reserved(name: &str) -> bool {
    name.get(..FOLDER.len()).is_some_and(|start| start.eq_ignore_ascii_case(FOLDER))
}

impl Models {
    /// Those of a folder of ComfyUI; of the fetched ones at most `limit` bytes are kept.
    pub(super) fn new(folders: &Folders, folder: FolderType, limit: Option<u64>) -> Self {
        let root = folders.of(folder);
        Self { folders: folders.clone(), index: IndexFile::of(&root), root, limit }
    }

    /// Has a model in its place, and leases it.
    pub(super) async fn place(
        &self,
        order: &ModelRequest,
        fetcher: Fetcher<'_>,
        budget: &Budget,
    ) -> Result<Placed, Failure> {
        let lock = ModelLock::of(&self.root, &order.name);
        // Before the look: what is found must still be there afterwards.
        let lease = match lock.lease().await {
            Ok(lease) => Ok(lease),
            // A folder that cannot be written holds its owner's models only.
            Err(error) if is_read_only(&error) => Err(error),
            Err(error) => return Err(self.failed(&error)),
        };
        if let Some(bytes) = self.warm(order, fetcher).await? {
            return Ok(Placed { lease: lease.ok(), bytes, is_cold: false });
        }
        if let Some(bytes) = self.elsewhere(order).await? {
            return Ok(Placed { lease: None, bytes, is_cold: false });
        }
        let lease = Some(lease.map_err(|error| self.failed(&error))?);
        let turn = Arc::new(lock.turn(&order.source).await.map_err(|error| self.failed(&error))?);
        // Somebody may have been faster.
        if let Some(bytes) = self.warm(order, fetcher).await? {
            return Ok(Placed { lease, bytes, is_cold: false });
        }
        let mut fetched = self.fetch(order, &turn, fetcher, budget).await;
        if matches!(fetched, Err(Failure::DiskFull(_)))
            && self.free(order.target.parent().unwrap_or(&self.root), self.missing(order)).await > 0
        {
            fetched = self.fetch(order, &turn, fetcher, budget).await;
        }
        let bytes = fetched?;
        self.trim(0).await;
        Ok(Placed { lease, bytes, is_cold: true })
    }

    /// The size of the model that is there, if it is the one that is wanted.
    async fn warm(&self, order: &ModelRequest, fetcher: Fetcher<'_>) -> Result<Option<u64>, Failure> {
        let target = &order.target;
        if target.symlink_metadata().is_err() {
            return Ok(None);
        }
        let found = FileStamp::at(target).ok().filter(|_| target.is_file());
        let Some(found) = found else {
            let replaceable = order.overwrite && order.replace_foreign && !target.is_dir();
            return if replaceable { Ok(None) } else { Err(self.exists(order)) };
        };
        let known = self.known(&order.name).await.filter(|model| model.file == found);
        let is_same = match (&order.sha256, &known) {
            (Some(sum), Some(model)) => model.sha256.eq_ignore_ascii_case(sum),
            (Some(sum), None) => {
                let is_same = fetch::matches(target, Some(sum)).await;
                if is_same {
                    self.adopt(order, found, sum).await;
                }
                is_same
            }
            (None, _) if !order.overwrite && order.by_name => true,
            (None, Some(Model { origin: Some(origin), .. })) => {
                origin.source == digest(&order.source)
                    && fetcher.version(&order.source).await?.as_ref() == Some(&origin.version)
            }
            (None, _) => false,
        };
        if is_same {
            if known.is_some() {
                let name = order.name.clone();
                self.note(move |index| index.touch(&name)).await;
            }
            return Ok(Some(found.size));
        }
        let is_ours = known.is_some_and(|model| !model.kept);
        if order.overwrite && (is_ours || order.replace_foreign) { Ok(None) } else { Err(self.exists(order)) }
    }

    /// The size of the model that ComfyUI finds elsewhere, if it is the one that is wanted.
    async fn elsewhere(&self, order: &ModelRequest) -> Result<Option<u64>, Failure> {
        let Some(searched) = &order.searched else { return Ok(None) };
        let by_name = order.by_name && !order.overwrite;
        searched.has(&order.target, &self.folders, order.sha256.as_deref(), by_name).await
    }

    async fn known(&self, name: &str) -> Option<Model> {
        let (index, name) = (self.index.clone(), name.to_owned());
        spawn_blocking(move || index.read().models.remove(&name)).await.ok().flatten()
    }

    /// Remembers the checksum of somebody's own model: it was read as a whole.
    async fn adopt(&self, order: &ModelRequest, file: FileStamp, sha256: &str) {
        let (name, sha256) = (order.name.clone(), sha256.to_lowercase());
        self.note(move |index| {
            index.models.insert(name, Model { origin: None, sha256, file, used: 0, kept: true });
        })
        .await;
    }

    /// Changes the index where the change may be lost.
    async fn note(&self, change: impl FnOnce(&mut index::Index) + Send + 'static) {
        if let Err(error) = self.change(change).await {
            tracing::debug!(%error, "the index of models cannot be written");
        }
    }

    async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut index::Index) -> T + Send + 'static,
    ) -> io::Result<T> {
        let index = self.index.clone();
        spawn_blocking(move || index.change(change)).await.map_err(io::Error::other)?
    }

    /// Fetches a model into its place; its size.
    async fn fetch(
        &self,
        order: &ModelRequest,
        turn: &Arc<FetchLock>,
        fetcher: Fetcher<'_>,
        budget: &Budget,
    ) -> Result<u64, Failure> {
        let folder = order.target.parent().unwrap_or(&self.root);
        let fetched = self.fetch_into(folder, order, turn, fetcher, budget).await;
        if fetched.is_err() {
            self.folders.remove_empty(folder);
        }
        fetched
    }

    async fn fetch_into(
        &self,
        folder: &Path,
        order: &ModelRequest,
        turn: &Arc<FetchLock>,
        fetcher: Fetcher<'_>,
        budget: &Budget,
    ) -> Result<u64, Failure> {
        let path = folder.join(order.part_name());
        let mut restarts = 0;
        loop {
            let share = BudgetReservation::of(budget, &order.source);
            match self.receive(order, &path, turn, fetcher, share).await {
                Err(OpenError::Changed) if restarts < RESTARTS => {
                    restarts += 1;
                    tracing::info!(
                        model = order.name,
                        "the model changed at its source: downloading it from the start"
                    );
                    self.forget_part(order, &path).await;
                }
                Err(error) => {
                    // Without a version nobody can go on with it.
                    if self.part(order).await.is_none_or(|part| part.origin.is_none()) {
                        self.forget_part(order, &path).await;
                    }
                    return Err(error.into_failure(&order.source));
                }
                Ok((sum, file, origin)) => {
                    // It comes while ComfyUI still starts.
                    if let Some(searched) = &order.searched {
                        searched.known().await;
                    }
                    match self.elsewhere(order).await {
                        Ok(None) => return self.settle(order, &path, sum, file, origin).await,
                        found => {
                            self.forget_part(order, &path).await;
                            return found.map(Option::unwrap_or_default);
                        }
                    }
                }
            }
        }
    }

    /// Receives what is missing of a model; what the whole is known by.
    async fn receive(
        &self,
        order: &ModelRequest,
        path: &Path,
        turn: &Arc<FetchLock>,
        fetcher: Fetcher<'_>,
        mut share: BudgetReservation<'_>,
    ) -> Result<(String, FileStamp, Option<Origin>), OpenError> {
        let local = |error: io::Error| place_failure(PlaceError::io(path, error));
        let (source, digest) = (&order.source, digest(&order.source));
        let begun = self.part(order).await.filter(|part| {
            part.path == path && part.origin.as_ref().is_some_and(|origin| origin.source == digest)
        });
        let most = begun.as_ref().map_or(0, |part| part.size.unwrap_or(u64::MAX));
        let mut part = PartFile::open(path, most, Arc::clone(turn)).await.map_err(local)?;
        share.take(part.len())?;
        let mut origin = begun.as_ref().and_then(|part| part.origin.clone()).filter(|_| part.len() > 0);
        // Its last byte came before an earlier try ended.
        let is_whole = origin.is_some() && begun.and_then(|part| part.size) == Some(part.len());
        if !is_whole {
            let version = origin.as_ref().map(|origin| origin.version.as_str());
            let mut object = fetcher.open_from(source, part.len(), version).await?;
            if let Some(size) = object.size {
                share.check(size.saturating_sub(part.len()))?;
            }
            if origin.is_none() {
                origin = object.version.clone().map(|version| Origin { source: digest, version });
                let (model, path) = (order.name.clone(), path.to_owned());
                let begun = Part { model, path, origin: origin.clone(), size: object.size };
                let key = order.part_name();
                // Before the first byte: a part that nobody knows is begun again.
                self.change(move |index| index.parts.insert(key, begun)).await.map_err(local)?;
            } else {
                tracing::info!(model = order.name, offset = part.len(), "resuming the download of a model");
            }
            let mut room = part.len();
            while let Some(chunk) = fetch::next(&mut object, source).await? {
                let bytes = chunk.len() as u64;
                share.take(bytes)?;
                if part.len() + bytes > room {
                    // For what came, not for what the source says will come: that may be a lie.
                    let step = ROOM_STEP.max(bytes);
                    let left = object.size.map_or(step, |size| size.saturating_sub(part.len()));
                    self.trim(step.min(left)).await;
                    room = part.len() + step;
                }
                part = part.append(chunk).await.map_err(local)?;
            }
            if object.size.is_some_and(|size| size != part.len()) {
                let problem = format!("{}: it ended after {} bytes", fetch::show(source), part.len());
                return Err(Failure::InputUnavailable(problem).into());
            }
        }
        let (sum, file) = part.finish().await.map_err(local)?;
        if let Some(expected) = order.sha256.as_ref().filter(|expected| !expected.eq_ignore_ascii_case(&sum))
        {
            self.forget_part(order, path).await;
            return Err(fetch::checksum_mismatch(source, &sum, expected).into());
        }
        share.keep();
        Ok((sum, file, origin))
    }

    /// Gives a whole model its name.
    async fn settle(
        &self,
        order: &ModelRequest,
        path: &Path,
        sha256: String,
        file: FileStamp,
        origin: Option<Origin>,
    ) -> Result<u64, Failure> {
        let (name, target, path) = (order.name.clone(), order.target.clone(), path.to_owned());
        let (overwrite, replace_foreign) = (order.overwrite, order.replace_foreign);
        let part = order.part_name();
        let placing = self.change(move |index| {
            let there = fs::symlink_metadata(&target).ok().map(|metadata| FileStamp::of(&metadata));
            let ours = index.models.get(&name).is_some_and(|model| !model.kept && Some(model.file) == there);
            let kept = there.is_some() && !ours;
            index.parts.remove(&part);
            if kept && !replace_foreign {
                let _ = fs::remove_file(&path);
                return Err(ErrorKind::AlreadyExists.into());
            }
            let replaced = index.models.insert(name.clone(), Model { origin, sha256, file, used: 0, kept });
            index.touch(&name);
            let renamed = if overwrite { fs::rename(&path, &target) } else { rename_new(&path, &target) };
            if renamed.is_err() {
                index.models.remove(&name);
                index.models.extend(replaced.map(|replaced| (name, replaced)));
                let _ = fs::remove_file(&path);
            }
            renamed
        });
        match placing.await.map_err(|error| self.failed(&error))? {
            Ok(()) => Ok(file.size),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(self.exists(order)),
            Err(error) => Err(place_failure(PlaceError::io(&order.target, error))),
        }
    }

    async fn part(&self, order: &ModelRequest) -> Option<Part> {
        let (index, key) = (self.index.clone(), order.part_name());
        spawn_blocking(move || index.read().parts.remove(&key)).await.ok().flatten()
    }

    async fn forget_part(&self, order: &ModelRequest, path: &Path) {
        let (key, path) = (order.part_name(), path.to_owned());
        self.note(move |index| {
            index.parts.remove(&key);
            let _ = fs::remove_file(path);
        })
        .await;
    }

    /// Whether the cache has put there what has this name now.
    pub(super) async fn has_placed(&self, name: &str, target: &Path) -> bool {
        let known = self.known(name).await;
        known.is_some_and(|known| !known.kept && FileStamp::at(target).is_ok_and(|found| found == known.file))
    }

    fn failed(&self, error: &io::Error) -> Failure {
        Failure::local(self.root.display(), error)
    }

    fn exists(&self, order: &ModelRequest) -> Failure {
        let folder = self.root.file_name().unwrap_or_default().to_string_lossy();
        in_the_way(&folder, &order.name, order.overwrite)
    }
}

/// Of a file that is there and must stay.
pub(super) fn in_the_way(folder: &str, name: &str, overwrite: bool) -> Failure {
    let reason = if overwrite {
        "was not put there by a job, and inputs.replace_foreign is false"
    } else {
        "exists and `overwrite` is false"
    };
    Failure::Invalid(format!("files: {folder}/{name} {reason}"))
}

fn digest(source: &str) -> String {
    checksum::of_bytes(source.as_bytes())
}

fn is_read_only(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem)
}

#[cfg(test)]
#[path = "models/tests.rs"]
mod tests;
