//! A file that a node lists: whether it is an output, where it lies, and the name that its publisher sees. Whatever uploads,
//! removes or names outputs asks here.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use contract::{
    request::{FolderType, OutputRequest},
    text::one_line,
};

use super::written::{FileIdentity, OwnFolder, WrittenFiles};
use crate::{
    comfy::history::OutputContent,
    stage::{FileName, Folders, NameError, Subfolder, open_beneath},
};

/// Outside data, until it is opened under its folder.
#[derive(Debug)]
pub(crate) struct Listed {
    folder: FolderType,
    subfolder: String,
    pub(crate) filename: String,
}

impl Listed {
    /// A file that the node made; what it lists from `input` is none.
    pub(crate) fn of(filename: String, subfolder: String, folder: &str) -> Option<Self> {
        let folder = match folder {
            "output" => FolderType::Output,
            "temp" => FolderType::Temp,
            _ => return None,
        };
        Some(Self { folder, subfolder, filename })
    }

    pub(super) fn of_content(content: OutputContent) -> Option<Self> {
        let OutputContent::File { filename, subfolder, folder } = content else { return None };
        Self::of(filename, subfolder, &folder)
    }

    /// Whether it is a preview.
    pub(crate) fn is_temp(&self) -> bool {
        self.folder == FolderType::Temp
    }

    pub(super) fn is_wanted(&self, request: &OutputRequest) -> bool {
        !self.is_temp() || request.include_temp
    }

    /// Opens it beneath its folder; where it is.
    pub(crate) fn open(&self, folders: &Folders) -> io::Result<(File, PathBuf)> {
        let relative = self
            .relative()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))?;
        let root = folders.of(self.folder);
        Ok((open_beneath(&root, Path::new(&relative))?, root.join(relative)))
    }

    /// Opens it if it is of the job that `own` is of. What lies beside that folder is noted, to be removed after the job.
    pub(super) fn open_own(
        &self,
        folders: &Folders,
        own: &OwnFolder,
        written: &WrittenFiles,
    ) -> io::Result<File> {
        let (file, path) = self.open(folders)?;
        if own.is_beside(self.folder, &self.subfolder) {
            let metadata = file.metadata()?;
            if !own.is_as_young(&metadata) {
                return Err(io::Error::other("it is older than the job"));
            }
            written.note(path, FileIdentity::of(&metadata), own);
        }
        Ok(file)
    }

    fn relative(&self) -> Result<String, NameError> {
        let name = FileName::parse(&self.filename)?;
        Ok(Subfolder::parse(self.subfolder.trim_matches('/'))?.join(&name))
    }

    /// Folder and name as its publisher sees them, who does not see the job's own folder.
    pub(super) fn place(&self, own: &OwnFolder) -> String {
        let shown = self.subfolder.strip_prefix(&own.name).unwrap_or(&self.subfolder).trim_matches('/');
        if shown.is_empty() { self.filename.clone() } else { format!("{shown}/{}", self.filename) }
    }

    /// Tells it from every other one.
    pub(super) fn key(&self) -> String {
        format!("{:?}/{}/{}", self.folder, self.subfolder, self.filename)
    }

    /// Fit for a message.
    pub(super) fn name(&self) -> String {
        one_line(&format!("{}/{}/{}", self.folder.name(), self.subfolder, self.filename), 200)
    }
}
