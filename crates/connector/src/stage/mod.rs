//! Files into ComfyUI's folders: fetched to a `.part` file, checked, renamed; ephemeral ones
//! journalled before they exist and removed after their job.
//!
//! Invariants: a file that was there before is never deleted, and only replaced when the caller
//! says so; every name from a job is one checked component under its root.

mod fetch;
mod files;
mod journal;
mod model_folders;
mod models;
mod names;
mod parents;
mod place;
mod prefetch;
mod web;

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use uuid::Uuid;

use contract::{
    JobId, ObjectUri, bounds,
    failure::Failure,
    request::{FileSource, FolderType, InputValue, JobRequest, NodeInput},
    result::ModelTimings,
};
pub use fetch::show;
pub use journal::{EphemeralPath, Journal};
pub use models::Lease;
pub use names::{FileName, NameError, Subfolder, open_beneath};
pub use place::{PlaceError, UploadOptions};

use crate::store::ObjectStore;
use fetch::{Budget, Fetcher};
use model_folders::ModelFolders;
use models::Models;
use prefetch::PageCachePrefetcher;
use web::Web;

/// Files fetched side by side.
const PARALLEL_FETCHES: usize = 8;

/// ComfyUI's folders on this machine.
#[derive(Clone, Debug)]
pub struct Folders {
    base: PathBuf,
}

impl Folders {
    /// Under ComfyUI's base folder (`comfyui.path`).
    #[must_use]
    pub fn new(base: PathBuf) -> Self {
        Self { base }
    }

    fn base(&self) -> &Path {
        &self.base
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
    results: Option<ObjectUri>,
    prefetcher: PageCachePrefetcher,
    web: Web,
    /// What jobs leave in each of ComfyUI's folders.
    input: Models,
    output: Models,
    temp: Models,
    models: Models,
    model_folders: ModelFolders,
    replace_foreign: bool,
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
    pub owned: Vec<EphemeralPath>,
    /// Models that stay where they are until the job is over.
    pub leases: Vec<Lease>,
    /// What its models took, where it has any.
    pub models: Option<ModelTimings>,
}

impl Stager {
    /// A stager that reads from `store`, under the prefixes `allow` only, `max_bytes` a job.
    #[must_use]
    pub fn new(
        folders: Folders,
        journal: Arc<Journal>,
        store: Arc<dyn ObjectStore>,
        allow: Vec<String>,
        max_bytes: u64,
    ) -> Self {
        let prefetcher = PageCachePrefetcher::new(folders.of(FolderType::Models));
        let cache = |folder| Models::new(&folders, folder, None);
        Self {
            input: cache(FolderType::Input),
            output: cache(FolderType::Output),
            temp: cache(FolderType::Temp),
            models: cache(FolderType::Models),
            folders,
            journal,
            store,
            allow: allow.into(),
            max_bytes,
            results: None,
            prefetcher,
            web: Web::default(),
            model_folders: ModelFolders::default(),
            replace_foreign: false,
        }
    }

    /// Lets `files` with `overwrite` replace what no job has brought, such as an operator's models.
    #[must_use]
    pub fn replacing_foreign(self, replace_foreign: bool) -> Self {
        Self { replace_foreign, ..self }
    }

    /// Keeps at most so many bytes of the other files that jobs leave, in each folder.
    #[must_use]
    pub fn with_file_cache(self, limit: u64) -> Self {
        let cache = |folder| Models::new(&self.folders, folder, Some(limit));
        let (input, output, temp) =
            (cache(FolderType::Input), cache(FolderType::Output), cache(FolderType::Temp));
        Self { input, output, temp, ..self }
    }

    /// To be told where ComfyUI looks for models.
    pub(crate) fn model_folders(&self) -> &ModelFolders {
        &self.model_folders
    }

    fn cache(&self, folder: FolderType) -> &Models {
        match folder {
            FolderType::Input => &self.input,
            FolderType::Output => &self.output,
            FolderType::Temp => &self.temp,
            FolderType::Models => &self.models,
        }
    }

    /// Keeps at most so many bytes of the models that jobs bring; `None`: all of them.
    #[must_use]
    pub fn with_model_cache(self, limit: Option<u64>) -> Self {
        let models = Models::new(&self.folders, FolderType::Models, limit);
        Self { models, ..self }
    }

