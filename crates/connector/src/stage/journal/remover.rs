//! The thread that removes what its owners have let go of. A file system may be slow or hang, and gigabytes take
//! seconds: no other thread may wait for that.

use std::{
    collections::{HashMap, hash_map},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::{self, JoinHandle},
};

use tokio::{runtime::Handle, sync::watch};

use super::file::{Entry, Inode, JournalFile};
use crate::{files, stage::Folders};

/// Nothing new is made while so much waits for its removal.
const MAX_DUE: usize = 10_000;

/// Ends with what it has been given; what a process does not live to see removed stays listed.
#[derive(Debug)]
pub(super) struct Remover {
    orders: Option<mpsc::Sender<Entry>>,
    due: watch::Sender<HashMap<PathBuf, usize>>,
    thread: Option<JoinHandle<()>>,
}

impl Remover {
    /// Removes what it is given and strikes it out of `book`; a file only while it holds `placing`.
    pub(super) fn start(
        book: Arc<Mutex<JournalFile>>,
        placing: Arc<Mutex<()>>,
        folders: Folders,
    ) -> io::Result<Self> {
        let (orders, taken) = mpsc::channel::<Entry>();
        let due = watch::Sender::new(HashMap::new());
        let told = due.clone();
        let work = move || {
            for entry in taken {
                crate::phases::reached_by_thread("removing");
                if remove(&entry, &placing, &folders) {
                    book.lock().unwrap_or_else(PoisonError::into_inner).strike(&entry);
                }
                told.send_modify(|due| settle(due, entry.path));
            }
        };
        let thread = thread::Builder::new().name("remover".to_owned()).spawn(work)?;
        Ok(Self { orders: Some(orders), due, thread: Some(thread) })
    }

    /// Has something removed, soon. At the end of the process: as far as it lives.
    pub(super) fn take(&self, entry: Entry) {
        self.due.send_modify(|due| *due.entry(entry.path.clone()).or_default() += 1);
        // Unbounded and yet no longer than what was made: see `room`.
        let sent = self.orders.as_ref().map(|orders| orders.send(entry));
        if let Some(Err(mpsc::SendError(entry))) = sent {
            self.due.send_modify(|due| settle(due, entry.path));
        }
    }

    /// Waits until nothing waits for its removal.
    pub(super) async fn settled(&self) {
        self.wait(HashMap::is_empty).await;
    }

    /// Waits until nothing of that name does.
    pub(super) async fn gone(&self, path: &Path) {
        self.wait(|due| !due.contains_key(path)).await;
    }

    /// Waits until so little does that more may be made.
    pub(super) async fn room(&self) {
        self.wait(|due| due.len() < MAX_DUE).await;
    }

    async fn wait(&self, until: impl FnMut(&HashMap<PathBuf, usize>) -> bool) {
        let _ = self.due.subscribe().wait_for(until).await;
    }
}

impl Drop for Remover {
    fn drop(&mut self) {
        drop(self.orders.take());
        // Nobody else is held up: it has nothing to do, or this thread serves nobody.
        let at_once = self.due.borrow().is_empty() || Handle::try_current().is_err();
        if let Some(thread) = self.thread.take().filter(|_| at_once) {
            let _ = thread.join();
        }
    }
}

fn settle(due: &mut HashMap<PathBuf, usize>, path: PathBuf) {
    if let hash_map::Entry::Occupied(mut times) = due.entry(path) {
        *times.get_mut() -= 1;
        if *times.get() == 0 {
            times.remove();
        }
    }
}

/// Whether nothing of ours is there (any more). Folders that are empty then go as well.
pub(super) fn remove(entry: &Entry, placing: &Mutex<()>, folders: &Folders) -> bool {
    let Entry { path, inode } = entry;
    let is_folder = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    // Another file of ours may take this one's name between the look and the removal; a folder's nobody can take.
    let _placing = (!is_folder).then(|| placing.lock().unwrap_or_else(PoisonError::into_inner));
    let found = match Inode::of(path) {
        Ok(found) => found,
        Err(error) => return error.kind() == io::ErrorKind::NotFound,
    };
    if inode.is_some_and(|inode| inode != found) {
        return true;
    }
    let outcome = if is_folder { files::remove_folder(path) } else { fs::remove_file(path) };
    match outcome {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, path = %path.display(), "an ephemeral file could not be removed");
            false
        }
        _ => {
            path.parent().inspect(|folder| folders.remove_empty(folder));
            true
        }
    }
}
