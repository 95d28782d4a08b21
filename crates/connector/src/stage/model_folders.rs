//! The folders in which ComfyUI looks for models, an operator's own among them (`extra_model_paths.yaml`). It takes the first
//! file of a name that it finds, so that a job's model could replace an operator's for all jobs.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use contract::{failure::Failure, request::FolderType};
use tokio::sync::watch;

use super::{Folders, fetch};

/// The folders of each kind of models, in the order in which they are searched.
type Kinds = HashMap<String, Vec<PathBuf>>;

/// What ComfyUI has said of them, once it has. Clones hear of it, too.
#[derive(Clone, Debug, Default)]
pub(crate) struct ModelFolders(watch::Sender<Option<Arc<Kinds>>>);

impl ModelFolders {
    /// What ComfyUI says.
    pub(crate) fn set(&self, kinds: Kinds) {
        let canonical = |folder: PathBuf| folder.canonicalize().unwrap_or(folder);
        let kinds =
            kinds.into_iter().map(|(kind, folders)| (kind, folders.into_iter().map(canonical).collect()));
        self.0.send_replace(Some(Arc::new(kinds.collect())));
    }

    /// Waits until ComfyUI has said it.
    pub(super) async fn known(&self) {
        let _ = self.0.subscribe().wait_for(Option::is_some).await;
    }

    /// Whether ComfyUI has a model of that name elsewhere, which a job's model must not stand in for: its size, where it is
    /// the one that is wanted, by its checksum or else by its name.
    pub(super) async fn has(
        &self,
        target: &Path,
        comfyui: &Folders,
        sha256: Option<&str>,
        by_name: bool,
    ) -> Result<Option<u64>, Failure> {
        let Some(other) = self.elsewhere(target, comfyui) else { return Ok(None) };
        let is_wanted = if sha256.is_some() { fetch::matches(&other, sha256).await } else { by_name };
        if is_wanted {
            return Ok(Some(other.metadata().map_or(0, |other| other.len())));
        }
        let name = target.strip_prefix(comfyui.base()).unwrap_or(target).display();
        Err(Failure::Invalid(format!(
            "files: {name} would stand in for another model of that name, which ComfyUI finds in another folder, and \
             inputs.replace_foreign is false"
        )))
    }

    /// The file that ComfyUI finds under the same name as `target` in another folder, as far as it is known. What lies in
    /// `output` is no operator's: nodes and jobs put it there.
    fn elsewhere(&self, target: &Path, comfyui: &Folders) -> Option<PathBuf> {
        let kinds = self.0.borrow().clone()?;
        let (target, output) = (resolved(target), resolved(&comfyui.of(FolderType::Output)));
        kinds.values().find_map(|folders| {
            let name = folders.iter().find_map(|folder| target.strip_prefix(folder).ok())?;
            let others = folders.iter().filter(|folder| !folder.starts_with(&output));
            others.map(|folder| folder.join(name)).find(|other| *other != target && other.is_file())
        })
    }
}

/// Without links, as far as there is something.
fn resolved(path: &Path) -> PathBuf {
    let there = path.ancestors().find_map(|there| Some((there, there.canonicalize().ok()?)));
    let Some((there, canonical)) = there else { return path.to_owned() };
    path.strip_prefix(there).map_or(path.to_owned(), |rest| canonical.join(rest))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn an_operators_model_is_found_where_comfyui_finds_it() {
        let root = tempfile::tempdir().unwrap();
        let place = |path: &str| root.path().join(path);
        for folder in
            ["comfy/models/unet", "comfy/models/diffusion_models", "comfy/output/loras", "drive/loras/sub"]
        {
            fs::create_dir_all(place(folder)).unwrap();
        }
        symlink(place("drive"), place("link")).unwrap();
        for file in ["comfy/models/unet/u", "drive/loras/sub/x", "comfy/output/loras/made"] {
            fs::write(place(file), "theirs").unwrap();
        }
        let (comfyui, folders) = (Folders::new(place("comfy")), ModelFolders::default());
        let of = |path: &str| folders.elsewhere(&place("comfy").join(path), &comfyui);
        assert_eq!(of("models/loras/sub/x"), None, "nothing is known yet");
        let kinds = [
            ("loras", vec!["comfy/models/loras", "comfy/output/loras", "link/loras"]),
            ("diffusion_models", vec!["comfy/models/unet", "comfy/models/diffusion_models"]),
        ];
        folders.set(kinds.map(|(kind, of)| (kind.to_owned(), of.into_iter().map(place).collect())).into());
        for (path, found) in [
            ("models/loras/sub/x", Some("drive/loras/sub/x")),
            ("output/loras/sub/x", Some("drive/loras/sub/x")),
            ("models/loras/x", None),
            ("models/loras/made", None),
            ("models/diffusion_models/u", Some("comfy/models/unet/u")),
            ("models/unet/u", None),
            ("models/vae/u", None),
        ] {
            let found = found.map(|found| place(found).canonicalize().unwrap());
            assert_eq!(of(path), found, "{path}");
        }
    }
}
