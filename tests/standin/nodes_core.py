"""Nodes of the real server that make or change values. Names, inputs and categories are the real ones."""
from __future__ import annotations

import json
import os
from typing import Any

from PIL import Image, ImageChops, ImageFilter, ImageOps

import images
from folders import Folders
from images import Batch, Latent
from node import Call, Node, Ui, core


@core
class LoadImage(Node):
    VALIDATED = ("image",)

    @staticmethod
    def VALIDATE_INPUTS(folders: Folders, image: str) -> Any:
        return os.path.exists(folders.annotated_path(image)) or f"Invalid image file: {image}"

    @staticmethod
    def IS_CHANGED(folders: Folders, image: str, **_: Any) -> str:
        return images.file_digest(folders.annotated_path(image))

    @staticmethod
    def refresh(info: dict, folders: Folders) -> None:
        info["input"]["required"]["image"][0] = folders.list_input()

    def run(self, call: Call, image: str) -> tuple:
        return images.load(self.folders.annotated_path(image))


@core
class LoadImageOutput(LoadImage):
    # Its list comes from the browser's side, so there is nothing to refresh.
    refresh = staticmethod(lambda info, folders: None)


@core
class LoadImageMask(Node):
    VALIDATED = ("image",)

    @staticmethod
    def VALIDATE_INPUTS(folders: Folders, image: str) -> Any:
        return os.path.exists(folders.annotated_path(image)) or f"Invalid image file: {image}"

    @staticmethod
    def IS_CHANGED(folders: Folders, image: str, **_: Any) -> str:
        return images.file_digest(folders.annotated_path(image))

    @staticmethod
    def refresh(info: dict, folders: Folders) -> None:
        info["input"]["required"]["image"][0] = folders.list_input(images_only=False)

    def run(self, call: Call, image: str, channel: str) -> tuple:
        with Image.open(self.folders.annotated_path(image)) as source:
            plane = ImageOps.exif_transpose(source).convert("RGBA").getchannel(channel[0].upper())
        return (Batch([ImageOps.invert(plane) if channel == "alpha" else plane]),)


@core
class EmptyImage(Node):
    def run(self, call: Call, width: int, height: int, batch_size: int = 1, color: int = 0) -> tuple:
        return (images.solid(width, height, batch_size, color),)


@core
class ImageInvert(Node):
    def run(self, call: Call, image: Batch) -> tuple:
        return (image.map(ImageChops.invert),)


@core
class ImageScale(Node):
    def run(self, call: Call, image: Batch, upscale_method: str, width: int, height: int, crop: str) -> tuple:
        if width == 0 and height == 0:
            return (image,)
        width = width or max(1, round(image.width * height / image.height))
        height = height or max(1, round(image.height * width / image.width))
        return (images.scale(image, width, height, upscale_method, crop),)


@core
class ImageScaleBy(Node):
    def run(self, call: Call, image: Batch, upscale_method: str, scale_by: float) -> tuple:
        width, height = round(image.width * scale_by), round(image.height * scale_by)
        return (images.scale(image, width, height, upscale_method),)


@core
class ImageBatch(Node):
    def run(self, call: Call, image1: Batch, image2: Batch) -> tuple:
        if (image1.width, image1.height) != (image2.width, image2.height):
            image2 = images.scale(image2, image1.width, image1.height, "bilinear", "center")
        return (Batch(image1.frames + image2.frames),)


@core
class ImageFromBatch(Node):
    def run(self, call: Call, image: Batch, batch_index: int, length: int) -> tuple:
        first = min(len(image) - 1, batch_index)
        return (Batch(image.frames[first : first + length]),)


@core
class RepeatImageBatch(Node):
    def run(self, call: Call, image: Batch, amount: int) -> tuple:
        return (Batch(image.frames * amount),)


@core
class ImageCrop(Node):
    def run(self, call: Call, image: Batch, width: int, height: int, x: int, y: int) -> tuple:
        left, top = min(x, image.width - 1), min(y, image.height - 1)
        box = (left, top, min(left + width, image.width), min(top + height, image.height))
        return (image.map(lambda frame: frame.crop(box)),)


@core
class ImageBlur(Node):
    """Interruptible between frames; on the real server only before it starts. The one that needs the device."""

    def run(self, call: Call, image: Batch, blur_radius: int, sigma: float) -> tuple:
        if os.environ.get("STANDIN_DEVICE") == "lost":
            raise RuntimeError("CUDA error: no CUDA-capable device is detected")
        blurred = []
        for frame in image:
            call.check_interrupt()
            blurred.append(frame.filter(ImageFilter.GaussianBlur(min(sigma, blur_radius))))
        return (Batch(blurred),)


@core
class SolidMask(Node):
    def run(self, call: Call, value: float, width: int, height: int) -> tuple:
        return (Batch([Image.new("L", (width, height), round(value * 255))]),)


@core
class InvertMask(Node):
    def run(self, call: Call, mask: Batch) -> tuple:
        return (mask.map(ImageOps.invert),)


@core
class MaskToImage(Node):
    def run(self, call: Call, mask: Batch) -> tuple:
        return (mask.map(lambda plane: plane.convert("RGB")),)


@core
class ImageToMask(Node):
    def run(self, call: Call, image: Batch, channel: str) -> tuple:
        # An IMAGE has three channels here, so "alpha" is taken for full opacity.
        band = channel[0].upper()
        return (image.map(lambda frame: frame.convert("RGBA").getchannel(band)),)


@core
class EmptyLatentImage(Node):
    def run(self, call: Call, width: int, height: int, batch_size: int = 1) -> tuple:
        return (Latent((batch_size, 4, height // 8, width // 8)),)


class _Primitive(Node):
    def run(self, call: Call, value: Any) -> tuple:
        return (value,)


@core
class PrimitiveInt(_Primitive):
    pass


@core
class PrimitiveFloat(_Primitive):
    pass


@core
class PrimitiveString(_Primitive):
    pass


@core
class PrimitiveStringMultiline(_Primitive):
    pass


@core
class PrimitiveBoolean(_Primitive):
    pass


@core
class StringConcatenate(Node):
    def run(self, call: Call, string_a: str, string_b: str, delimiter: str) -> tuple:
        return (delimiter.join((string_a, string_b)),)


@core
class PreviewAny(Node):
    def run(self, call: Call, source: Any = None) -> Ui:
        if isinstance(source, str):
            text = source
        elif source is None or isinstance(source, (int, float, bool)):
            text = str(source)
        else:
            try:
                text = json.dumps(source)
            except (TypeError, ValueError):
                text = str(source)
        return Ui({"text": [text]})
