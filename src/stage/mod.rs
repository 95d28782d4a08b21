//! Files into ComfyUI's folders: fetched to a `.part` file, checked, renamed; ephemeral ones
//! journalled before they exist and removed after their job.
//!
//! Invariants: a file that was there before is never deleted, and only replaced when the caller
//! says so; every name from a job is one checked component beneath its root.

mod fetch;
mod journal;
mod models;
mod names;
mod place;
mod web;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use uuid::Uuid;

pub(crate) use fetch::show;
pub use journal::{Journal, Owned};
pub use models::Lease;
pub use names::{FileName, NameError, Subfolder, open_beneath};
pub use place::{PlaceError, UploadOptions};

use crate::{
    job::{
        failure::Failure,
        request::{FileRequest, FileSource, FolderType, InputValue, JobRequest, NodeInput},
        result::ModelTimings,
    },
    store::{ObjectStore, ObjectUri},
};
use fetch::{Budget, Fetcher};
use models::{Models, Order};
use web::Web;

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
    web: Web,
    models: Models,
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
    /// Models that stay where they are until the job is over.
    pub leases: Vec<Lease>,
    /// What its models took, where it has any.
    pub models: Option<ModelTimings>,
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
        let models = Models::new(folders.of(FolderType::Models), None);
        let (allow, web) = (allow.into(), Web::default());
        Self { folders, journal, store, allow, max_bytes, submitted: None, web, models }
    }

    /// Keeps at most so many bytes of the models that jobs bring; `None`: all of them.
    #[must_use]
    pub fn with_model_cache(self, limit: Option<u64>) -> Self {
        let models = Models::new(self.folders.of(FolderType::Models), limit);
        Self { models, ..self }
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

    /// Fetches every input of a job into a folder of its own beneath `input`, and its `files` to
    /// where they belong. On a full disk once more, if cached models there can make room.
    ///
    /// # Errors
    /// Whose fault it is says the [`Failure`]. What was staged until then is removed, but for models.
    pub async fn stage_inputs(&self, job: &JobRequest) -> Result<Staged, Failure> {
        match Box::pin(self.stage_once(job)).await {
            Err(Failure::DiskFull(_))
                if self.models.free(&self.folders.of(FolderType::Input), self.max_bytes).await > 0 =>
            {
                Box::pin(self.stage_once(job)).await
            }
            outcome => outcome,
        }
    }

    async fn stage_once(&self, job: &JobRequest) -> Result<Staged, Failure> {
        let mut staged = Staged::default();
        let budget = Budget::new(self.max_bytes);
        let mut wanted: Vec<FileSource> = Vec::new();
        let mut sources = BTreeMap::new();
        for (address, value) in &job.inputs {
            match value {
                InputValue::File(source) => {
                    sources.insert(address, source.clone());
                }
                InputValue::Address(text) if web::is_open(text, &self.allow) => {
                    let source = FileSource { source: text.clone(), sha256: None, name: None };
                    sources.insert(address, source);
                }
                InputValue::Address(text) => {
                    staged.values.insert(address.clone(), text.clone().into());
                }
                InputValue::Literal(value) => {
                    staged.values.insert(address.clone(), value.clone());
                }
            }
        }
        wanted.extend(sources.values().chain(&job.named_files).cloned());
        let names = self.stage_sources(job, wanted, &budget, &mut staged).await?;
        for (address, source) in sources {
            if let Some(name) = names.get(&source) {
                staged.values.insert(address.clone(), name.clone().into());
            }
        }
        for source in &job.named_files {
            if let (Some(bare), Some(name)) = (&source.name, names.get(source)) {
                staged.renamed.insert(bare.clone(), name.clone());
            }
        }
        let (models, files): (Vec<_>, Vec<_>) =
            job.files.iter().partition(|file| file.folder == FolderType::Models && !file.ephemeral);
        let placed = stream::iter(files)
            .map(|file| self.stage_file(file, &budget))
            .buffer_unordered(PARALLEL_FETCHES)
            .try_collect::<Vec<_>>()
            .await?;
        staged.owned.extend(placed.into_iter().flatten());
        self.stage_models(&models, &budget, &mut staged).await?;
        staged.files += job.files.len();
        staged.bytes = budget.used();
        Ok(staged)
    }

    async fn stage_models(
        &self,
        models: &[&FileRequest],
        budget: &Budget,
        staged: &mut Staged,
    ) -> Result<(), Failure> {
        if models.is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        let orders = models.iter().map(|file| self.order(file)).collect::<Result<Vec<_>, _>>()?;
        let fetcher = self.fetcher(&self.allow);
        let placed = stream::iter(&orders)
            .map(|order| self.models.place(order, fetcher, budget))
            .buffer_unordered(PARALLEL_FETCHES)
            .try_collect::<Vec<_>>()
            .await?;
        let mut timings = ModelTimings::default();
        for model in placed {
            let count = if model.is_cold { &mut timings.models_cold } else { &mut timings.models_warm };
            count.files += 1;
            count.bytes += model.bytes;
            staged.leases.extend(model.lease);
        }
        timings.models_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        staged.models = Some(timings);
        Ok(())
    }

    fn order(&self, file: &FileRequest) -> Result<Order, Failure> {
        let Target { name, options, path } = self.target(file)?;
        Ok(Order {
            name: options.subfolder.join(&name),
            target: path,
            source: file.source.clone(),
            sha256: file.sha256.clone(),
            overwrite: file.overwrite,
        })
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
        Fetcher { store: &*self.store, web: &self.web, allow }
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

    /// Where one of a job's `files` goes.
    fn target(&self, file: &FileRequest) -> Result<Target, Failure> {
        let source = FileSource { source: file.source.clone(), sha256: None, name: file.name.clone() };
        let invalid = |problem: String| Failure::Invalid(format!("files: {problem}"));
        let name = fetch::name_of(&source)?;
        let subfolder = Subfolder::parse(file.subfolder.as_deref().unwrap_or_default())
            .map_err(|error| invalid(error.to_string()))?;
        let is_ours = subfolder.parts().chain([name.as_str()]).any(models::is_reserved);
        if is_ours && file.folder == FolderType::Models {
            return Err(invalid("models: names that start with .comfy-worker are the worker's own".into()));
        }
        let options = UploadOptions {
            folder: file.folder,
            subfolder,
            overwrite: file.overwrite,
            ephemeral: file.ephemeral,
        };
        let path = options.target(&self.folders, &name).map_err(place_failure)?;
        Ok(Target { name, options, path })
    }

    /// One of a job's `files`; what is to be removed afterwards.
    async fn stage_file(&self, file: &FileRequest, budget: &Budget) -> Result<Option<Owned>, Failure> {
        let Target { name, options, path: target } = self.target(file)?;
        let existing = async || {
            // The same model is not fetched again, and stays: it was not this job that brought it.
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
        self.fetcher(&self.allow).fetch(&file.source, file.sha256.as_deref(), part.clone(), budget).await?;
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

/// Where a file goes.
struct Target {
    name: FileName,
    options: UploadOptions,
    path: PathBuf,
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
