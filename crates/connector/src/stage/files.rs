//! A job's `files`: each into the folder that it names, models by way of their cache.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use contract::{
    JobId,
    failure::Failure,
    request::{FileRequest, FileSource, FolderType, JobRequest},
    result::ModelTimings,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use uuid::Uuid;

use super::{
    PARALLEL_FETCHES, PlaceError, Staged, Stager, UploadOptions,
    fetch::{self, Budget},
    journal::EphemeralPath,
    model_folders::ModelFolders,
    models::{self, ModelRequest, Placed},
    names::{FileName, Subfolder},
    place,
};

impl Stager {
    /// Brings a job's `files` to where they belong.
    pub(super) async fn stage_files(
        &self,
        job: &JobRequest,
        budget: &Budget,
        staged: &mut Staged,
    ) -> Result<(), Failure> {
        let files = &job.files;
        let (passing, lasting): (Vec<_>, Vec<_>) = files.iter().partition(|file| file.ephemeral);
        let (models, others): (Vec<_>, Vec<_>) =
            lasting.into_iter().partition(|file| file.folder == FolderType::Models);
        // Collected: a stream that makes futures of references could not move between threads.
        let staging: Vec<_> =
            passing.into_iter().map(|file| self.stage_file(&job.id, file, budget)).collect();
        let placed = stream::iter(staging).buffer_unordered(PARALLEL_FETCHES).try_collect::<Vec<_>>().await?;
        staged.owned.extend(placed.into_iter().flatten());
        for model in self.place_all(&job.id, &others, budget).await? {
            staged.leases.extend(model.lease);
        }
        self.stage_models(&job.id, &models, budget, staged).await?;
        staged.files += files.len();
        Ok(())
    }

    async fn stage_models(
        &self,
        job: &JobId,
        models: &[&FileRequest],
        budget: &Budget,
        staged: &mut Staged,
    ) -> Result<(), Failure> {
        if models.is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        let placed = self.place_all(job, models, budget).await?;
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

    /// Has files in their places that stay there when the job is over.
    async fn place_all(
        &self,
        job: &JobId,
        files: &[&FileRequest],
        budget: &Budget,
    ) -> Result<Vec<Placed>, Failure> {
        let orders = files.iter().map(|file| Ok((self.cache(file.folder), self.order(file)?)));
        let orders = orders.collect::<Result<Vec<_>, Failure>>()?;
        let fetcher = self.fetcher(job, &self.allow);
        let placing: Vec<_> =
            orders.iter().map(|(cache, order)| cache.place(order, fetcher, budget)).collect();
        stream::iter(placing).buffer_unordered(PARALLEL_FETCHES).try_collect().await
    }

    fn order(&self, file: &FileRequest) -> Result<ModelRequest, Failure> {
        let Target { name, options, path } = self.target(file)?;
        Ok(ModelRequest {
            name: options.subfolder.join(&name),
            target: path,
            source: file.source.clone(),
            sha256: file.sha256.clone(),
            overwrite: file.overwrite,
            replace_foreign: self.replace_foreign,
            // Checkpoints are known by their names.
            by_name: file.folder == FolderType::Models,
            searched: self.searched(file.folder),
        })
    }

    /// Where else ComfyUI looks for what a job puts into `folder`, and finds what is not the job's to replace.
    fn searched(&self, folder: FolderType) -> Option<ModelFolders> {
        // ComfyUI looks for models in `output`, too.
        let can_have_models = matches!(folder, FolderType::Models | FolderType::Output);
        (can_have_models && !self.replace_foreign).then(|| self.model_folders.clone())
    }

    /// Where one of a job's `files` goes.
    fn target(&self, file: &FileRequest) -> Result<Target, Failure> {
        let source = FileSource { source: file.source.clone(), sha256: None, name: file.name.clone() };
        let invalid = |problem: String| Failure::Invalid(format!("files: {problem}"));
        let name = fetch::name_of(&source)?;
        let subfolder = Subfolder::parse(file.subfolder.as_deref().unwrap_or_default())
            .map_err(|error| invalid(error.to_string()))?;
        let is_ours = subfolder.parts().chain([name.as_str()]).any(models::is_reserved);
        if is_ours {
            return Err(invalid("names that start with .comfy-worker are the worker's own".into()));
        }
        let options = UploadOptions {
            folder: file.folder,
            subfolder,
            overwrite: file.overwrite,
            ephemeral: file.ephemeral,
        };
        let path = options.target(&self.folders, &name).map_err(place_failure)?;
        if file.folder == FolderType::Models
            && let Some(kind) = options.subfolder.parts().next()
            && !self.folders.takes_kind(kind)
        {
            return Err(invalid(format!(
                "models/{kind} is not there, and models has too many folders for another"
            )));
        }
        Ok(Target { name, options, path })
    }

    /// One of a job's `files`; what is to be removed afterwards.
    async fn stage_file(
        &self,
        job: &JobId,
        file: &FileRequest,
        budget: &Budget,
    ) -> Result<Option<EphemeralPath>, Failure> {
        let Target { name, options, path: target } = self.target(file)?;
        let existing = async || {
            // The same model is not fetched again, and stays: it was not this job that brought it.
            if file.folder == FolderType::Models
                && (file.sha256.is_some() || !file.overwrite)
                && fetch::matches(&target, file.sha256.as_deref()).await
            {
                return Ok(None);
            }
            Err(models::in_the_way(file.folder.name(), &options.subfolder.join(&name), file.overwrite))
        };
        self.journal.gone(&target).await;
        if target.symlink_metadata().is_ok() {
            let replaceable = file.overwrite
                && (self.replace_foreign
                    || self.journal.owns(&target)
                    || self.cache(file.folder).has_placed(&options.subfolder.join(&name), &target).await);
            if !replaceable {
                return existing().await;
            }
        }
        let (searched, sum) = (self.searched(file.folder), file.sha256.as_deref());
        let by_name = file.folder == FolderType::Models && !file.overwrite;
        let elsewhere = async || match &searched {
            Some(searched) => {
                searched.has(&target, &self.folders, sum, by_name).await.map(|found| found.is_some())
            }
            None => Ok(false),
        };
        if elsewhere().await? {
            return Ok(None);
        }
        let scratch = self.scratch_beside(&target).await?;
        let part = scratch.path().join(name.as_str());
        let fetcher = self.fetcher(job, &self.allow);
        fetcher.fetch(&file.source, file.sha256.as_deref(), part.clone(), budget).await?;
        // It comes while ComfyUI still starts.
        if let Some(searched) = &searched {
            searched.known().await;
        }
        if elsewhere().await? {
            return Ok(None);
        }
        match place::settle(&self.journal, part, target.clone(), options.clone()).await {
            // Another job, or another of this job's files, was faster.
            Err(PlaceError::Exists(_)) => existing().await,
            settled => settled.map_err(place_failure),
        }
    }

    /// A folder of our own on the target's file system, for the file until it is whole.
    async fn scratch_beside(&self, target: &Path) -> Result<EphemeralPath, Failure> {
        let parent = target.parent().unwrap_or(target);
        let name = format!(".comfy-worker-{}", Uuid::new_v4().simple());
        self.journal
            .create_folder(parent, &name)
            .await
            .map_err(|source| place_failure(PlaceError::io(parent, source)))
    }
}

/// Where a file goes.
struct Target {
    name: FileName,
    options: UploadOptions,
    path: PathBuf,
}

/// A name that the folder cannot take is the job's fault, a disk that is full is not.
pub(super) fn place_failure(error: PlaceError) -> Failure {
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
