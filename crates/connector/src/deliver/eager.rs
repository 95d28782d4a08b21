//! Uploads that begin when a node is done, while others still run.
//!
//! What the history lists in the end is the truth: an upload counts if it is of that file, which nobody has
//! changed since; every other is made good, or removed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use contract::{ObjectUri, request::OutputRequest};
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

use super::{
    FoundContent, FoundFile, Listed, OwnFolder, PARALLEL_UPLOADS, content_type,
    written::{FileIdentity, WrittenFiles},
};
use crate::{
    comfy::history::outputs_of,
    config::OutputsConfig,
    stage::Folders,
    store::{ObjectStore, StoreError, Stored},
};

/// One execution's early uploads. Dropped, those under way end, and what its nodes wrote beside the job's own
/// folder goes: also that of an execution that is cancelled, and has no history.
#[derive(Debug)]
pub struct EagerUploads {
    shared: Arc<Shared>,
    looks: Vec<AbortOnDropHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    store: Arc<dyn ObjectStore>,
    /// The folder `…/<job id>/<attempt>`.
    base: ObjectUri,
    folders: Folders,
    own: OwnFolder,
    request: OutputRequest,
    limits: OutputsConfig,
    side_by_side: Arc<Semaphore>,
    begun: Mutex<HashMap<String, EagerUpload>>,
    written: WrittenFiles,
}

/// An upload under way, or done.
#[derive(Debug)]
pub(super) struct EagerUpload {
    uri: ObjectUri,
    identity: FileIdentity,
    upload: AbortOnDropHandle<Result<Stored, StoreError>>,
}

impl EagerUploads {
    /// Of an execution whose outputs go under `base`; the rest as in [`find`](super::find) and
    /// [`within`](super::FoundOutputs::within).
    #[must_use]
    pub fn new(
        store: Arc<dyn ObjectStore>,
        base: ObjectUri,
        folders: Folders,
        own: OwnFolder,
        request: OutputRequest,
        limits: OutputsConfig,
    ) -> Self {
        let (side_by_side, begun) = (Arc::new(Semaphore::new(PARALLEL_UPLOADS)), Mutex::default());
        let written = WrittenFiles::default();
        let shared = Shared { store, base, folders, own, request, limits, side_by_side, begun, written };
        Self { shared: Arc::new(shared), looks: Vec::new() }
    }

    /// A node is done: what its entry of the history's `outputs` lists begins to go up.
    pub fn begin(&mut self, node: &str, entry: &Value) {
        let files: Vec<_> =
            outputs_of(node, entry).filter_map(|item| Listed::of_content(item.content)).collect();
        if files.is_empty() {
            return;
        }
        let (shared, runtime) = (Arc::clone(&self.shared), tokio::runtime::Handle::current());
        let job = tracing::Span::current();
        self.looks.push(AbortOnDropHandle::new(tokio::task::spawn_blocking(move || {
            let (_runtime, _job) = (runtime.enter(), job.enter());
            files.into_iter().for_each(|file| shared.begin(&file));
        })));
    }

    /// No more is begun; what is, is what `take` finds.
    pub async fn settle(&mut self) {
        for look in self.looks.drain(..) {
            let _ = look.await;
        }
    }

    /// The upload to that file's place, if there is one, and whether it is of the file as it is now.
    pub(super) fn take(&self, found: &FoundFile) -> Option<(EagerUpload, bool)> {
        let begun = self.shared.begun().remove(&found.place)?;
        let same = match &found.content {
            FoundContent::File(file) => {
                file.metadata().is_ok_and(|metadata| FileIdentity::of(&metadata) == begun.identity)
            }
            FoundContent::Bytes(_) => false,
        };
        Some((begun, same))
    }

    /// Ends and removes what has not been taken. Anyone who may not delete leaves it to the bucket's rules.
    pub async fn discard(&mut self) {
        self.settle().await;
        let rest = std::mem::take(&mut *self.shared.begun());
        for EagerUpload { uri, upload, .. } in rest.into_values() {
            upload.abort();
            let _ = upload.await;
            if let Err(error) = self.shared.store.delete(&uri).await {
                tracing::debug!(%error, "cannot remove an uploaded object that is no output");
            }
        }
    }
}

impl EagerUpload {
    /// What it stored; `None` if it failed. To be waited for even if it is of no use: the object that takes
    /// its place must come after it.
    pub(super) async fn ended(self) -> Option<Stored> {
        match self.upload.await {
            Ok(Ok(stored)) => Some(stored),
            Ok(Err(error)) => {
                tracing::debug!(%error, "an eager upload failed; it is uploaded again at the end");
                None
            }
            Err(_) => None,
        }
    }
}

impl Shared {
    fn begun(&self) -> std::sync::MutexGuard<'_, HashMap<String, EagerUpload>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins one upload, within the limits. What cannot be begun is seen again, and told, in the end.
    fn begin(&self, listed: &Listed) {
        let Ok(file) = listed.open_own(&self.folders, &self.own, &self.written) else { return };
        let Ok(identity) = file.metadata().map(|metadata| FileIdentity::of(&metadata)) else { return };
        if !listed.is_wanted(&self.request) {
            return;
        }
        let place = listed.place(&self.own);
        let Ok(uri) = self.base.join(&format!("outputs/{place}")) else { return };
        let mut begun = self.begun();
        let bytes = begun.values().map(|begun| begun.identity.size()).sum::<u64>() + identity.size();
        let full = begun.len() as u64 >= u64::from(self.limits.max_files) || bytes > self.limits.max_bytes;
        if full || begun.contains_key(&place) {
            return;
        }
        let (content, target) = (FoundContent::File(Arc::new(file)), uri.clone());
        // Not the whole of it: that one holds this upload, and ends it.
        let (store, turns) = (Arc::clone(&self.store), Arc::clone(&self.side_by_side));
        let content_type = content_type(&listed.filename);
        let upload = async move {
            let _turn = turns.acquire().await;
            content.put(&*store, &target, &content_type).await
        };
        let upload = tokio::spawn(upload.in_current_span());
        begun.insert(place, EagerUpload { uri, identity, upload: AbortOnDropHandle::new(upload) });
    }
}
