//! Files into ComfyUI's folders: fetched to a `.part` file, checked, renamed; ephemeral ones
//! journalled before they exist and removed after their job.
//!
//! Invariants: a file that was there before is never deleted, and only replaced when the caller
//! says so; every name from a job is one checked component beneath its root.

mod fetch;
mod journal;
mod names;
mod place;
mod warm;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use uuid::Uuid;

pub use journal::{Journal, Owned};
pub use names::{FileName, NameError, Subfolder, open_beneath};
pub use place::{PlaceError, UploadOptions};

use crate::{
    job::{
        failure::Failure,
        request::{FileRequest, FileSource, FolderType, InputValue, JobRequest, NodeInput},
    },
    store::{ObjectStore, ObjectUri},
};
use fetch::{Budget, Fetcher};
use warm::Warm;

/// Files fetched side by side.
const PARALLEL_FETCHES: usize = 8;

/// ComfyUI's folders on this machine.
#[derive(Clone, Debug)]
pub struct Folders {
    base: PathBuf,
}

impl Folders {
    /// Beneath ComfyUI's base folder (`comfyui.path`).
    #[must_use]
    pub fn new(base: PathBuf) -> Self {
        Self { base }
    }

    /// One of them.
    #[must_use]
    pub fn of(&self, folder: FolderType) -> PathBuf {
        self.base.join(folder.name())
    }
}

/// Places files for jobs and for the connector's callers.
#[derive(Clone, Debug)]
pub struct Stager {
    folders: Folders,
    journal: Arc<Journal>,
    store: Arc<dyn ObjectStore>,
    allow: Arc<[String]>,
    max_bytes: u64,
    submitted: Option<ObjectUri>,
    warm: Warm,
}

/// What a job's inputs became.
#[derive(Debug, Default)]
pub struct Staged {
    /// Values for the prompt.
    pub values: BTreeMap<NodeInput, serde_json::Value>,
    /// Bare names in the workflow and the staged names that take their place.
    pub renamed: BTreeMap<String, String>,
    /// How many files were fetched.
    pub files: usize,
    /// How many bytes they have.
    pub bytes: u64,
    /// What is removed after the job; its drop removes.
    pub owned: Vec<Owned>,
}

impl Stager {
    /// A stager that reads from `store`, beneath the prefixes `allow` only, `max_bytes` a job.
    #[must_use]
    pub fn new(
        folders: Folders,
        journal: Arc<Journal>,
        store: Arc<dyn ObjectStore>,
        allow: Vec<String>,
        max_bytes: u64,
    ) -> Self {
        let warm = Warm::new(folders.of(FolderType::Models));
        Self { folders, journal, store, allow: allow.into(), max_bytes, submitted: None, warm }
    }

    /// Opens `<base>/<job id>/inputs/` to the job of that id, whatever else is closed: there `submit`
    /// puts its local files.
    #[must_use]
    pub fn with_submitted(self, base: Option<ObjectUri>) -> Self {
        Self { submitted: base, ..self }
    }

    /// ComfyUI's folders.
    #[must_use]
    pub fn folders(&self) -> &Folders {
        &self.folders
    }

