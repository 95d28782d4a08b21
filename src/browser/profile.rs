//! Chromium's profile: a folder of its own for every start, gone with it.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    time::Duration,
};

use tempfile::TempDir;

/// Short: sockets in it must stay below 108 bytes.
const PREFIX: &str = "comfy-worker-chromium-";
const LOCK: &str = ".owner";

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
        let folder = tempfile::Builder::new()
            .prefix(PREFIX)
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(parent)?;
        let owner = File::create(folder.path().join(LOCK))?;
        owner.try_lock()?;
        Ok(Self { folder, _owner: owner })
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Removes the folder. Processes that are only just dying may still write into it: tries
    /// again for a moment. Blocks.
    pub(super) fn remove(self) {
        let path = self.folder.keep();
        for _ in 0..20 {
            match fs::remove_dir_all(&path) {
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
        // A folder without the file may be one that is being made just now.
        let Ok(owner) = File::open(path.join(LOCK)) else { continue };
        let settled = owner
            .metadata()
            .and_then(|data| data.modified())
            .is_ok_and(|made| made.elapsed().is_ok_and(|age| age > Duration::from_secs(5)));
        if settled && owner.try_lock().is_ok() {
            tracing::info!(path = %path.display(), "removing the browser profile of a worker that was killed");
            let _ = fs::remove_dir_all(&path);
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
        let past = SystemTime::now() - Duration::from_secs(60);
        live._owner.set_modified(past).unwrap();
        let parent = live.path().parent().unwrap().to_owned();
        let left = parent.join(format!("{PREFIX}left-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&left).unwrap();
        File::create(left.join(LOCK)).unwrap().set_modified(past).unwrap();
        let young = parent.join(format!("{PREFIX}young-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&young).unwrap();

        sweep(&parent);
        assert!(live.path().is_dir() && young.is_dir());
        assert!(!left.exists());
        fs::remove_dir(&young).unwrap();
        assert_eq!(fs::metadata(live.path()).unwrap().mode() & 0o777, 0o700);
        let path = live.path().to_owned();
        live.remove();
        assert!(!path.exists());
    }
}
