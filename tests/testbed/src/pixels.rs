//! The pixels of a PNG, for tests that compare pictures: 8-bit RGB and RGBA, not interlaced, which
//! is what ComfyUI saves.

use std::io::Read as _;

use anyhow::{Context as _, Result, bail, ensure};
use flate2::read::ZlibDecoder;

/// A decoded picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pixels {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Row by row, without alpha.
    pub rgb: Vec<[u8; 3]>,
}

impl Pixels {
    /// Decodes a PNG. Checksums are not looked at.
    ///
    /// # Errors
    /// When it is none, or of another kind than those named above.
    pub fn read(png: &[u8]) -> Result<Self> {
        let mut rest = png.strip_prefix(b"\x89PNG\r\n\x1a\n").context("no PNG")?;
        let (mut header, mut packed) = (None, Vec::new());
        while let Some((kind, content, after)) = chunk(rest) {
            match kind {
                b"IHDR" => header = Some(content),
                b"IDAT" => packed.extend_from_slice(content),
                _ => {}
            }
            rest = after;
        }
        let header: &[u8; 13] = header.context("no IHDR")?.try_into().context("a short IHDR")?;
        let [w0, w1, w2, w3, h0, h1, h2, h3, depth, color, _, _, interlaced] = *header;
        let channels = match (depth, color, interlaced) {
            (8, 2, 0) => 3,
            (8, 6, 0) => 4,
            other => bail!("a PNG of another kind: {other:?}"),
        };
        let (width, height) = (u32::from_be_bytes([w0, w1, w2, w3]), u32::from_be_bytes([h0, h1, h2, h3]));
        let mut rows = Vec::new();
        ZlibDecoder::new(packed.as_slice()).read_to_end(&mut rows).context("bad compressed data")?;
        let stride = usize::try_from(width)? * channels;
        ensure!(rows.len() == (stride + 1) * usize::try_from(height)?, "{} bytes of pixels", rows.len());
        let plain = unfilter(&rows, stride, channels)?;
        let rgb = plain.chunks_exact(channels).map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect();
        Ok(Self { width, height, rgb })
    }

    /// Whether every pixel is the other one's negative, give or take the one that ComfyUI loses
    /// when it cuts 254.99998 to a byte.
    #[must_use]
    pub fn is_negative_of(&self, other: &Self) -> bool {
        let opposite = |(a, b): (&u8, &u8)| (u16::from(*a) + u16::from(*b)).abs_diff(255) <= 1;
        (self.width, self.height) == (other.width, other.height)
            && self.rgb.iter().flatten().zip(other.rgb.iter().flatten()).all(opposite)
    }
}

/// The first chunk's kind and content, and what follows it.
fn chunk(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (kind, rest) = rest.split_at_checked(4)?;
    let (content, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
    Some((kind, content, rest.get(4..)?))
}

/// Undoes the rows' filters (PNG specification, section 9).
fn unfilter(rows: &[u8], stride: usize, channels: usize) -> Result<Vec<u8>> {
    let mut plain: Vec<u8> = Vec::with_capacity(rows.len());
    for row in rows.chunks_exact(stride + 1) {
        let start = plain.len();
        for (at, &byte) in row[1..].iter().enumerate() {
            let here = start + at;
            let left = if at < channels { 0 } else { plain[here - channels] };
            let up = if start == 0 { 0 } else { plain[here - stride] };
            let corner = if start == 0 || at < channels { 0 } else { plain[here - stride - channels] };
            let guess = match row[0] {
                0 => 0,
                1 => left,
                2 => up,
                3 => left.midpoint(up),
                4 => paeth(left, up, corner),
                other => bail!("unknown filter {other}"),
            };
            plain.push(byte.wrapping_add(guess));
        }
    }
    Ok(plain)
}

fn paeth(left: u8, up: u8, corner: u8) -> u8 {
    let [a, b, c] = [left, up, corner].map(i16::from);
    let guess = a + b - c;
    let [to_left, to_up, to_corner] = [a, b, c].map(|value| (guess - value).abs());
    if to_left <= to_up && to_left <= to_corner {
        left
    } else if to_up <= to_corner {
        up
    } else {
        corner
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() -> Result<()> {
        let pixel = |x: u32, y: u32| [x, y, x ^ y].map(|value| u8::try_from(value % 256).unwrap_or(0));
        let pixels = Pixels::read(&crate::png(300, 90, pixel))?;
        let wanted: Vec<[u8; 3]> = (0..90).flat_map(|y| (0..300).map(move |x| pixel(x, y))).collect();
        assert_eq!((pixels.width, pixels.height), (300, 90));
        assert!(pixels.rgb == wanted);
        Ok(())
    }

    #[test]
    fn each_filter_is_undone() -> Result<()> {
        // One channel, two pixels a row; the values follow the specification's formulas.
        let rows = [[0, 10, 20], [1, 10, 20], [2, 1, 2], [3, 4, 4], [4, 1, 1]].concat();
        let plain = unfilter(&rows, 2, 1)?;
        assert_eq!(plain, [10, 20, 10, 30, 11, 32, 9, 24, 10, 25]);
        Ok(())
    }

    #[test]
    fn a_negative_is_told_from_a_copy() -> Result<()> {
        let picture = Pixels::read(&crate::landscape())?;
        let mut negative = picture.clone();
        negative.rgb.iter_mut().flatten().for_each(|byte| *byte = 255 - *byte);
        assert!(negative.is_negative_of(&picture));
        assert!(!picture.is_negative_of(&picture));
        Ok(())
    }
}
