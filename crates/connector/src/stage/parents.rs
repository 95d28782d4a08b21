//! Folders that are there for the files of jobs only: they are made for one, and go with the last. Names are a
//! publisher's choice, so that folders which stayed would fill a disk by their number.

use std::{
    fs, io,
    path::{Component, Path},
};

use contract::request::FolderType;

use super::Folders;

/// How often a folder is made again that was removed, empty, before anything could be put into it.
const TRIES: usize = 5;
/// Folders in `models`: each is a kind, and ComfyUI cannot list its models any more once one that it knows is gone
/// (`folder_paths.py` asks for its time of change). So they stay, and a job can add to so many only.
const MAX_KINDS: usize = if cfg!(test) { 4 } else { 256 };

/// Makes something in `folder`, which is made too.
pub(super) fn within<T>(folder: &Path, mut make: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..TRIES {
        fs::create_dir_all(folder)?;
        match make() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            made => return made,
        }
    }
    fs::create_dir_all(folder)?;
    make()
}

impl Folders {
    /// Removes `folder` and those above it, as far as they are empty and no folder of ComfyUI's.
    pub(super) fn remove_empty(&self, mut folder: &Path) {
        while self.may_go(folder) && fs::remove_dir(folder).is_ok() {
            let Some(parent) = folder.parent() else { return };
            folder = parent;
        }
    }

    fn may_go(&self, folder: &Path) -> bool {
        let all = [FolderType::Input, FolderType::Output, FolderType::Temp, FolderType::Models];
        all.into_iter().any(|of| {
            let Ok(rest) = folder.strip_prefix(self.of(of)) else { return false };
            let is_plain = rest.components().all(|part| matches!(part, Component::Normal(_)));
            is_plain && rest.components().count() > usize::from(of == FolderType::Models)
        })
    }

    /// Whether a job may put a model into the folder `kind`.
    pub(super) fn takes_kind(&self, kind: &str) -> bool {
        let models = self.of(FolderType::Models);
        models.join(kind).is_dir() || fs::read_dir(models).map_or(0, Iterator::count) < MAX_KINDS
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn empty_folders_go_but_comfyuis() {
        let root = tempfile::tempdir().unwrap();
        let folders = Folders::new(root.path().to_owned());
        let place = |path: &str| root.path().join(path);
        for (path, left, goes) in [
            ("input/a/b/c", "input", true),
            ("models/loras/a/b", "models/loras", true),
            ("models/loras", "models/loras", false),
            ("output", "output", false),
            ("input/a/../../custom_nodes/x", "custom_nodes/x", false),
            ("user/x", "user/x", false),
        ] {
            fs::create_dir_all(place("input/a")).unwrap();
            fs::create_dir_all(place(path)).unwrap();
            folders.remove_empty(&place(path));
            assert_eq!((place(left).is_dir(), place(path).exists()), (true, !goes), "{path}");
        }
        fs::create_dir_all(place("input/a/b")).unwrap();
        fs::write(place("input/a/somebodys"), "").unwrap();
        folders.remove_empty(&place("input/a/b"));
        assert!(place("input/a").is_dir() && !place("input/a/b").exists());
    }

    #[test]
    fn a_folder_that_goes_meanwhile_is_made_again() {
        let root = tempfile::tempdir().unwrap();
        let (folder, mut first) = (root.path().join("a/b"), true);
        let made = within(&folder, || {
            if std::mem::take(&mut first) {
                fs::remove_dir(&folder)?;
            }
            fs::write(folder.join("x"), "x")
        });
        assert!(made.is_ok() && folder.join("x").is_file());
        let nowhere = within(&folder, || Err::<(), _>(io::ErrorKind::NotFound.into()));
        assert_eq!(nowhere.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn kinds_of_models_are_few() {
        let root = tempfile::tempdir().unwrap();
        let folders = Folders::new(root.path().to_owned());
        assert!(folders.takes_kind("loras"), "a folder of models that is not there yet");
        for kind in 0..MAX_KINDS {
            fs::create_dir_all(root.path().join(format!("models/{kind}"))).unwrap();
        }
        assert!(folders.takes_kind("0") && !folders.takes_kind("loras"));
    }
}
