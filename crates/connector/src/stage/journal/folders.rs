//! Where the worker makes files that it removes. A journal is a file that nodes can write to: a line of it is no
//! permission to remove anything else.

use std::path::{Path, PathBuf};

use contract::request::FolderType;

use crate::stage::Folders;

/// Folders that hold what journals list, without links.
#[derive(Debug)]
pub(super) struct RemovableFolders {
    folders: Vec<PathBuf>,
    temporary: Option<PathBuf>,
}

impl RemovableFolders {
    /// ComfyUI's folders and the kinds of models, which an operator may have put elsewhere by a link, and what the
    /// worker names in the system's folder of temporary files.
    pub(super) fn of(comfyui: &Folders) -> Self {
        // Not the folder of models itself: what lies there are kinds, each with everybody's models.
        let all = [FolderType::Input, FolderType::Output, FolderType::Temp];
        let kinds = std::fs::read_dir(comfyui.of(FolderType::Models)).into_iter().flatten().flatten();
        let folders = all.map(|folder| comfyui.of(folder)).into_iter().chain(kinds.map(|kind| kind.path()));
        Self {
            folders: folders.filter_map(|folder| folder.canonicalize().ok()).collect(),
            temporary: std::env::temp_dir().canonicalize().ok(),
        }
    }

    pub(super) fn holds(&self, path: &Path) -> bool {
        let Some(folder) = path.parent() else { return false };
        // Nothing is there.
        let Ok(folder) = folder.canonicalize() else { return true };
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_ours = name.strip_prefix("comfy-worker-").is_some_and(|id| uuid::Uuid::try_parse(id).is_ok());
        !name.is_empty() && self.folders.iter().any(|ours| folder.starts_with(ours))
            || is_ours && self.temporary.as_ref() == Some(&folder)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn only_what_a_worker_makes_is_swept() {
        let root = tempfile::tempdir().unwrap();
        let place = |path: &str| root.path().join(path);
        for folder in ["comfy/input/job", "comfy/output", "comfy/models", "drive/loras", "home"] {
            fs::create_dir_all(place(folder)).unwrap();
        }
        symlink(place("drive/loras"), place("comfy/models/loras")).unwrap();
        symlink(place("home"), place("comfy/input/link")).unwrap();
        let territory = RemovableFolders::of(&Folders::new(place("comfy")));
        for path in
            ["comfy/input/job", "comfy/input/job/x", "comfy/models/loras/x", "drive/loras/x", "gone/x"]
        {
            assert!(territory.holds(&place(path)), "{path}");
        }
        for path in [
            "comfy",
            "comfy/input",
            "home",
            "home/x",
            "comfy/input/link/x",
            "comfy/input/../../home",
            "comfy/input/..",
            "comfy/models/loras",
        ] {
            assert!(!territory.holds(&place(path)), "{path}");
        }
        let temporary = std::env::temp_dir();
        assert!(territory.holds(&temporary.join(format!("comfy-worker-{}", uuid::Uuid::new_v4().simple()))));
        assert!(!territory.holds(&temporary.join("comfy-worker-x")) && !territory.holds(Path::new("/")));
    }
}
