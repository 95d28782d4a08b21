//! SHA-256 sums, in lower-case hexadecimal digits.

use std::io::{self, Read};

use sha2::{Digest, Sha256};

/// Of bytes in memory.
pub(crate) fn of_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Of everything that a reader gives, with its length. Blocks.
pub(crate) fn of_reader(mut reader: impl Read) -> io::Result<(String, u64)> {
    let mut running = Running::default();
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
#[derive(Clone, Debug, Default)]
pub(crate) struct Running(Sha256);

impl Running {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
