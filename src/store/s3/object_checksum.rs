//! Checks the bytes of an object, as they pass in order, against the checksum that the store has of it.

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use base64::{Engine, engine::general_purpose::STANDARD};
use crc_fast::{CrcAlgorithm, Digest};

pub(super) enum ObjectChecksum {
    /// Nothing of the whole (nothing at all, or only a checksum of the checksums of parts).
    Nothing,
    /// One that costs next to nothing to make.
    Crc(Box<Crc>),
    /// One that the SDK makes itself, of one stream from beginning to end.
    Other,
}

pub(super) struct Crc {
    digest: Digest,
    /// Bytes of the sum.
    width: usize,
    claimed: String,
}

impl ObjectChecksum {
    pub(super) fn of(answer: &GetObjectOutput) -> Self {
        // `<sum>-<parts>`: of the parts' checksums.
        let whole =
            |claimed: Option<&str>| claimed.filter(|claimed| !claimed.contains('-')).map(str::to_owned);
        for (algorithm, width, claimed) in [
            (CrcAlgorithm::Crc64Nvme, 8, answer.checksum_crc64_nvme()),
            (CrcAlgorithm::Crc32IsoHdlc, 4, answer.checksum_crc32()),
            (CrcAlgorithm::Crc32Iscsi, 4, answer.checksum_crc32_c()),
        ] {
            if let Some(claimed) = whole(claimed) {
                return Self::Crc(Box::new(Crc { digest: Digest::new(algorithm), width, claimed }));
            }
        }
        match whole(answer.checksum_sha256()).or_else(|| whole(answer.checksum_sha1())) {
            Some(_) => Self::Other,
            None => Self::Nothing,
        }
    }

    /// The next bytes.
    pub(super) fn pass(&mut self, bytes: &[u8]) {
        if let Self::Crc(crc) = self {
            crc.digest.update(bytes);
        }
    }

    /// After the last byte: how what passed differs, if it does.
    pub(super) fn broken(&self) -> Option<String> {
        let Self::Crc(crc) = self else { return None };
        let sum = crc.digest.finalize().to_be_bytes();
        let found = STANDARD.encode(sum.get(sum.len() - crc.width..).unwrap_or_default());
        (found != crc.claimed).then(|| format!("its checksum is {found}, not {}", crc.claimed))
    }
}
