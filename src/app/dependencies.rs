//! Watches what the worker depends on: the store, and room on the disk.

use std::path::PathBuf;

use contract::request::FolderType;
use rustix::fs::{FallocateFlags, fallocate};
use tokio::task::spawn_blocking;

use crate::job::runner::Runner;

/// Room that is there again when a file of this size can be written.
const ROOM: u64 = 4 << 20;

/// Notices when store or disk are gone, where that shows by itself, and when they are back; never ends.
pub(super) fn watch(runner: &Runner) -> impl Future<Output = ()> + Send + 'static {
    let (store, disk) = (runner.store_monitor.clone(), runner.disk.clone());
    let folder = runner.connector.stager().folders().of(FolderType::Input);
    async move {
        tokio::join!(store.watch(), disk.recover(|| has_room(folder.clone())));
    }
}

/// Whether the folder's file system takes a file.
async fn has_room(folder: PathBuf) -> bool {
    let write = move || -> std::io::Result<()> {
        let file = tempfile::tempfile_in(folder)?;
        match fallocate(&file, FallocateFlags::empty(), 0, ROOM) {
            // Some network file systems know no such call: the next job tells.
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            reserved => Ok(reserved?),
        }
    };
    matches!(spawn_blocking(write).await, Ok(Ok(())))
}
