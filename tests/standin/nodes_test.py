"""Test nodes that behave: they wait, report, write and read. Those that don't are in nodes_faults.py.

All are output nodes and pass an optional image through, so each can be a prompt of its own or a link in a chain.
All take a `seed`: a new one defeats the execution cache.
"""
from __future__ import annotations

import hashlib
import math
import os
import sys
import time
from base64 import b64decode
from typing import Any, Optional

from PIL import Image, ImageFilter

import frames
import images
from folders import Folders
from images import Batch
from node import Call, Node, Ui, standin
from nodes_output import file_item

POLL_SECONDS = 0.01
PREVIEW_SIDE = 256
IMAGE_INPUT = {"image": ["IMAGE"]}


def seconds_input(default: float) -> list:
    return ["FLOAT", {"default": default, "min": 0.0, "max": 86400.0, "step": 0.01}]


def text_input(default: str = "", multiline: bool = False) -> list:
    return ["STRING", {"default": default, "multiline": multiline}]


def passed(image: Optional[Batch]) -> tuple[Batch]:
    """The image that came in, or a small black one where none did."""
    return (image if image is not None else images.solid(64, 64, 1, 0),)


def unfinished(image: Optional[Batch], share: float) -> Image.Image:
    """What a sampler shows on its way: the picture, small and blurred at first; without one a grey that gets lighter."""
    if image is None:
        return images.solid(64, 64, 1, round(255 * share) * 0x010101).frames[0]
    picture = image.frames[0].copy()
    picture.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    return picture.filter(ImageFilter.GaussianBlur(12 * (1 - share)))


