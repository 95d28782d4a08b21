"""Pixels. A picture batch on the wire between nodes is a `Batch` of Pillow images.

The real server keeps float tensors; 8 bits are enough for a stand-in, so rounding may differ by one level.
"""
from __future__ import annotations

import hashlib
from typing import Callable, Iterator, Sequence

from PIL import Image, ImageOps, ImageSequence

RESAMPLING = {
    "nearest-exact": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "area": Image.Resampling.BOX,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class Batch:
    """Frames of one size: mode RGB for an IMAGE, L for a MASK. Frames are shared, never changed in place."""

    def __init__(self, frames: Sequence[Image.Image]) -> None:
        self.frames = list(frames)

    @property
    def width(self) -> int:
        return self.frames[0].width

    @property
    def height(self) -> int:
        return self.frames[0].height

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[Image.Image]:
        return iter(self.frames)

    def __str__(self) -> str:
        # Shown in execution_error's current_inputs, where the real server prints the numbers.
        channels = len(self.frames[0].getbands())
        return f"tensor(..., size=({len(self)}, {self.height}, {self.width}, {channels}))"

    def map(self, change: Callable[[Image.Image], Image.Image]) -> "Batch":
        """Apply `change` to each distinct frame once (EmptyImage shares one frame among thousands)."""
        done: dict[int, Image.Image] = {}
        for frame in self.frames:
            if id(frame) not in done:
                done[id(frame)] = change(frame)
        return Batch([done[id(frame)] for frame in self.frames])


class Latent:
    """Stands for a latent tensor: only its shape matters here, its numbers are all zero."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __str__(self) -> str:
        return f"{{'samples': tensor(..., size={self.shape})}}"


def solid(width: int, height: int, count: int, color: int) -> Batch:
    """`count` frames of one colour, 0xRRGGBB."""
    for side in (height, width):
        if side < 0:  # a linked INT escapes the prompt's validation
            shape = [count, height, width, 1]
            raise RuntimeError(f"Trying to create tensor with negative dimension {side}: {shape}")
    rgb = ((color >> 16) & 0xFF, (color >> 8) & 0xFF, color & 0xFF)
    return Batch([Image.new("RGB", (width, height), rgb)] * count)


def load(path: str) -> tuple[Batch, Batch]:
    """Read every frame of a file as (image, mask); the mask is inverted alpha, 64×64 black without alpha."""
    pictures: list[Image.Image] = []
    masks: list[Image.Image] = []
    with Image.open(path) as source:
        for raw in ImageSequence.Iterator(source):
            frame = ImageOps.exif_transpose(raw)
            if frame.mode == "I":
                frame = frame.point(lambda level: level * (1 / 255))
            picture = frame.convert("RGB")
            if pictures and picture.size != pictures[0].size:
                continue
            pictures.append(picture)
            masks.append(_mask_of(frame))
        if source.format == "MPO":  # a phone's second picture is a depth map, not a frame
            pictures, masks = pictures[:1], masks[:1]
    return Batch(pictures), Batch(masks)


def _mask_of(frame: Image.Image) -> Image.Image:
    if "A" in frame.getbands():
        return ImageOps.invert(frame.getchannel("A"))
    if frame.mode == "P" and "transparency" in frame.info:
        return ImageOps.invert(frame.convert("RGBA").getchannel("A"))
    return Image.new("L", (64, 64), 0)


def scale(batch: Batch, width: int, height: int, method: str, crop: str = "disabled") -> Batch:
    """Resize; crop "center" first cuts to the target's aspect ratio."""
    if width <= 0 or height <= 0:
        raise RuntimeError("Input and output sizes should be greater than 0, but got input "
                           f"(H: {batch.height}, W: {batch.width}) output (H: {height}, W: {width})")
    box = _center_box(batch.width, batch.height, width / height) if crop == "center" else None
    return batch.map(lambda frame: frame.resize((width, height), RESAMPLING[method], box=box))


def _center_box(width: int, height: int, aspect: float) -> tuple[int, int, int, int]:
    own = width / height
    x = round((width - width * aspect / own) / 2) if own > aspect else 0
    y = round((height - height * own / aspect) / 2) if own < aspect else 0
    return x, y, width - x, height - y


def file_digest(path: str) -> str:
    """SHA-256 of a file: how LoadImage notices that a file of the same name changed."""
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()
