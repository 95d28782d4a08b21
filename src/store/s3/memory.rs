//! The memory that transfers hold, bounded over the whole process.

use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit};

/// What all uploads hold: three parts of one, or one each of three.
pub(super) static UPLOADS: Memory = Memory::of(16 << 20);
/// What all downloads hold beside the chunk that each is handing over.
pub(super) static DOWNLOADS: Memory = Memory::of(16 << 20);

/// So many bytes, lent and given back.
#[derive(Debug)]
pub(super) struct Memory {
    free: Semaphore,
    all: u32,
}

impl Memory {
    const fn of(all: u32) -> Self {
        Self { free: Semaphore::const_new(all as usize), all }
    }

    /// Room for `length` bytes, when it is free. Whoever waits here must hold none that only it can give back.
    /// More than there is at all is lent to one at a time: a part of a file beyond 156 GiB.
    pub(super) async fn take(&'static self, length: usize) -> Buffer {
        match self.free.acquire_many(self.share(length)).await {
            Ok(lent) => Buffer { bytes: Vec::with_capacity(length), lent },
            Err(_) => unreachable!("nobody closes it"),
        }
    }

    /// Room for `length` bytes, if it is free now.
    pub(super) fn try_take(&'static self, length: usize) -> Option<Buffer> {
        let lent = self.free.try_acquire_many(self.share(length)).ok()?;
        Some(Buffer { bytes: Vec::with_capacity(length), lent })
    }

    fn share(&self, length: usize) -> u32 {
        u32::try_from(length).unwrap_or(u32::MAX).min(self.all)
    }
}

/// Memory on loan.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    lent: SemaphorePermit<'static>,
}

impl Buffer {
    pub(super) fn bytes_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Its loan goes back when the last of the [`Bytes`] made of it is dropped, wherever that is.
    pub(super) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }

    /// What is read and the loan apart, for those who hand the bytes to a connection: one whose peer
    /// reads no more keeps them beyond the end of its request.
    pub(super) fn split(self) -> (Bytes, SemaphorePermit<'static>) {
        (self.bytes.into(), self.lent)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}
