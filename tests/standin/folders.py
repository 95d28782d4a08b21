"""The working folder: where inputs are read, outputs written and models listed.

Names that arrive from outside ("sub/cat.png", "cat.png [output]") become paths only here.
"""
from __future__ import annotations

import json
import logging
import mimetypes
import os
import time
from pathlib import Path
from typing import Optional, Sequence, Tuple

MODEL_SUFFIXES = frozenset({".ckpt", ".pt", ".pt2", ".bin", ".pth", ".safetensors", ".pkl", ".sft"})

# Model folder name -> sub-folders of ./models, in the order GET /models lists them.
MODEL_FOLDERS: dict[str, Tuple[str, ...]] = {
    "checkpoints": ("checkpoints",),
    "configs": ("configs",),
    "loras": ("loras",),
    "vae": ("vae",),
    "text_encoders": ("text_encoders", "clip"),
    "diffusion_models": ("unet", "diffusion_models"),
    "clip_vision": ("clip_vision",),
    "style_models": ("style_models",),
    "embeddings": ("embeddings",),
    "diffusers": ("diffusers",),
    "vae_approx": ("vae_approx",),
    "controlnet": ("controlnet", "t2i_adapter"),
    "gligen": ("gligen",),
    "upscale_models": ("upscale_models",),
    "custom_nodes": (),
    "hypernetworks": ("hypernetworks",),
    "photomaker": ("photomaker",),
    "classifiers": ("classifiers",),
    "model_patches": ("model_patches",),
    "audio_encoders": ("audio_encoders",),
}
# Folders that list something else than weight files; None: any file.
OTHER_SUFFIXES: dict[str, Optional[frozenset]] = {
    "configs": frozenset({".yaml"}),
    "diffusers": frozenset({"folder"}),
    "classifiers": frozenset({""}),
    "custom_nodes": None,
}
# Nodes that save models write them under output/, and there they are found again.
MODELS_IN_OUTPUT = {"checkpoints": "checkpoints", "loras": "loras", "vae": "vae", "text_encoders": "clip",
                    "diffusion_models": "diffusion_models"}
RENAMED_MODEL_FOLDERS = {"unet": "diffusion_models", "clip": "text_encoders"}


