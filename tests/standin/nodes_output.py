"""Nodes of the real server that write files or send pictures: everything with `output_node`."""
from __future__ import annotations

import json
import random
import string
import time
from typing import Any, Optional

from PIL import Image
from PIL.PngImagePlugin import PngInfo

import media
from folders import Folders
from images import Batch, Latent
from node import Call, Node, Ui, core

WEBP_METHODS = {"default": 4, "fastest": 0, "slowest": 6}
EXIF_MODEL, EXIF_MAKE = 0x0110, 0x010F  # where ComfyUI hides prompt and workflow in a WebP


def file_item(filename: str, subfolder: str, kind: str = "output") -> dict[str, str]:
    """A file as it stands in a history's outputs."""
    return {"filename": filename, "subfolder": subfolder, "type": kind}


def embedded(prompt: Optional[dict], extra_pnginfo: Optional[dict]) -> dict[str, str]:
    """What gets embedded into a file, as JSON: the prompt, and `extra_pnginfo` (the workflow among it)."""
    return {key: json.dumps(value) for key, value in {"prompt": prompt, **(extra_pnginfo or {})}.items()}


class _PngNode(Node):
    KIND = "output"
    COMPRESS_LEVEL = 4

    def save(self, images: Batch, prefix: str, root: str, metadata: dict[str, str]) -> Ui:
        text = PngInfo()
        for key, value in metadata.items():
            text.add_text(key, value)
        name = self.folders.next_output(prefix, root, images.width, images.height)
        items = []
        for number, picture in enumerate(images):
            file = name.take(".png", number)
            picture.save(name.path(file), pnginfo=text, compress_level=self.COMPRESS_LEVEL)
            items.append(file_item(file, name.subfolder, self.KIND))
        return Ui({"images": items})


@core
class SaveImage(_PngNode):
    def run(self, call: Call, images: Batch, filename_prefix: str = "ComfyUI",
            prompt: Any = None, extra_pnginfo: Any = None) -> Ui:
        return self.save(images, filename_prefix, self.folders.output, embedded(prompt, extra_pnginfo))


@core
class PreviewImage(_PngNode):
    KIND = "temp"
    COMPRESS_LEVEL = 1

    def __init__(self, folders: Folders) -> None:
        super().__init__(folders)
        # One random suffix per instance: the same node keeps its prefix from prompt to prompt.
        self.prefix = "ComfyUI_temp_" + "".join(random.choices(string.ascii_lowercase, k=5))

    def run(self, call: Call, images: Batch, prompt: Any = None, extra_pnginfo: Any = None) -> Ui:
        return self.save(images, self.prefix, self.folders.temp, embedded(prompt, extra_pnginfo))


@core
class SaveAnimatedWEBP(Node):
    def run(self, call: Call, images: Batch, filename_prefix: str, fps: float, lossless: bool, quality: int,
            method: str, prompt: Any = None, extra_pnginfo: Any = None) -> Ui:
        exif = Image.Exif()
        exif[EXIF_MODEL] = "prompt:" + json.dumps(prompt)
        for tag, (key, value) in enumerate((extra_pnginfo or {}).items()):
            exif[EXIF_MAKE - tag] = f"{key}:{json.dumps(value)}"
        name = self.folders.next_output(filename_prefix, self.folders.output, images.width, images.height)
        file = name.take(".webp")
        images.frames[0].save(
            name.path(file), save_all=True, append_images=images.frames[1:], duration=int(1000 / fps), exif=exif,
            lossless=lossless, quality=quality, method=WEBP_METHODS[method])
        return Ui({"images": [file_item(file, name.subfolder)], "animated": [len(images) != 1]})


@core
class SaveAnimatedPNG(Node):
    def run(self, call: Call, images: Batch, filename_prefix: str, fps: float, compress_level: int,
            prompt: Any = None, extra_pnginfo: Any = None) -> Ui:
        text = PngInfo()
        for key, value in embedded(prompt, extra_pnginfo).items():
            # After the pixels: Pillow would write a text chunk once a frame otherwise.
            text.add(b"comf", key.encode("latin-1") + b"\0" + value.encode("latin-1"), after_idat=True)
        name = self.folders.next_output(filename_prefix, self.folders.output, images.width, images.height)
        file = name.take(".png")
        images.frames[0].save(
            name.path(file), pnginfo=text, compress_level=compress_level, save_all=True,
            duration=int(1000 / fps), append_images=images.frames[1:])
        return Ui({"images": [file_item(file, name.subfolder)], "animated": [True]})


@core
class SaveImageWebsocket(Node):
    """Its pictures exist only as binary frames, at full size, in PNG."""

    # Never cached: nobody could ask for the frames again.
    IS_CHANGED = staticmethod(lambda folders, **inputs: time.time())

    def run(self, call: Call, images: Batch) -> Optional[Ui]:
        for number, picture in enumerate(images):
            call.progress(number, len(images), ("PNG", picture))
        return Ui({})


@core
class SaveLatent(Node):
    def run(self, call: Call, samples: Latent, filename_prefix: str = "ComfyUI",
            prompt: Any = None, extra_pnginfo: Any = None) -> Ui:
        name = self.folders.next_output(filename_prefix, self.folders.output)
        file = name.take(".latent")
        media.write_safetensors(name.path(file), samples.shape, embedded(prompt, extra_pnginfo))
        return Ui({"latents": [file_item(file, name.subfolder)]})


class Video:
    """A VIDEO value: frames and their rate."""

    def __init__(self, images: Batch, fps: float) -> None:
        self.images, self.fps = images, fps


@core
class CreateVideo(Node):
    def run(self, call: Call, images: Batch, fps: float, audio: Any = None) -> tuple:
        return (Video(images, fps),)


@core
class SaveVideo(Node):
    """Same name and answer as the real one, but the file holds Motion JPEG, not H.264 (see media.py)."""

    def run(self, call: Call, video: Video, filename_prefix: str, format: str, codec: str,
            prompt: Any = None, extra_pnginfo: Any = None) -> Ui:
        if format not in ("auto", "mp4"):  # not checked before: the server knows no list for this kind of input
            raise ValueError(f"'{format}' is not a valid VideoContainer")
        width, height = video.images.width, video.images.height
        name = self.folders.next_output(filename_prefix, self.folders.output, width, height)
        file = name.take(".mp4")
        media.write_mp4(name.path(file), video.images.frames, video.fps)
        return Ui({"images": [file_item(file, name.subfolder)], "animated": [True]})