    /// Closes `base`, where results are, to all jobs, unless it is opened by name; but for
    /// `<base>/<job id>/inputs/` to the job of that id: there `submit` puts its local files.
    #[must_use]
    pub fn with_results(self, base: Option<ObjectUri>) -> Self {
        Self { results: base, ..self }
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
    pub fn prefetch_models<'a>(&self, names: impl Iterator<Item = &'a str>) {
        self.prefetcher.read_ahead(names.map(str::to_owned).collect());
    }

    /// Fetches every input of a job into a folder of its own under `input`, and its `files` to
    /// where they belong. On a full disk once more, if cached models there can make room.
    ///
    /// # Errors
    /// Whose fault it is says the [`Failure`]. What was staged until then is removed, but for models.
    pub async fn stage_inputs(&self, job: &JobRequest) -> Result<Staged, Failure> {
        let staged = Box::pin(self.stage_once(job)).await;
        if !matches!(staged, Err(Failure::DiskFull(_))) {
            return staged;
        }
        // What it had staged, and what jobs before it left, takes no room any more then.
        self.journal.settled().await;
        let input = self.folders.of(FolderType::Input);
        let mut freed = 0;
        for cache in [&self.input, &self.output, &self.temp, &self.models] {
            freed += cache.free(&input, self.max_bytes).await;
        }
        if freed == 0 {
            return staged;
        }
        Box::pin(self.stage_once(job)).await
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
        // Which web addresses are files is known only here.
        bounds::check_files(wanted.len() + job.files.len()).map_err(Failure::Invalid)?;
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
        self.stage_files(job, &budget, &mut staged).await?;
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
        let place = format!("{folder_name}/{}/in", Uuid::new_v4().simple());
        let inputs = self.folders.of(FolderType::Input).join(&place);
        tokio::fs::create_dir_all(&inputs).await.map_err(|error| Failure::local(inputs.display(), &error))?;
        let mut names = names::UniqueNames::default();
        let plan = wanted.into_iter().map(|source| {
            let name = names.take(&fetch::name_of(&source)?);
            Ok((source, name))
        });
        let plan = plan.collect::<Result<Vec<_>, Failure>>()?;
        let mut allow = self.allow.to_vec();
        let submitted = self.results.as_ref().and_then(|base| base.join(&format!("{}/inputs", job.id)).ok());
        allow.extend(submitted.map(|folder| format!("{folder}/")));
        let fetcher = self.fetcher(&job.id, &allow);
        let fetches = plan.iter().map(|(source, name)| {
            let target = inputs.join(name);
            fetcher.fetch(source.source.as_str(), source.sha256.as_deref(), target, budget)
        });
        // Collected: a stream that makes futures of references could not move between threads.
        let fetches: Vec<_> = fetches.collect();
        stream::iter(fetches).buffer_unordered(PARALLEL_FETCHES).try_collect::<Vec<()>>().await?;
        staged.files += plan.len();
        staged.owned.push(folder);
        Ok(plan.into_iter().map(|(source, name)| (source, format!("{place}/{name}"))).collect())
    }

    /// Reads a small object that a job names, such as its workflow, from where inputs may come from.
    ///
    /// # Errors
    /// Whose fault it is says the [`Failure`].
    pub async fn read(&self, job: &JobId, uri: &str, limit: u64) -> Result<bytes::Bytes, Failure> {
        self.fetcher(job, &self.allow).read(uri, limit).await
    }

    fn fetcher<'a>(&'a self, job: &'a JobId, allow: &'a [String]) -> Fetcher<'a> {
        let results = self.results.as_ref().map(|base| (base, job));
        Fetcher { store: &*self.store, web: &self.web, allow, results }
    }

    /// `input/<job id>-<at random>`: jobs in ComfyUI side by side must not find one another's files. ComfyUI lists such
    /// folders to everybody, and has nodes that read a folder and those in it: files lie two levels deeper, behind
    /// another random name, which stays secret.
    async fn job_folder(&self, job_id: &str) -> Result<EphemeralPath, Failure> {
        let input = self.folders.of(FolderType::Input);
        let name = format!("{job_id}-{}", Uuid::new_v4().simple());
        self.journal
            .create_folder(&input, &name)
            .await
            .map_err(|error| Failure::local(input.join(name).display(), &error))
    }

    /// Copies a local file into one of ComfyUI's folders, as [`UploadOptions`] say.
    ///
    /// # Errors
    /// See [`PlaceError`].
    pub async fn upload(
        &self,
        source: &Path,
        options: &UploadOptions,
    ) -> Result<(PathBuf, Option<EphemeralPath>), PlaceError> {
        place::upload(&self.folders, &self.journal, source, options).await
    }
}

#[cfg(test)]
#[path = "stage_tests.rs"]
mod tests;