    /// The journal of what is removed after use.
    #[must_use]
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// Has the system read the models of those names from the disk, in the background: a prompt will want
    /// them soon. Those that were asked for lately are left alone.
    pub fn warm<'a>(&self, names: impl Iterator<Item = &'a str>) {
        self.warm.read_ahead(names.map(str::to_owned).collect());
    }

    /// Fetches every input of a job into a folder of its own beneath `input`, and its `files` to
    /// where they belong.
    ///
    /// # Errors
    /// Whose fault it is says the [`Failure`]. What was staged until then is removed.
    pub async fn stage_inputs(&self, job: &JobRequest) -> Result<Staged, Failure> {
        let mut staged = Staged::default();
        let budget = Budget::new(self.max_bytes);
        let mut wanted: Vec<FileSource> = Vec::new();
        for (address, value) in &job.inputs {
            match value {
                InputValue::Literal(value) => {
                    staged.values.insert(address.clone(), value.clone());
                }
                InputValue::File(source) => wanted.push(source.clone()),
            }
        }
        wanted.extend(job.named_files.iter().cloned());
        let names = self.stage_sources(job, wanted, &budget, &mut staged).await?;
        for (address, value) in &job.inputs {
            if let InputValue::File(source) = value
                && let Some(name) = names.get(source)
            {
                staged.values.insert(address.clone(), name.clone().into());
            }
        }
        for source in &job.named_files {
            if let (Some(bare), Some(name)) = (&source.name, names.get(source)) {
                staged.renamed.insert(bare.clone(), name.clone());
            }
        }
        let placed = stream::iter(&job.files)
            .map(|file| self.stage_file(file, &budget))
            .buffer_unordered(PARALLEL_FETCHES)
            .try_collect::<Vec<_>>()
            .await?;
        staged.owned.extend(placed.into_iter().flatten());
        staged.files += job.files.len();
        staged.bytes = budget.used();
        Ok(staged)
    }

    /// Stages each source once; its name as a node's input takes it, `<folder>/<name>`.
    async fn stage_sources(
        &self,
        job: &JobRequest,
        mut wanted: Vec<FileSource>,
        budget: &Budget,
        staged: &mut Staged,
    ) -> Result<HashMap<FileSource, String>, Failure> {
        wanted.sort_by(|a, b| (&a.source, &a.name).cmp(&(&b.source, &b.name)));
        wanted.dedup();
        if wanted.is_empty() {
            return Ok(HashMap::new());
        }
        let folder = self.job_folder(job.id.as_str()).await?;
        let folder_name = folder.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        // Names that differ in case only are one on some file systems.
        let mut taken = HashSet::new();
        let mut plan = Vec::new();
        for source in wanted {
            let bare = fetch::name_of(&source)?;
            let mut name = bare.to_string();
            let mut number = 2;
            while !taken.insert(name.to_lowercase()) {
                name = format!("{number}-{bare}");
                number += 1;
            }
            plan.push((source, name));
        }
        let mut allow = self.allow.to_vec();
        let submitted =
            self.submitted.as_ref().and_then(|base| base.join(&format!("{}/inputs", job.id)).ok());
        allow.extend(submitted.map(|folder| format!("{folder}/")));
        let fetcher = self.fetcher(&allow);
        let fetches = plan.iter().map(|(source, name)| {
            let target = folder.path().join(name);
            fetcher.fetch(source.source.as_str(), source.sha256.as_deref(), target, budget)
        });
        stream::iter(fetches).buffer_unordered(PARALLEL_FETCHES).try_collect::<Vec<()>>().await?;
        staged.files += plan.len();
        staged.owned.push(folder);
        Ok(plan.into_iter().map(|(source, name)| (source, format!("{folder_name}/{name}"))).collect())
    }

    /// Reads a small object that a job names, such as its workflow, from where inputs may come from.
    ///
    /// # Errors
    /// Whose fault it is says the [`Failure`].
    pub async fn read(&self, uri: &str, limit: u64) -> Result<bytes::Bytes, Failure> {
        self.fetcher(&self.allow).read(uri, limit).await
    }

    fn fetcher<'a>(&'a self, allow: &'a [String]) -> Fetcher<'a> {
        Fetcher { store: &*self.store, allow }
    }

    /// `input/<job id>`, or beside it when somebody has that name already.
    async fn job_folder(&self, job_id: &str) -> Result<Owned, Failure> {
        let input = self.folders.of(FolderType::Input);
        let taken = input.join(job_id).symlink_metadata().is_ok();
        let name = if taken { format!("{job_id}-{}", Uuid::new_v4().simple()) } else { job_id.to_owned() };
        self.journal
            .create_folder(&input, &name)
            .await
            .map_err(|error| Failure::local(input.join(name).display(), &error))
    }

    /// One of a job's `files`; what is to be removed afterwards.
    async fn stage_file(&self, file: &FileRequest, budget: &Budget) -> Result<Option<Owned>, Failure> {
        let source =
            FileSource { source: file.source.clone(), sha256: file.sha256.clone(), name: file.name.clone() };
        let invalid = |error: NameError| Failure::Invalid(format!("files: {error}"));
        let name = fetch::name_of(&source)?;
        let subfolder = Subfolder::parse(file.subfolder.as_deref().unwrap_or_default()).map_err(invalid)?;
        let options = UploadOptions {
            folder: file.folder,
            subfolder,
            overwrite: file.overwrite,
            ephemeral: file.ephemeral,
        };
        let target = options.target(&self.folders, &name).map_err(place_failure)?;
        let existing = async || {
            // Models are kept and shared between jobs: the same one is not fetched again.
            if file.folder == FolderType::Models && fetch::matches(&target, file.sha256.as_deref()).await {
                return Ok(None);
            }
            let (folder, name) = (file.folder.name(), options.subfolder.join(&name));
            Err(Failure::Invalid(format!("files: {folder}/{name} exists and `overwrite` is false")))
        };
        if !file.overwrite && target.symlink_metadata().is_ok() {
            return existing().await;
        }
        let scratch = self.scratch_beside(&target).await?;
        let part = scratch.path().join(name.as_str());
        self.fetcher(&self.allow)
            .fetch(&source.source, source.sha256.as_deref(), part.clone(), budget)
            .await?;
        match place::settle(&self.journal, &part, &target, &options) {
            // Another job, or another of this job's files, was faster.
            Err(PlaceError::Exists(_)) => existing().await,
            settled => settled.map_err(place_failure),
        }
    }

    /// A folder of our own on the target's file system, for the file until it is whole.
    async fn scratch_beside(&self, target: &Path) -> Result<Owned, Failure> {
        let parent = target.parent().unwrap_or(target);
        let name = format!(".comfy-worker-{}", Uuid::new_v4().simple());
        self.journal
            .create_folder(parent, &name)
            .await
            .map_err(|source| place_failure(PlaceError::io(parent, source)))
    }

    /// Copies a local file into one of ComfyUI's folders, as [`UploadOptions`] say.
    ///
    /// # Errors
    /// See [`PlaceError`].
    pub async fn upload(
        &self,
        source: &Path,
        options: &UploadOptions,
    ) -> Result<(PathBuf, Option<Owned>), PlaceError> {
        place::upload(&self.folders, &self.journal, source, options).await
    }
}

/// A name that the folder cannot take is the job's fault, a disk that is full is not.
fn place_failure(error: PlaceError) -> Failure {
    use std::io::ErrorKind as Kind;
    match &error {
        PlaceError::Io { source, .. }
            if !matches!(
                source.kind(),
                Kind::AlreadyExists | Kind::NotADirectory | Kind::IsADirectory | Kind::InvalidFilename
            ) =>
        {
            Failure::Local(error.to_string())
        }
        PlaceError::DiskFull(_) => Failure::DiskFull(error.to_string()),
        _ => Failure::Invalid(format!("files: {error}")),
    }
}

#[cfg(test)]
#[path = "stage_tests.rs"]
mod tests;
