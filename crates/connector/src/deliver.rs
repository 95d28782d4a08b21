//! Finds the output files that the history lists, opens them under their folders and uploads them; those of a node that is
//! done go up while others still run.

mod eager;
mod listed;
mod written;

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io,
    os::fd::AsRawFd,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use contract::{
    ObjectUri, bounds,
    failure::Failure,
    request::OutputRequest,
    result::{Kind, Output, OutputFile},
};
use futures_util::{StreamExt, TryStreamExt, stream};

use crate::{
    comfy::{
        history::{History, OutputContent, OutputItem},
        tracker::OutputImage,
    },
    config::OutputsConfig,
    stage::Folders,
    store::{Content, ObjectStore, StoreError, Stored},
};
use eager::EagerUpload;
use written::WrittenFiles;

pub use eager::EagerUploads;
pub(crate) use listed::Listed;
pub use written::{OwnFolder, settled};

/// Files uploaded side by side.
const PARALLEL_UPLOADS: usize = 4;

/// What one execution left, ready to be uploaded. Dropped, uploaded or not, it is removed.
#[derive(Debug, Default)]
pub struct FoundOutputs {
    files: Vec<FoundFile>,
    /// Files beyond what a job may have: counted, and not kept open.
    beyond: usize,
    texts: Vec<Output>,
    // Last: the files are closed before they are removed, or it is their closing that takes time.
    written: WrittenFiles,
}

#[derive(Debug)]
struct FoundFile {
    node: String,
    key: String,
    index: usize,
    temp: bool,
    /// Folder and name under `outputs/`.
    place: String,
    filename: String,
    content: FoundContent,
    /// Once it is stored.
    output: OnceLock<Output>,
}

#[derive(Clone, Debug)]
enum FoundContent {
    File(Arc<File>),
    Bytes(Bytes),
}

/// A listed file that is not there, or must not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingOutputs {
    /// The nodes that listed such files.
    pub nodes: BTreeSet<String>,
    /// What is missing and why.
    pub message: String,
}

/// Opens every file that the history lists. `own` is the job's own folder, which its publisher does not see.
///
/// Of more than `most` the rest is counted and not opened: descriptors are few.
///
/// # Errors
/// [`MissingOutputs`] with all of them: an answer from the execution cache lists files that are gone.
pub fn find(
    folders: &Folders,
    own: &OwnFolder,
    request: &OutputRequest,
    history: &History,
    images: Vec<OutputImage>,
    most: u32,
) -> Result<FoundOutputs, MissingOutputs> {
    let mut findings = FoundOutputs::default();
    let mut missing = MissingOutputs { nodes: BTreeSet::new(), message: String::new() };
    let mut places = ObjectNames::default();
    for item in history.outputs() {
        let OutputItem { node, key, index, content } = item;
        match content {
            OutputContent::Text(text) => {
                findings.texts.push(Output {
                    node,
                    key,
                    index,
                    kind: Kind::Text,
                    text: Some(text),
                    file: None,
                });
            }
            OutputContent::File { filename, subfolder, folder } => {
                let Some(listed) = Listed::of(filename, subfolder, &folder) else { continue };
                let opened = listed.open_own(folders, own, &findings.written);
                if !listed.is_wanted(request) {
                    continue;
                }
                match opened {
                    Ok(_) if findings.files.len() as u64 >= u64::from(most) => findings.beyond += 1,
                    Ok(file) => findings.files.push(FoundFile {
                        node,
                        key,
                        index,
                        temp: listed.is_temp(),
                        place: places.give(&listed.place(own), &listed.key()),
                        filename: listed.filename,
                        content: FoundContent::File(Arc::new(file)),
                        output: OnceLock::new(),
                    }),
                    Err(error) => {
                        let separator = if missing.nodes.is_empty() { "" } else { "; " };
                        missing.message +=
                            &format!("{separator}node {node} lists {:?}: {error}", listed.name());
                        missing.nodes.insert(node);
                    }
                }
            }
        }
    }
    if !missing.nodes.is_empty() {
        return Err(missing);
    }
    for OutputImage { node, index, image } in images {
        let extension = if image.content_type == "image/png" { "png" } else { "jpg" };
        // Outside data: the id of a node is any text.
        let safe_node: String =
            node.chars().take(64).map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
        let filename = format!("{safe_node}_{:05}_.{extension}", index + 1);
        let place = places.give(&filename, &format!("socket/{index}/{node}"));
        let content = FoundContent::Bytes(image.bytes);
        let key = "images".to_owned();
        findings.files.push(FoundFile {
            node,
            key,
            index,
            temp: false,
            place,
            filename,
            content,
            output: OnceLock::new(),
        });
    }
    Ok(findings)
}

