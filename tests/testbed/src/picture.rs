//! Pictures for tests and demonstrations, as PNG without a library.

/// A PNG of that size with 8-bit RGB pixels, stored without compression.
#[must_use]
pub fn png(width: u32, height: u32, pixel: impl Fn(u32, u32) -> [u8; 3]) -> Vec<u8> {
    let mut rows = Vec::new();
    for y in 0..height {
        rows.push(0); // this row's filter: none
        rows.extend((0..width).flat_map(|x| pixel(x, y)));
    }
    let mut header = [width.to_be_bytes(), height.to_be_bytes()].concat();
    header.extend([8, 2, 0, 0, 0]); // 8 bits, RGB, deflate, usual filters, not interlaced
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, content) in [(b"IHDR", header), (b"IDAT", zlib_stored(&rows)), (b"IEND", Vec::new())] {
        let body = [kind.as_slice(), &content].concat();
        file.extend(u32::try_from(content.len()).unwrap_or(u32::MAX).to_be_bytes());
        file.extend(&body);
        file.extend(crc32(&body).to_be_bytes());
    }
    file
}

/// A small landscape: a sun over hills and a lake. Easy to tell from its negative.
#[must_use]
pub fn landscape() -> Vec<u8> {
    const WIDTH: u32 = 320;
    const HEIGHT: u32 = 200;
    png(WIDTH, HEIGHT, |x, y| {
        let (u, v) = (f64::from(x), f64::from(y));
        let far = 105.0 - 18.0 * (u / 38.0).sin() - 9.0 * (u / 13.0 + 1.0).sin();
        let near = 132.0 + 12.0 * (u / 55.0 + 2.0).sin();
        let sun = ((u - 236.0).powi(2) + (v - 48.0).powi(2)).sqrt();
        let from = |start: [f64; 3], end: [f64; 3], share: f64| {
            let share = share.clamp(0.0, 1.0);
            [0, 1, 2].map(|channel| start[channel] + (end[channel] - start[channel]) * share)
        };
        let color = if v > 168.0 {
            let glint = if (u / 9.0 + v).sin() * (v / 2.0).cos() > 0.75 { 60.0 } else { 0.0 };
            [40.0 + glint, 110.0 + glint, 160.0 + glint]
        } else if v > near {
            from([70.0, 140.0, 60.0], [35.0, 90.0, 45.0], (v - near) / 50.0)
        } else if v > far {
            from([90.0, 100.0, 140.0], [70.0, 90.0, 110.0], (v - far) / 60.0)
        } else if sun < 24.0 {
            [255.0, 225.0, 90.0]
        } else {
            let sky = from([70.0, 140.0, 225.0], [250.0, 205.0, 150.0], v / 130.0);
            from([255.0, 235.0, 170.0], sky, (sun - 24.0) / 40.0)
        };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to a byte")]
        color.map(|channel| channel.clamp(0.0, 255.0) as u8)
    })
}

fn zlib_stored(bytes: &[u8]) -> Vec<u8> {
    const BLOCK: usize = 0xffff;
    let mut out = vec![0x78, 0x01];
    let blocks = bytes.len().div_ceil(BLOCK);
    for (index, block) in bytes.chunks(BLOCK).enumerate() {
        let length = u16::try_from(block.len()).unwrap_or(u16::MAX);
        out.push(u8::from(index + 1 == blocks));
        out.extend(length.to_le_bytes());
        out.extend((!length).to_le_bytes());
        out.extend(block);
    }
    out.extend(adler32(bytes).to_be_bytes());
    out
}

fn adler32(bytes: &[u8]) -> u32 {
    let (low, high) = bytes.iter().fold((1_u32, 0_u32), |(low, high), &byte| {
        let low = (low + u32::from(byte)) % 65_521;
        (low, (high + low) % 65_521)
    });
    high << 16 | low
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, &byte| {
        (0..8).fold(
            sum ^ u32::from(byte),
            |sum, _| {
                if sum & 1 == 1 { (sum >> 1) ^ 0xedb8_8320 } else { sum >> 1 }
            },
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sums_are_the_known_ones() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(adler32(b"Wikipedia"), 0x11e6_0398);
    }

    #[test]
    fn a_picture_begins_and_ends_as_a_png_does() {
        let file = png(2, 1, |x, _| [u8::try_from(x).unwrap_or(0), 0, 255]);
        assert!(file.starts_with(b"\x89PNG\r\n\x1a\n"));
        assert!(file.ends_with(b"IEND\xae\x42\x60\x82"));
    }
}
