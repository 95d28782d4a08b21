//! Models into the page cache, while the GPU still works for another job.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use moka::sync::Cache;
use rustix::fs::{Advice, fadvise};
use sysinfo::{MemoryRefreshKind, System};

use super::names::Subfolder;

/// A model that was read within this time is left alone: looking through the pages of a large one takes a
/// core some time, and ComfyUI mostly still has it.
const LATELY: Duration = Duration::from_secs(600);
const REMEMBERED: u64 = 256;

/// Reads models ahead. Clones know of each other's.
#[derive(Clone, Debug)]
pub(super) struct PageCachePrefetcher {
    models: PathBuf,
    lately: Cache<PathBuf, ()>,
}

impl PageCachePrefetcher {
    /// Under the folder `models`.
    pub(super) fn new(models: PathBuf) -> Self {
        Self { models, lately: Cache::builder().max_capacity(REMEMBERED).time_to_live(LATELY).build() }
    }

    /// Reads the models of those names, as nodes name them: each is looked for in every kind's folder.
    pub(super) fn read_ahead(&self, names: Vec<String>) {
        if names.is_empty() {
            return;
        }
        let warm = self.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = warm.read(&names) {
                tracing::debug!(%error, "cannot read models ahead");
            }
        });
    }

    /// The bytes that are read.
    fn read(&self, names: &[String]) -> std::io::Result<u64> {
        let (room, mut asked) = (room(), 0);
        let names: Vec<_> = names.iter().filter_map(|name| Subfolder::parse(name).ok()).collect();
        for kind in fs::read_dir(&self.models)? {
            let kind = kind?.path();
            for name in &names {
                let path = name.parts().fold(kind.clone(), |path, part| path.join(part));
                let Some((file, size)) = model(&path).filter(|(_, size)| asked + size <= room) else {
                    continue;
                };
                let known = self.lately.entry(path).or_insert(());
                if known.is_fresh() {
                    asked += size;
                    fadvise(&file, 0, None, Advice::WillNeed)?;
                    tracing::debug!(model = %known.key().display(), size, "read ahead");
                }
            }
        }
        Ok(asked)
    }
}

fn model(path: &Path) -> Option<(File, u64)> {
    // Asked first: opening a FIFO would wait.
    let size = path.metadata().ok().filter(fs::Metadata::is_file)?.len();
    Some((File::open(path).ok()?, size))
}

/// Bytes of memory that may be filled: half of what could be, so that nothing that is used has to go.
/// A control group counts its page cache as used, so its limit alone is looked at.
fn room() -> u64 {
    let Ok(mut system) = System::new() else { return 0 };
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    let limit = system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory);
    limit.min(system.available_memory()) / 2
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::io::IoSliceMut;

    use rustix::io::{ReadWriteFlags, preadv2};

    use super::*;

    const MIB: u64 = 1 << 20;
    const SIZE: u64 = 64 * MIB;

    /// Whether a page is there without the disk. Asking has a missing one read, and some behind it:
    /// each question must be for another place.
    fn is_resident(path: &Path, offset: u64) -> bool {
        let file = File::open(path).unwrap();
        match preadv2(&file, &mut [IoSliceMut::new(&mut [0])], offset, ReadWriteFlags::NOWAIT) {
            Ok(read) => read == 1,
            Err(rustix::io::Errno::AGAIN) => false,
            Err(error) => panic!("{error}: this file system cannot tell what is cached"),
        }
    }

    #[test]
    fn a_model_that_a_prompt_names_is_read_ahead_once() {
        // Not /tmp, which may be memory itself.
        let binary = std::env::current_exe().unwrap();
        let folder = tempfile::tempdir_in(binary.parent().unwrap()).unwrap();
        let model = folder.path().join("loras/style/a.safetensors");
        fs::create_dir_all(model.parent().unwrap()).unwrap();
        fs::write(&model, vec![1; SIZE as usize]).unwrap();
        let file = File::open(&model).unwrap();
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        assert!(!is_resident(&model, SIZE - 1));

        let warm = PageCachePrefetcher::new(folder.path().to_owned());
        let names = ["../loras/style/a.safetensors", "b.safetensors", "style/a.safetensors"];
        assert_eq!(warm.read(&names.map(str::to_owned)).unwrap(), SIZE);
        // Every place is asked once: by the last one the disk has had its time.
        let there = (0..SIZE / MIB - 1).rev().any(|place| is_resident(&model, place * MIB));
        assert!(there, "it was not read");
        assert_eq!(warm.read(&names.map(str::to_owned)).unwrap(), 0, "a second time");
    }
}