/// Object names: a file that is listed twice has one, two files of one name stay apart.
#[derive(Default)]
struct ObjectNames {
    given: HashMap<String, String>,
    /// With the number that the next file of that name gets.
    taken: HashMap<String, u32>,
}

impl ObjectNames {
    fn give(&mut self, wanted: &str, source: &str) -> String {
        if let Some(place) = self.given.get(source) {
            return place.clone();
        }
        let (folder, name) = wanted.rsplit_once('/').map_or(("", wanted), |(folder, name)| (folder, name));
        let mut place = wanted.to_owned();
        while self.taken.contains_key(&place) {
            let separator = if folder.is_empty() { "" } else { "/" };
            let number = self.taken.entry(wanted.to_owned()).or_insert(2);
            place = format!("{folder}{separator}{number}-{name}");
            *number += 1;
        }
        self.taken.insert(place.clone(), 2);
        self.given.insert(source.to_owned(), place.clone());
        place
    }
}

/// Where outputs go.
#[derive(Debug)]
pub struct Destination<'a> {
    /// The store.
    pub store: &'a dyn ObjectStore,
    /// Where the job wants its outputs.
    pub root: ObjectUri,
    /// Whether that is the place of the results, too.
    pub own: bool,
    /// The folder `…/<job id>/<attempt>`.
    pub base: ObjectUri,
    /// Lifetime of presigned links.
    pub presign: Option<Duration>,
}

impl Destination<'_> {
    /// What it means that an output could not be stored here. Of the place of results it is the worker's business;
    /// another one is the job's choice.
    #[must_use]
    pub fn failure(&self, error: StoreError) -> Failure {
        let text = error.to_string();
        match error {
            StoreError::Local { source, .. } if !self.own => match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Failure::OutputNotFound(text),
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    Failure::OutputForbidden(text)
                }
                _ => Failure::Local(text),
            },
            StoreError::Local { .. } => Failure::Local(text),
            _ if self.own => Failure::StoreUnavailable(text),
            StoreError::NotFound { .. } | StoreError::Misplaced { .. } => Failure::OutputNotFound(text),
            StoreError::Forbidden { .. } | StoreError::Misconfigured { .. } | StoreError::TooLarge { .. } => {
                Failure::OutputForbidden(text)
            }
            StoreError::Changed { .. } | StoreError::Unavailable { .. } => Failure::OutputUnavailable(text),
        }
    }
}

impl FoundOutputs {
    /// What is removed after the job, of that which is not in its own folder.
    #[must_use]
    pub fn written(&self) -> Vec<PathBuf> {
        self.written.paths()
    }

    /// How many files there are.
    #[must_use]
    pub fn files(&self) -> usize {
        self.files.len() + self.beyond
    }

    /// Itself, if it is within the bounds.
    ///
    /// # Errors
    /// [`Failure::OutputTooLarge`], saying which bound; [`Failure::Local`] when a file cannot be asked.
    pub fn within(self, limits: &OutputsConfig) -> Result<Self, Failure> {
        let (files, most) = (self.files(), limits.max_files);
        if files as u64 > u64::from(most) {
            let text = format!("the job made {files} files, more than {most} (outputs.max_files)");
            return Err(Failure::OutputTooLarge(text));
        }
        let mut bytes = 0u64;
        for found in &self.files {
            bytes = bytes.saturating_add(match &found.content {
                FoundContent::Bytes(bytes) => bytes.len() as u64,
                FoundContent::File(file) => {
                    file.metadata().map_err(|error| Failure::local(&found.filename, &error))?.len()
                }
            });
        }
        if bytes > limits.max_bytes {
            let most = limits.max_bytes;
            let text = format!("the job's files have {bytes} bytes, more than {most} (outputs.max_bytes)");
            return Err(Failure::OutputTooLarge(text));
        }
        let text: usize = self.texts.iter().filter_map(|output| output.text.as_ref()).map(String::len).sum();
        if text > bounds::INLINE_TEXT {
            let most = bounds::INLINE_TEXT;
            let text = format!("the job's texts have {text} bytes, more than {most}: have nodes write files");
            return Err(Failure::OutputTooLarge(text));
        }
        Ok(self)
    }

