//! `upload_data`: a local file into one of ComfyUI's folders.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use contract::request::FolderType;
use uuid::Uuid;

use super::{
    Folders,
    journal::{EphemeralPath, Journal, rename_new},
    names::{FileName, NameError, Subfolder},
    parents,
};

/// Where a file goes and how long it stays. By default: into `input`, for good, and not over a file
/// that is there.
///
/// ```
/// use comfy_connector::{FolderType, Subfolder, UploadOptions};
///
/// # fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let lora = UploadOptions {
///     folder: FolderType::Models,
///     subfolder: Subfolder::parse("loras/style")?,
///     ..UploadOptions::default()
/// };
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadOptions {
    /// Which of ComfyUI's folders.
    pub folder: FolderType,
    /// Folder within it; models need one (`checkpoints`, `loras` …).
    pub subfolder: Subfolder,
    /// Replace a file that is there.
    pub overwrite: bool,
    /// Remove it at the end. What was there before and is not ephemeral is never removed, also when
    /// replaced.
    pub ephemeral: bool,
}

impl Default for UploadOptions {
    fn default() -> Self {
        Self {
            folder: FolderType::Input,
            subfolder: Subfolder::default(),
            overwrite: false,
            ephemeral: false,
        }
    }
}

impl UploadOptions {
    /// Where a file of that name goes. A folder on the way that is a link may be a node's work and lead
    /// anywhere; ComfyUI's folders themselves and the kinds of models are links by the operator's choice.
    pub(super) fn target(&self, folders: &Folders, name: &FileName) -> Result<PathBuf, PlaceError> {
        let mut path = folders.of(self.folder);
        for (depth, part) in self.subfolder.parts().enumerate() {
            path.push(part);
            let operators = self.folder == FolderType::Models && depth == 0;
            if !operators && path.is_symlink() {
                return Err(PlaceError::Link(path));
            }
        }
        Ok(path.join(name.as_str()))
    }
}

/// Why a file was not placed.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// There is no such source.
    #[error("{0}: no such file")]
    SourceMissing(PathBuf),
    /// The destination is there and `overwrite` is false.
    #[error("{0} exists; say overwrite to replace it")]
    Exists(PathBuf),
    /// A folder on the way is a link.
    #[error("{0} is a link, and nothing is placed behind it")]
    Link(PathBuf),
    /// Models need a subfolder.
    #[error("models need a subfolder, such as checkpoints or loras")]
    ModelSubfolderMissing,
    /// A name that must not be used.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The connector was shut down meanwhile. What was ephemeral is removed.
    #[error("the connector is shut down")]
    ShutDown,
    /// The disk, or the user's share of it, is full. Nothing half-written is left.
    #[error("{0}: no room left on the disk")]
    DiskFull(PathBuf),
    /// The operating system refused, for another reason. Nothing half-written is left.
    #[error("{path}: {source}")]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl PlaceError {
    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull(path),
            _ => Self::Io { path, source },
        }
    }
}

pub(super) async fn upload(
    folders: &Folders,
    journal: &Arc<Journal>,
    source: &Path,
    options: &UploadOptions,
) -> Result<(PathBuf, Option<EphemeralPath>), PlaceError> {
    if options.folder == FolderType::Models && options.subfolder.is_empty() {
        return Err(PlaceError::ModelSubfolderMissing);
    }
    if !source.is_file() {
        return Err(PlaceError::SourceMissing(source.to_owned()));
    }
    let name = FileName::parse(&source.file_name().unwrap_or_default().to_string_lossy())?;
    let target = options.target(folders, &name)?;
    journal.gone(&target).await;
    if !options.overwrite && target.symlink_metadata().is_ok() {
        return Err(PlaceError::Exists(target));
    }
    let (writing, source, options) = (Arc::clone(journal), source.to_owned(), options.clone());
    let uploading = tokio::task::spawn_blocking(move || {
        let journal = writing;
        let parent = target.parent().unwrap_or(&target).to_owned();
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| PlaceError::io(&path, source)
        };
        let part = journal.own_now(parent.join(format!(".{}.part", Uuid::new_v4().simple())));
        let part = part.map_err(failed(&parent))?;
        // Before the copy reads it, which counts as an access.
        let times = times(&source).map_err(failed(&source))?;
        // In the kernel, by reflink where the file system can; the mode comes along.
        parents::within(&parent, || fs::copy(&source, part.path())).map_err(failed(part.path()))?;
        // Not for writing: a read-only source has left a read-only copy.
        let kept = fs::File::open(part.path()).and_then(|file| file.set_times(times));
        kept.map_err(failed(part.path()))?;
        let owned = settle_now(&journal, part.path(), &target, &options)?;
        Ok((target, owned))
    });
    let uploaded = uploading.await.map_err(stopped)?;
    if uploaded.is_err() {
        // Who is told so may try again, and finds the room that the half-written file took.
        journal.settled().await;
    }
    uploaded
}

fn stopped(error: tokio::task::JoinError) -> PlaceError {
    PlaceError::Io { path: PathBuf::new(), source: io::Error::other(error) }
}

/// When the file was last read and changed.
fn times(file: &Path) -> io::Result<fs::FileTimes> {
    let metadata = fs::metadata(file)?;
    Ok(fs::FileTimes::new().set_accessed(metadata.accessed()?).set_modified(metadata.modified()?))
}

/// Gives a whole file its final name; what is to be removed later.
pub(super) async fn settle(
    journal: &Arc<Journal>,
    part: PathBuf,
    target: PathBuf,
    options: UploadOptions,
) -> Result<Option<EphemeralPath>, PlaceError> {
    // What an earlier job has let go of is no file that is there.
    journal.gone(&target).await;
    let journal = Arc::clone(journal);
    let settling = tokio::task::spawn_blocking(move || settle_now(&journal, &part, &target, &options));
    settling.await.map_err(stopped)?
}

fn settle_now(
    journal: &Arc<Journal>,
    part: &Path,
    target: &Path,
    options: &UploadOptions,
) -> Result<Option<EphemeralPath>, PlaceError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => PlaceError::Exists(target.to_owned()),
        _ => PlaceError::io(target, source),
    };
    let _placing = journal.placing();
    let replaces = options.overwrite && target.symlink_metadata().is_ok();
    if options.ephemeral && (!replaces || journal.owns(target)) {
        let scratch = journal.own_now(part.to_owned()).map_err(failed)?;
        let adopted =
            if replaces { journal.replace(scratch, target) } else { journal.adopt(scratch, target) };
        return adopted.map(Some).map_err(failed);
    }
    if replaces {
        fs::rename(part, target).map_err(failed)?;
        return Ok(None);
    }
    rename_new(part, target).map_err(failed)?;
    Ok(None)
}

#[cfg(test)]
#[path = "place_tests.rs"]
mod tests;
