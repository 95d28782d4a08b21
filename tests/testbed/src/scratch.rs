//! Where things lie: the checkout, and folders below the build folder for data of this process.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context as _, Result};

use crate::processes;

/// The checkout's root.
#[must_use]
pub fn checkout() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// Cargo's build folder.
///
/// # Errors
/// When this program's own path is unknown.
pub fn build_folder() -> Result<PathBuf> {
    let program = std::env::current_exe().context("cannot tell where this program lies")?;
    // target/<profile>/quickstart or target/<profile>/deps/<test>
    let profile = program
        .ancestors()
        .skip(1)
        .find(|folder| folder.file_name().is_some_and(|name| name != "deps" && name != "examples"));
    profile.and_then(Path::parent).map(Path::to_owned).context("this program does not lie in a build folder")
}

/// The folder `tmp` in Cargo's build folder.
///
/// # Errors
/// Those of [`build_folder`].
pub fn scratch_root() -> Result<PathBuf> {
    Ok(build_folder()?.join("tmp"))
}

/// A new empty folder for this process, `<build folder>/tmp/<kind>-<pid>`. Those of processes that
/// are gone are removed.
///
/// # Errors
/// When it cannot be made.
pub fn folder_of_process(kind: &str) -> Result<PathBuf> {
    let root = scratch_root()?;
    let prefix = format!("{kind}-");
    for entry in fs::read_dir(&root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(&prefix)?.parse::<u32>().ok());
        if owner.is_some_and(|pid| pid == process::id() || !processes::alive(pid)) {
            // Another test process may be removing it too.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let folder = root.join(format!("{prefix}{}", process::id()));
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}
