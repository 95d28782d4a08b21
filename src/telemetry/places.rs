//! Hides where the worker's folders are: in texts that leave it their paths are replaced by names.

use std::{
    path::Path,
    sync::{PoisonError, RwLock},
};

use crate::config::Config;

/// A shorter path is a word that may stand anywhere.
const SHORTEST: usize = 4;

/// Path and name, the longest path first: one may lie in another.
static KNOWN: RwLock<Vec<(String, &str)>> = RwLock::new(Vec::new());

/// Has the folders of this configuration replaced from now on.
pub(super) fn keep_those_of(config: &Config) {
    let temporary = std::env::temp_dir();
    let places = [
        (config.comfyui.path.as_path(), "<comfyui>"),
        (&config.comfyui.workdir, "<comfyui>"),
        (&config.worker.state_dir, "<state>"),
        (&temporary, "<tmp>"),
    ];
    let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
    known.extend(places.into_iter().flat_map(|(path, name)| forms(path).map(move |form| (form, name))));
    known.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
    known.dedup();
}

/// As it is written, and without links.
fn forms(path: &Path) -> impl Iterator<Item = String> {
    let (whole, real) = (std::path::absolute(path).ok(), path.canonicalize().ok());
    let forms = [whole, real].into_iter().flatten().map(|form| form.display().to_string());
    forms.filter(|form| form.len() >= SHORTEST)
}

/// Replaces paths of the worker's folders.
pub(crate) fn name_places(text: &mut String) {
    for (path, name) in KNOWN.read().unwrap_or_else(PoisonError::into_inner).iter() {
        if text.contains(path) {
            *text = text.replace(path, name);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::config::Sources;

    #[test]
    fn the_workers_folders_have_names_in_results() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let flags = [("comfyui.path", path("comfy")), ("worker.state_dir", path("comfy/state"))];
        for place in ["comfy", "comfy/state"] {
            std::fs::create_dir_all(path(place)).unwrap();
        }
        let flags = flags.map(|(key, value)| (key.to_owned(), value)).to_vec();
        keep_those_of(&Config::load(&Sources { flags, ..Sources::default() }).unwrap());
        let mut text = format!("{}: full, as {}", path("comfy/input/x"), path("comfy/state/journal"));
        name_places(&mut text);
        assert_eq!(text, "<comfyui>/input/x: full, as <state>/journal");
    }
}