    /// Uploads every file but those that `eager` has, unchanged; texts come along as they are. `each` is told of each file done: its
    /// name, bytes, how many are done and how many there are. Called again after an error it goes on where it was.
    ///
    /// # Errors
    /// When the store does not take one.
    pub async fn upload(
        &self,
        destination: &Destination<'_>,
        eager: &EagerUploads,
        each: impl Fn(&str, u64, usize, usize) + Sync,
    ) -> Result<Vec<Output>, Failure> {
        let of = self.files.len();
        let files: Vec<_> = self.files.iter().map(|found| (eager.take(found), found)).collect();
        let before = self.files.iter().filter(|found| found.output.get().is_some()).count();
        let done = std::sync::atomic::AtomicUsize::new(before);
        let (done, each) = (&done, &each);
        // Collected: a stream that makes futures of references could not move between threads.
        let uploads = files.into_iter().map(|(begun, found)| async move {
            if let Some(output) = found.output.get() {
                return Ok(output.clone());
            }
            let output = found.upload(destination, begun).await?;
            let _ = found.output.set(output.clone());
            let done = done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
            if let Some(file) = &output.file {
                each(&file.filename, file.size, done, of);
            }
            Ok::<_, Failure>(output)
        });
        let uploads: Vec<_> = uploads.collect();
        let mut outputs: Vec<Output> = stream::iter(uploads).buffered(PARALLEL_UPLOADS).try_collect().await?;
        outputs.extend(self.texts.iter().cloned());
        Ok(outputs)
    }
}

/// Removes what an execution wrote that nobody wants.
pub async fn discard(folders: &Folders, own: &OwnFolder, history: Arc<History>) {
    let (folders, own) = (folders.clone(), own.clone());
    let request = OutputRequest { include_temp: true, ..OutputRequest::default() };
    let finding = tokio::task::spawn_blocking(move || {
        find(&folders, &own, &request, &history, Vec::new(), 0).map(drop)
    });
    // Files that are not there need no removal.
    let _ = finding.await;
}

impl FoundFile {
    async fn upload(
        &self,
        destination: &Destination<'_>,
        begun: Option<(EagerUpload, bool)>,
    ) -> Result<Output, Failure> {
        let content_type = content_type(&self.filename);
        let uri = destination.base.join(&format!("outputs/{}", self.place));
        let uri = uri.map_err(|error| Failure::OutputMissing {
            message: error.to_string(),
            nodes: BTreeSet::from([self.node.clone()]),
        })?;
        let eager = match begun {
            Some((begun, same)) => begun.ended().await.filter(|_| same),
            None => None,
        };
        let stored = match eager {
            Some(stored) => stored,
            None => {
                let put = self.content.put(destination.store, &uri, &content_type);
                put.await.map_err(|error| destination.failure(error))?
            }
        };
        let url = match destination.presign {
            Some(lifetime) => {
                let link = destination.store.presign_get(&uri, lifetime).await;
                link.map_err(|error| destination.failure(error))?
            }
            None => None,
        };
        Ok(Output {
            kind: kind(&self.filename),
            node: self.node.clone(),
            key: self.key.clone(),
            index: self.index,
            text: None,
            file: Some(OutputFile {
                filename: self.filename.clone(),
                uri: uri.to_string(),
                url: url.map(String::from),
                content_type,
                size: stored.size,
                sha256: stored.sha256,
                temp: self.temp,
            }),
        })
    }
}

impl FoundContent {
    async fn put(
        &self,
        store: &dyn ObjectStore,
        uri: &ObjectUri,
        content_type: &str,
    ) -> Result<Stored, StoreError> {
        let content = match self {
            Self::Bytes(bytes) => Content::Bytes(bytes.clone()),
            Self::File(file) => {
                let local = |source| StoreError::Local { uri: uri.to_string(), source };
                // By descriptor: the name could be made to stand for something else meanwhile.
                let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
                Content::File { path, size: file.metadata().map_err(local)?.len() }
            }
        };
        store.put(uri, content, content_type).await
    }
}

fn content_type(filename: &str) -> String {
    mime_guess::from_path(filename).first_or_octet_stream().to_string()
}

fn kind(filename: &str) -> Kind {
    let extension = filename.rsplit_once('.').map_or("", |(_, extension)| extension).to_ascii_lowercase();
    match extension.as_str() {
        "png" | "jpg" | "jpeg" | "webp" | "gif" | "bmp" | "tif" | "tiff" | "exr" | "hdr" | "avif"
        | "apng" | "svg" => Kind::Image,
        "mp4" | "webm" | "mkv" | "mov" | "avi" | "m4v" => Kind::Video,
        "wav" | "mp3" | "flac" | "ogg" | "opus" | "m4a" | "aac" => Kind::Audio,
        "glb" | "gltf" | "obj" | "stl" | "ply" | "fbx" | "usdz" | "spz" | "splat" => Kind::Model,
        "latent" => Kind::Latent,
        _ => Kind::File,
    }
}

#[cfg(test)]
#[path = "deliver_tests.rs"]
mod tests;
