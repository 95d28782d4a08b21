"""File formats that Pillow cannot write: MP4 and safetensors.

MP4 here is Motion JPEG in an ISO container (object type 0x6C): a few lines, no encoder, and ffmpeg plays it.
The real server writes H.264.
"""
from __future__ import annotations

import io
import json
import math
import struct
from typing import Sequence

from PIL import Image

TIMESCALE = 90_000  # ticks a second; divides evenly by the usual frame rates
UNITY_MATRIX = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)


def _box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", len(body) + 8) + kind + body


def _full_box(kind: bytes, *parts: bytes, flags: int = 0) -> bytes:
    return _box(kind, struct.pack(">I", flags), *parts)


def write_mp4(path: str, frames: Sequence[Image.Image], fps: float) -> None:
    """Write the frames as an MP4 that players accept."""
    samples = [_jpeg(frame) for frame in frames]
    width, height = frames[0].size
    ftyp = _box(b"ftyp", b"isom", struct.pack(">I", 512), b"isommp41")
    mdat = _box(b"mdat", *samples)
    offset = len(ftyp) + 8
    moov = _moov([len(sample) for sample in samples], offset, width, height, round(TIMESCALE / fps))
    with open(path, "wb") as file:
        file.write(ftyp + mdat + moov)


def _jpeg(frame: Image.Image) -> bytes:
    buffer = io.BytesIO()
    frame.convert("RGB").save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _moov(sizes: list[int], offset: int, width: int, height: int, ticks: int) -> bytes:
    count, duration = len(sizes), len(sizes) * ticks
    mvhd = _full_box(
        b"mvhd", struct.pack(">IIII", 0, 0, TIMESCALE, duration), struct.pack(">IH10x", 0x10000, 0x100),
        UNITY_MATRIX, bytes(24), struct.pack(">I", 2))
    tkhd = _full_box(
        b"tkhd", struct.pack(">IIIII", 0, 0, 1, 0, duration), bytes(16), UNITY_MATRIX,
        struct.pack(">II", width << 16, height << 16), flags=3)
    mdhd = _full_box(b"mdhd", struct.pack(">IIIIHH", 0, 0, TIMESCALE, duration, 0x55C4, 0))
    hdlr = _full_box(b"hdlr", struct.pack(">I", 0), b"vide", bytes(12), b"stand-in\0")
    dref = _full_box(b"dref", struct.pack(">I", 1), _full_box(b"url ", flags=1))
    stbl = _box(
        b"stbl",
        _full_box(b"stsd", struct.pack(">I", 1), _sample_entry(width, height)),
        _full_box(b"stts", struct.pack(">III", 1, count, ticks)),
        _full_box(b"stsc", struct.pack(">IIII", 1, 1, count, 1)),
        _full_box(b"stsz", struct.pack(">II", 0, count), struct.pack(f">{count}I", *sizes)),
        _full_box(b"stco", struct.pack(">II", 1, offset)))
    minf = _box(b"minf", _full_box(b"vmhd", bytes(8), flags=1), _box(b"dinf", dref), stbl)
    return _box(b"moov", mvhd, _box(b"trak", tkhd, _box(b"mdia", mdhd, hdlr, minf)))


def _sample_entry(width: int, height: int) -> bytes:
    decoder = b"\x04\x0d\x6c\x11" + bytes(11)  # DecoderConfigDescriptor: JPEG, visual stream
    descriptor = b"\x03" + bytes([3 + len(decoder) + 3]) + b"\x00\x01\x00" + decoder + b"\x06\x01\x02"
    return _box(
        b"mp4v", bytes(6), struct.pack(">H", 1), bytes(16), struct.pack(">HH", width, height),
        struct.pack(">IIIH", 0x480000, 0x480000, 0, 1), bytes(32), struct.pack(">Hh", 24, -1),
        _full_box(b"esds", descriptor))


def write_safetensors(path: str, shape: Sequence[int], metadata: dict[str, str]) -> None:
    """A `.latent` file: one float32 tensor of zeros, an empty version tensor, and string metadata."""
    size = math.prod(shape) * 4
    header = json.dumps({
        "__metadata__": metadata,
        "latent_format_version_0": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]},
        "latent_tensor": {"dtype": "F32", "shape": list(shape), "data_offsets": [0, size]},
    }).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header + bytes(size))
