//! Chromium's profile: a folder of its own for every start, gone with it.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    time::Duration,
};

use tempfile::TempDir;

use crate::files;

/// Short: sockets in it must stay below 108 bytes.
const PREFIX: &str = "comfy-worker-chromium-";
const LOCK: &str = ".owner";
/// A folder without a lock is one that is being made, or one whose removal met a dying process.
const MAKING: Duration = Duration::from_secs(60);

/// A profile folder (mode 0700) that only this process uses; dropping it removes it.
#[derive(Debug)]
pub(super) struct Profile {
    folder: TempDir,
    // Held locked: how a later start tells a folder in use from one whose worker was killed.
    _owner: File,
}

impl Profile {
    /// Makes a folder in the system's folder for temporary files, after removing those that
    /// killed workers of this user left there.
    pub(super) fn create() -> io::Result<Self> {
        let parent = std::env::temp_dir();
        sweep(&parent);
        loop {
            let folder = tempfile::Builder::new()
                .prefix(PREFIX)
                .permissions(fs::Permissions::from_mode(0o700))
                .tempdir_in(&parent)?;
            let owner = File::create(folder.path().join(LOCK))?;
            // Another worker's sweep may have come between these lines: it takes the lock, and
            // removes the file before it lets go.
            match owner.try_lock() {
                Ok(()) if owner.metadata()?.nlink() > 0 => return Ok(Self { folder, _owner: owner }),
                Ok(()) | Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Removes the folder. Processes that are only just dying may still write into it: tries
    /// again for a moment. Blocks.
    pub(super) fn remove(self) {
        let path = self.folder.keep();
        for _ in 0..20 {
            match files::remove_folder(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    std::thread::sleep(Duration::from_millis(25));
                }
                _ => return,
            }
        }
        tracing::warn!(path = %path.display(), "cannot remove Chromium's profile folder");
    }
}

/// Removes profiles whose worker is gone: nobody holds their lock.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    let own_user = rustix::process::geteuid().as_raw();
    for entry in entries.flatten() {
        let path = entry.path();
        // `symlink_metadata`: a link of this name, planted by another user, is not followed.
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX)
            && fs::symlink_metadata(&path).is_ok_and(|data| data.is_dir() && data.uid() == own_user);
        if !ours {
            continue;
        }
        let lock = files::open_regular(File::options().read(true), &path.join(LOCK));
        let left = match &lock {
            Ok(owner) => owner.try_lock().is_ok(),
            Err(_) => fs::metadata(&path)
                .and_then(|data| data.modified())
                .is_ok_and(|changed| changed.elapsed().is_ok_and(|age| age > MAKING)),
        };
        if left {
            tracing::info!(path = %path.display(), "removing the browser profile of a worker that was killed");
            let _ = files::remove_folder(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn only_profiles_without_an_owner_are_swept() {
        let live = Profile::create().unwrap();
        let parent = live.path().parent().unwrap().to_owned();
        let [left, young, torn] = ["left", "young", "torn"].map(|name| {
            let folder = parent.join(format!("{PREFIX}{name}-{}", uuid::Uuid::new_v4()));
            fs::create_dir(&folder).unwrap();
            folder
        });
        File::create(left.join(LOCK)).unwrap();
        File::open(&torn).unwrap().set_modified(SystemTime::now() - MAKING * 2).unwrap();

        sweep(&parent);
        assert!(live.path().is_dir() && young.is_dir());
        assert!(!left.exists() && !torn.exists());
        fs::remove_dir(&young).unwrap();
        assert_eq!(fs::metadata(live.path()).unwrap().mode() & 0o777, 0o700);
        let path = live.path().to_owned();
        live.remove();
        assert!(!path.exists());
    }
}
