//! What a prompt made, as files on this machine.

use std::path::{Path, PathBuf};

use contract::request::FolderType;

use crate::{
    ComfyConnector,
    comfy::history::{History, OutputContent, OutputItem},
    deliver::relative,
    stage::{Folders, open_beneath},
};

/// A file that a prompt made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LocalOutput {
    /// The node that lists it.
    pub node: String,
    /// Under which key: `images`, `gifs`, or what a custom node calls it.
    pub key: String,
    /// Where it is.
    pub path: PathBuf,
    /// Whether it is a preview, which ComfyUI removes when it starts again.
    pub temp: bool,
}

fn local_outputs(folders: &Folders, history: &History) -> Vec<LocalOutput> {
    let found = history.outputs().into_iter().filter_map(|OutputItem { node, key, content, .. }| {
        let OutputContent::File { filename, subfolder, folder } = content else { return None };
        let folder = match folder.as_str() {
            "output" => FolderType::Output,
            "temp" => FolderType::Temp,
            _ => return None,
        };
        let (root, relative) = (folders.of(folder), relative(&subfolder, &filename).ok()?);
        open_beneath(&root, Path::new(&relative)).ok()?;
        Some(LocalOutput { node, key, path: root.join(relative), temp: folder == FolderType::Temp })
    });
    found.collect()
}

impl ComfyConnector {
    /// The files that a prompt made, as far as they are there: in ComfyUI's `output` and `temp`, never elsewhere.
    #[must_use]
    pub fn output_files(&self, history: &History) -> Vec<LocalOutput> {
        local_outputs(self.0.stager.folders(), history)
    }
}
