//! Pictures, decoded and compared pixel by pixel.

use std::{collections::BTreeMap, io::Cursor};

use anyhow::{Context as _, Result, ensure};

/// A decoded PNG.
#[derive(Debug)]
pub(crate) struct Picture {
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// Row by row, without alpha.
    rgb: Vec<[u8; 3]>,
    /// Keyword to text.
    pub(crate) texts: BTreeMap<String, String>,
}

impl Picture {
    /// Decodes an 8-bit RGB or RGBA PNG, its checksums too.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self> {
        let mut reader = png::Decoder::new(Cursor::new(bytes)).read_info().context("no PNG")?;
        let mut pixels = vec![0; reader.output_buffer_size().context("a huge PNG")?];
        let frame = reader.next_frame(&mut pixels)?;
        reader.finish()?;
        ensure!(frame.bit_depth == png::BitDepth::Eight, "{:?} bits", frame.bit_depth);
        let rgb = pixels[..frame.buffer_size()]
            .chunks_exact(frame.color_type.samples())
            .map(|pixel| pixel.first_chunk::<3>().copied().context("a grey PNG"))
            .collect::<Result<_>>()?;
        let texts = &reader.info().uncompressed_latin1_text;
        let texts = texts.iter().map(|chunk| (chunk.keyword.clone(), chunk.text.clone())).collect();
        Ok(Self { width: frame.width, height: frame.height, rgb, texts })
    }

    /// Checks that each value is `map` of the other picture's, give or take `tolerance`.
    pub(crate) fn ensure_is(&self, map: impl Fn(u8) -> u8, other: &Self, tolerance: u8) -> Result<()> {
        let (size, wanted) = ((self.width, self.height), (other.width, other.height));
        ensure!(size == wanted, "it is {size:?}, not {wanted:?}");
        for (at, (here, there)) in self.rgb.iter().zip(&other.rgb).enumerate() {
            let near = here.iter().zip(there).all(|(a, b)| a.abs_diff(map(*b)) <= tolerance);
            ensure!(near, "pixel {at} is {here:?}, the other one's {there:?}");
        }
        Ok(())
    }

    /// Checks that every pixel has this color, `0xRRGGBB`.
    pub(crate) fn ensure_color(&self, color: u32, tolerance: u8) -> Result<()> {
        let [_, wanted @ ..] = color.to_be_bytes();
        let other =
            self.rgb.iter().find(|pixel| pixel.iter().zip(&wanted).any(|(a, b)| a.abs_diff(*b) > tolerance));
        ensure!(other.is_none(), "a pixel is {other:?}, not {wanted:?}");
        Ok(())
    }
}

/// A PNG with a pattern that no two seeds share, and that is not its own negative.
pub(crate) fn pattern(seed: u32) -> Vec<u8> {
    testbed::png(40, 24, |x, y| {
        let [_, _, high, low] = (seed.wrapping_mul(2_654_435_761) ^ (x * 6 + y * 1_031)).to_be_bytes();
        [low, high, u8::try_from(x * 6).unwrap_or(255)]
    })
}

/// [`pattern`], decoded.
pub(crate) fn decoded_pattern(seed: u32) -> Result<Picture> {
    Picture::read(&pattern(seed))
}
