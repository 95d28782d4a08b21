//! A model on its way here: a file that a later try goes on with.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use rustix::fs::OFlags;
use tokio::task::spawn_blocking;

use super::{index::FileStamp, lock::FetchLock};
use crate::{checksum::RunningChecksum, stage::parents};

const CHUNK: usize = 1 << 20;

/// An open part and the sum of what it holds.
///
/// It owns its turn, and goes with it to the thread that writes: a caller that is dropped meanwhile leaves
/// both there, so that nobody else opens the part before the last write is over.
#[derive(Debug)]
pub(super) struct PartFile {
    file: File,
    sum: RunningChecksum,
    len: u64,
    _turn: Arc<FetchLock>,
}

impl PartFile {
    /// Opens the part at `path`; from a part that was begun at most `most` bytes count, and none where it
    /// holds more.
    pub(super) async fn open(path: &Path, most: u64, turn: Arc<FetchLock>) -> io::Result<Self> {
        let path = path.to_owned();
        blocking(move || {
            let mut options = OpenOptions::new();
            options.create(true).truncate(false).read(true).append(true);
            options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
            let folder = path.parent().unwrap_or(&path);
            let mut file = parents::within(folder, || options.open(&path))?;
            if file.metadata()?.len() > most {
                file.set_len(0)?;
            }
            let (mut sum, mut len, mut chunk) = (RunningChecksum::default(), 0, vec![0; CHUNK]);
            loop {
                let read = file.read(&mut chunk)?;
                let Some(bytes) = chunk.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
                sum.update(bytes);
                len += bytes.len() as u64;
            }
            Ok(Self { file, sum, len, _turn: turn })
        })
        .await
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) async fn append(mut self, bytes: Bytes) -> io::Result<Self> {
        blocking(move || {
            self.file.write_all(&bytes)?;
            self.sum.update(&bytes);
            self.len += bytes.len() as u64;
            Ok(self)
        })
        .await
    }

    /// Its checksum, and what it will be known by, once its bytes are on the disk: a model is used for
    /// months, after crashes of the machine too.
    pub(super) async fn finish(self) -> io::Result<(String, FileStamp)> {
        blocking(move || {
            self.file.sync_all()?;
            let identity = FileStamp::of(&self.file.metadata()?);
            Ok((self.sum.finish(), identity))
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}