def sleep(call: Call, seconds: float) -> None:
    """Wait, looking for an interrupt every 10 ms."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        call.check_interrupt()
        time.sleep(min(left, POLL_SECONDS))


@standin({"seconds": seconds_input(1.0)}, ("IMAGE",), output_node=True, optional=IMAGE_INPUT)
class StandinSleep(Node):
    """Waits, interruptibly, then passes its image through."""

    def run(self, call: Call, seconds: float, image: Optional[Batch] = None, seed: int = 0) -> tuple:
        sleep(call, seconds)
        return passed(image)


@standin(
    {"steps": ["INT", {"default": 10, "min": 1, "max": 100_000}], "seconds": seconds_input(1.0),
     "previews": ["BOOLEAN", {"default": True}], "text": text_input()},
    ("IMAGE",), output_node=True, optional=IMAGE_INPUT)
class StandinProgress(Node):
    """Reports progress like a sampler: `progress` frames, JPEG previews of its image as it gets clear, and a line
    of text (binary frame 3)."""

    def run(self, call: Call, steps: int, seconds: float, previews: bool, text: str,
            image: Optional[Batch] = None, seed: int = 0) -> tuple:
        for step in range(1, steps + 1):
            sleep(call, seconds / steps)
            preview = ("JPEG", unfinished(image, step / steps)) if previews else None
            call.progress(step, steps, preview)
            if text:
                line = f"{text} {step}/{steps}"
                call.server.hub.send_raw(frames.progress_text(call.node_id, line), call.server.hub.client_id)
        return passed(image)


@standin({"text": text_input("hello", multiline=True)}, ("STRING",), output_node=True)
class StandinText(Node):
    """Shows a text (key `text`) and passes it on."""

    def run(self, call: Call, text: str, seed: int = 0) -> Ui:
        return Ui({"text": [text]}, (text,))


@standin({"base64": text_input()}, ("IMAGE",), output_node=True, optional=IMAGE_INPUT)
class StandinPrint(Node):
    """Writes bytes to standard output, whatever they are."""

    def run(self, call: Call, base64: str, image: Optional[Batch] = None, seed: int = 0) -> tuple:
        sys.stdout.flush()
        sys.stdout.buffer.write(b64decode(base64))
        sys.stdout.buffer.flush()
        return passed(image)


@standin({"mode": [["print", "fail", "show"]], "variable": text_input()}, ("IMAGE",), output_node=True,
         optional=IMAGE_INPUT, hidden={"api_key": "API_KEY_COMFY_ORG"})
class StandinTell(Node):
    """Tells the job's API key and the value of a variable: on both outputs, in an exception, or (the key's length) as a text."""

    def run(self, call: Call, mode: str, variable: str, image: Optional[Batch] = None, seed: int = 0,
            api_key: Optional[str] = None) -> Any:
        told = f"key {api_key} {variable} {os.environ.get(variable)}"
        if mode == "show":
            return Ui({"text": [str(len(api_key or ""))]}, passed(image))
        if mode == "fail":
            raise RuntimeError(told)
        print(told, flush=True)
        print(told, file=sys.stderr, flush=True)
        return passed(image)


@standin({"mode": [["progress", "event", "output"]]}, ("IMAGE",), output_node=True, optional=IMAGE_INPUT)
class StandinNaN(Node):
    """Puts bare NaN and Infinity into a progress frame, a frame of its own type, or its output and so the history."""

    def run(self, call: Call, mode: str, image: Optional[Batch] = None, seed: int = 0) -> Any:
        if mode == "progress":
            call.progress(math.nan, math.inf)
        elif mode == "event":
            frame = '{"type": "standin_nan", "data": {"value": NaN, "max": Infinity, "min": -Infinity}}'
            call.server.hub.send_raw(frames.Raw(frame), call.server.hub.client_id)
        else:
            return Ui({"numbers": [math.nan, math.inf, 1.5], "text": ["after NaN"]}, passed(image))
        return passed(image)


@standin({"levels": ["INT", {"default": 1, "min": 0, "max": 1_000_000}]}, ("IMAGE",), output_node=True,
         optional=IMAGE_INPUT)
class StandinDeep(Node):
    """Shows lists within lists. From about a thousand on Python cannot write them as JSON: the history is a 500."""

    def run(self, call: Call, levels: int, image: Optional[Batch] = None, seed: int = 0) -> Ui:
        value: list = []
        for _ in range(levels):
            value = [value]
        return Ui({"deep": value, "text": ["beside it"]}, passed(image))


@standin({}, ("IMAGE",), output_node=True, optional=IMAGE_INPUT)
class StandinWebsocketImage(Node):
    """Sends its picture over the websocket only, and once: it is remembered, as nodes are that know no IS_CHANGED."""

    def run(self, call: Call, image: Optional[Batch] = None, seed: int = 0) -> Ui:
        call.progress(0, 1, ("PNG", passed(image)[0].frames[0]))
        return Ui({}, passed(image))


@standin({"message": text_input("blocked")}, ("IMAGE",), output_node=True, optional=IMAGE_INPUT)
class StandinBlocked(Node):
    """Sends an execution_error of type ExecutionBlocked, which does not end the prompt."""

    def run(self, call: Call, message: str, image: Optional[Batch] = None, seed: int = 0) -> tuple:
        executor = call.server.executor
        call.server.hub.send("execution_error", {
            "prompt_id": executor.prompt_ids[-1], "node_id": call.node_id, "node_type": "StandinBlocked",
            "executed": [], "exception_message": f"Execution Blocked: {message}",
            "exception_type": "ExecutionBlocked", "traceback": [], "current_inputs": [], "current_outputs": [],
        }, call.server.hub.client_id)
        return passed(image)


@standin(
    {"key": text_input("gifs"), "filename_prefix": text_input("standin"), "extension": text_input("bin"),
     "count": ["INT", {"default": 1, "min": 0, "max": 1000}], "type": [["output", "temp", "input"]]},
    ("IMAGE",), output_node=True, optional=IMAGE_INPUT)
class StandinCustomOutput(Node):
    """Lists small files under any key of the outputs: gifs, audio, video, 3d, result, …"""

    def run(self, call: Call, key: str, filename_prefix: str, extension: str, count: int, type: str,
            image: Optional[Batch] = None, seed: int = 0) -> Ui:
        root = self.folders.by_type(type)
        assert root is not None
        name = self.folders.next_output(filename_prefix, root)
        items = []
        for number in range(count):
            file = name.take(f".{extension}")
            with open(name.path(file), "wb") as output:
                output.write(f"{key} {number} of seed {seed}\n".encode())
            items.append(file_item(file, name.subfolder, type))
        return Ui({key: items}, passed(image))


@standin(
    {"megabytes": ["FLOAT", {"default": 1.0, "min": 0.0, "max": 100_000.0}], "filename_prefix": text_input("large")},
    ("IMAGE",), output_node=True, optional=IMAGE_INPUT)
class StandinWriteLarge(Node):
    """Writes a file of so many MiB that does not compress (key `files`); equal seeds give equal bytes."""

    def run(self, call: Call, megabytes: float, filename_prefix: str,
            image: Optional[Batch] = None, seed: int = 0) -> Ui:
        left = round(megabytes * frames.MIB)
        name = self.folders.next_output(filename_prefix, self.folders.output)
        file = name.take(".bin")
        with open(name.path(file), "wb") as output:
            number = 0
            while left > 0:
                call.check_interrupt()
                block = hashlib.shake_256(f"{seed} {number}".encode()).digest(min(left, frames.MIB))
                output.write(block)
                left -= len(block)
                number += 1
        return Ui({"files": [file_item(file, name.subfolder)]}, passed(image))


@standin({"file": text_input()}, ("STRING",), output_node=True)
class StandinInputRead(Node):
    """Reads any file of input/ ("sub/x.bin", "x.png [output]") and shows its SHA-256 and size."""

    VALIDATED = ("file",)

    @staticmethod
    def VALIDATE_INPUTS(folders: Folders, file: Optional[str]) -> Any:
        if file is None or os.path.isfile(folders.annotated_path(file)):
            return True
        return f"Invalid file: {file}"

    @staticmethod
    def IS_CHANGED(folders: Folders, file: str, **_: Any) -> str:
        return images.file_digest(folders.annotated_path(file))

    def run(self, call: Call, file: str, seed: int = 0) -> Ui:
        path = self.folders.annotated_path(file)
        text = f"{images.file_digest(path)} {os.path.getsize(path)}"
        return Ui({"text": [text]}, (text,))


@standin(
    {"file": text_input(), "seconds": seconds_input(0.2),
     "megabytes": ["FLOAT", {"default": 8.0, "min": 0.0, "max": 100_000.0}], "filename_prefix": text_input("work")},
    ("IMAGE",), output_node=True, optional=IMAGE_INPUT)
class StandinWork(Node):
    """What a GPU job is to everybody else: reads a file of input/ (if named), computes (sleeps), writes a file."""

    def run(self, call: Call, file: str, seconds: float, megabytes: float, filename_prefix: str,
            image: Optional[Batch] = None, seed: int = 0) -> Ui:
        if file:
            with open(self.folders.annotated_path(file), "rb") as source:
                while source.read(frames.MIB):
                    call.check_interrupt()
        sleep(call, seconds)
        left = round(megabytes * frames.MIB)
        if not left:
            return Ui({}, passed(image))
        name = self.folders.next_output(filename_prefix, self.folders.output)
        target = name.take(".bin")
        block = hashlib.shake_256(str(seed).encode()).digest(frames.MIB)
        with open(name.path(target), "wb") as output:
            for start in range(0, left, frames.MIB):
                call.check_interrupt()
                output.write(block[:left - start])
        return Ui({"files": [file_item(target, name.subfolder)]}, passed(image))
