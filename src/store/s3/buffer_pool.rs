//! The memory that transfers hold, bounded over the whole process.

use std::io::{self, Read};

use bytes::Bytes;
use memmap2::MmapMut;
use tokio::sync::{Semaphore, SemaphorePermit};

/// What all uploads hold: three parts of one, or one each of three.
pub(super) static UPLOADS: BufferPool = BufferPool::of(16 << 20);
/// What all downloads hold beside the chunk that each is handing over.
pub(super) static DOWNLOADS: BufferPool = BufferPool::of(16 << 20);

/// So many bytes, lent and given back.
#[derive(Debug)]
pub(super) struct BufferPool {
    free: Semaphore,
    all: u32,
}

impl BufferPool {
    const fn of(all: u32) -> Self {
        Self { free: Semaphore::const_new(all as usize), all }
    }

    /// Room for `length` bytes, when it is free. Anyone who waits here must hold none that only it can give back.
    /// More than there is at all is lent to one at a time: a part of a file beyond 156 GiB.
    pub(super) async fn take(&'static self, length: usize) -> io::Result<Buffer> {
        match self.free.acquire_many(self.share(length)).await {
            Ok(lent) => Buffer::new(length, lent),
            Err(_) => unreachable!("nobody closes it"),
        }
    }

    /// Room for `length` bytes, if it is free now.
    pub(super) fn try_take(&'static self, length: usize) -> Option<Buffer> {
        let lent = self.free.try_acquire_many(self.share(length)).ok()?;
        Buffer::new(length, lent).ok()
    }

    fn share(&self, length: usize) -> u32 {
        u32::try_from(length).unwrap_or(u32::MAX).min(self.all)
    }
}

/// Memory on loan.
#[derive(Debug)]
pub(super) struct Buffer {
    room: Room,
    lent: SemaphorePermit<'static>,
}

/// A mapping of its own: what a heap got in pieces of this size, it would keep.
#[derive(Debug)]
struct Room {
    map: MmapMut,
    filled: usize,
}

impl Buffer {
    fn new(length: usize, lent: SemaphorePermit<'static>) -> io::Result<Self> {
        Ok(Self { room: Room { map: MmapMut::map_anon(length)?, filled: 0 }, lent })
    }

    /// Reads until it is full, or nothing more comes.
    pub(super) fn fill(&mut self, mut from: impl Read) -> io::Result<()> {
        let Room { map, filled } = &mut self.room;
        while let Some(rest) = map.get_mut(*filled..).filter(|rest| !rest.is_empty()) {
            match from.read(rest) {
                Ok(0) => break,
                Ok(read) => *filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Its loan goes back when the last of the [`Bytes`] made of it is dropped, wherever that is.
    pub(super) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }

    /// What is read and the loan apart, for those who hand the bytes to a connection: one whose peer
    /// reads no more keeps them beyond the end of its request.
    pub(super) fn split(self) -> (Bytes, SemaphorePermit<'static>) {
        (Bytes::from_owner(self.room), self.lent)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.room.as_ref()
    }
}

impl AsRef<[u8]> for Room {
    fn as_ref(&self) -> &[u8] {
        self.map.get(..self.filled).unwrap_or_default()
    }
}
