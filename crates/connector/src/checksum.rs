//! SHA-256 sums, in lower-case hexadecimal digits.

use std::{
    fmt,
    io::{self, Read},
};

use aws_lc_rs::digest::{Context, SHA256, digest};

/// Of bytes in memory.
pub fn of_bytes(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

/// Of everything that a reader gives, with its length. Blocks.
pub fn of_reader(mut reader: impl Read) -> io::Result<(String, u64)> {
    let mut running = RunningChecksum::default();
    let mut chunk = vec![0; 256 * 1024];
    let mut length = 0;
    loop {
        match reader.read(&mut chunk)? {
            0 => return Ok((running.finish(), length)),
            read => {
                running.update(chunk.get(..read).unwrap_or_default());
                length += read as u64;
            }
        }
    }
}

/// A sum of bytes that pass.
#[derive(Clone)]
pub struct RunningChecksum(Context);

impl fmt::Debug for RunningChecksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningChecksum").finish_non_exhaustive()
    }
}

impl Default for RunningChecksum {
    fn default() -> Self {
        Self(Context::new(&SHA256))
    }
}

impl RunningChecksum {
    /// The next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The sum, in lower-case hexadecimal digits.
    pub fn finish(self) -> String {
        hex(self.0.finish().as_ref())
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