class Folders:
    """Every path of one server. `base` is the working folder, absolute."""

    def __init__(self, base: str, output: Optional[str] = None, input: Optional[str] = None,
                 temp: Optional[str] = None, extra_models: Sequence[str] = ()) -> None:
        self.base = os.path.abspath(base)
        self.output = os.path.abspath(output or os.path.join(self.base, "output"))
        self.input = os.path.abspath(input or os.path.join(self.base, "input"))
        # The real server also puts a folder "temp" *into* the one that --temp-directory names.
        self.temp = os.path.abspath(os.path.join(temp or self.base, "temp"))
        self.user = os.path.join(self.base, "user")
        self.models = os.path.join(self.base, "models")
        self.extra_models: dict[str, list[str]] = {}
        for file in extra_models:
            self._read_extra_models(file)

    def _read_extra_models(self, file: str) -> None:
        """A file as `--extra-model-paths-config` names them. YAML in a real server, of which JSON is a part."""
        with open(file, encoding="utf-8") as text:
            for kinds in json.load(text).values():
                base = kinds.pop("base_path")
                for kind, paths in kinds.items():
                    kind = RENAMED_MODEL_FOLDERS.get(kind, kind)
                    self.extra_models.setdefault(kind, []).extend(os.path.join(base, path) for path in paths.split())

    def create(self) -> None:
        """Make the folders that a server needs at boot; temp comes and goes with its files."""
        for path in (self.input, self.output, self.user):
            os.makedirs(path, exist_ok=True)
        for names in MODEL_FOLDERS.values():
            for name in names:
                os.makedirs(os.path.join(self.models, name), exist_ok=True)

    def by_type(self, kind: Optional[str]) -> Optional[str]:
        """The folder of a file item's `type`, or None for a type nobody knows."""
        return {"output": self.output, "input": self.input, "temp": self.temp}.get(kind or "")

    # --- names in prompts -----------------------------------------------------------------

    def split_annotation(self, name: str) -> Tuple[str, Optional[str]]:
        """`cat.png [output]` -> (`cat.png`, the output folder); no annotation -> (name, None)."""
        for kind in ("output", "input", "temp"):
            tag = f"[{kind}]"
            if name.endswith(tag):
                return name[: -len(tag) - 1], self.by_type(kind)
        return name, None

    def annotated_path(self, name: str) -> str:
        """Path of an image that a prompt names.

        Hazard, as on the real 0.3.64: nothing keeps `../` or an absolute name inside.
        """
        bare, folder = self.split_annotation(name)
        return os.path.join(folder or self.input, bare)

    def list_input(self, images_only: bool = True) -> list[str]:
        """Names of the files directly in input/, sorted: what LoadImage offers. Never cached."""
        try:
            with os.scandir(self.input) as entries:
                names = [entry.name for entry in entries if entry.is_file()]
        except FileNotFoundError:
            return []
        if images_only:
            names = [name for name in names if _content_type(name).startswith("image/")]
        return sorted(names)

    # --- names of outputs -----------------------------------------------------------------

    def next_output(self, prefix: str, root: str, width: int = 0, height: int = 0) -> "OutputName":
        """Expand a `filename_prefix` and find the first free counter under `root`.

        Raises with the real server's words when the prefix leads outside of `root`.
        """
        prefix = os.path.normpath(_expand_tokens(prefix, width, height))
        subfolder, stem = os.path.split(prefix)
        folder = os.path.join(root, subfolder)
        absolute = os.path.abspath(folder)
        common = os.path.commonpath((root, absolute))
        if common != root:
            message = (
                "**** ERROR: Saving image outside the output folder is not allowed."
                f"\n full_output_folder: {absolute}"
                f"\n         output_dir: {root}"
                f"\n         commonpath: {common}"
            )
            logging.error(message)
            raise Exception(message)
        os.makedirs(folder, exist_ok=True)
        return OutputName(folder, subfolder, stem, _highest_counter(folder, stem) + 1)

    # --- models ---------------------------------------------------------------------------

    def model_paths(self, kind: str) -> Optional[list[str]]:
        """Folders that hold models of this kind, or None for an unknown kind."""
        kind = RENAMED_MODEL_FOLDERS.get(kind, kind)
        if kind == "custom_nodes":
            return [os.path.join(self.base, "custom_nodes")]
        names = MODEL_FOLDERS.get(kind)
        if names is None:
            return None
        paths = [os.path.join(self.models, name) for name in names]
        if kind in MODELS_IN_OUTPUT:
            paths.append(os.path.join(self.output, MODELS_IN_OUTPUT[kind]))
        return paths + self.extra_models.get(kind, [])

    def list_models(self, kind: str) -> Optional[list[str]]:
        """Model files of a kind, relative names, sorted; read from the disk on every call."""
        roots = self.model_paths(kind)
        if roots is None:
            return None
        suffixes = OTHER_SUFFIXES.get(kind, MODEL_SUFFIXES)
        found = set()
        for root in roots:
            for folder, subfolders, names in os.walk(root, followlinks=True):
                subfolders[:] = [name for name in subfolders if name != ".git"]
                for name in names:
                    if suffixes is None or Path(name).suffix.lower() in suffixes:
                        found.add(os.path.relpath(os.path.join(folder, name), root))
        return sorted(found)


class OutputName:
    """Where a save node writes: folder, the subfolder it reports, and a running counter."""

    def __init__(self, folder: str, subfolder: str, stem: str, counter: int) -> None:
        self.folder, self.subfolder, self.stem, self.counter = folder, subfolder, stem, counter

    def take(self, suffix: str, batch_number: int = 0) -> str:
        """The next file name, such as `shot_00001_.png`."""
        stem = self.stem.replace("%batch_num%", str(batch_number))
        name = f"{stem}_{self.counter:05}_{suffix}"
        self.counter += 1
        return name

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)


def _content_type(name: str) -> str:
    return mimetypes.guess_type(name, strict=False)[0] or ""


def _expand_tokens(prefix: str, width: int, height: int) -> str:
    # %date:…% and %Node.widget% are the frontend's; the server leaves them alone.
    if "%" not in prefix:
        return prefix
    now = time.localtime()
    tokens = {
        "width": str(width), "height": str(height), "year": str(now.tm_year),
        "month": f"{now.tm_mon:02}", "day": f"{now.tm_mday:02}", "hour": f"{now.tm_hour:02}",
        "minute": f"{now.tm_min:02}", "second": f"{now.tm_sec:02}",
    }
    for token, value in tokens.items():
        prefix = prefix.replace(f"%{token}%", value)
    return prefix


def _highest_counter(folder: str, stem: str) -> int:
    """Highest N among `stem_N_…`; a name like `stem_x` counts as 0, so the next is 1."""
    highest = 0
    for name in os.listdir(folder):
        head, rest = name[: len(stem) + 1], name[len(stem) + 1:]
        if head == stem + "_":
            digits = rest.split("_")[0]
            highest = max(highest, int(digits) if digits.isdigit() else 0)
    return highest
