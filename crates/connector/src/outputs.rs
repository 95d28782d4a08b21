//! What a prompt made, as files on this machine.

use std::path::PathBuf;

use crate::{
    ComfyConnector,
    comfy::history::{History, OutputContent, OutputItem},
    deliver::Listed,
    stage::Folders,
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
        let listed = Listed::of(filename, subfolder, &folder)?;
        let (_, path) = listed.open(folders).ok()?;
        Some(LocalOutput { node, key, path, temp: listed.is_temp() })
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
