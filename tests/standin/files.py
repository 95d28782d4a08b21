"""Files over HTTP: /view, /upload/image, /upload/mask, /view_metadata and the model lists."""
from __future__ import annotations

import io
import json
import mimetypes
import os
from typing import Any, Callable, Optional

from aiohttp import web
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from folders import MODEL_FOLDERS, Folders

SAFETENSORS_HEADER_LIMIT = 1024 * 1024
# Shown to a browser these could run scripts, so they are sent as downloads.
ACTIVE_CONTENT = {"text/html", "text/html-sandboxed", "application/xhtml+xml", "text/javascript", "text/css"}


class Refused(Exception):
    """A request names something outside of its folder, or nothing at all."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def routes(folders: Folders) -> Callable[[web.RouteTableDef], None]:
    """The routes of this module, to be added to a table."""

    def add(table: web.RouteTableDef) -> None:
        @table.get("/view")
        async def view(request: web.Request) -> web.StreamResponse:
            try:
                path = _viewed_path(folders, request.query)
            except Refused as refusal:
                return web.Response(status=refusal.status)
            return _view(path, request.query) if os.path.isfile(path) else web.Response(status=404)

        @table.post("/upload/image")
        async def upload_image(request: web.Request) -> web.Response:
            return _upload(folders, await request.post(), _copy)

        @table.post("/upload/mask")
        async def upload_mask(request: web.Request) -> web.Response:
            form = await request.post()

            def merge(upload: Any, path: str) -> None:
                reference = json.loads(str(form.get("original_ref")))
                try:
                    _merge_alpha(_viewed_path(folders, {"type": "output", **reference}), upload, path)
                except Refused:
                    pass  # nothing is written, and yet the answer is a 200: so on the real server

            return _upload(folders, form, merge)

        @table.get("/view_metadata/{folder}")
        async def view_metadata(request: web.Request) -> web.Response:
            metadata = _safetensors_metadata(folders, request.match_info["folder"], request.query.get("filename", ""))
            return web.Response(status=404) if metadata is None else web.json_response(metadata)

        @table.get("/embeddings")
        async def embeddings(request: web.Request) -> web.Response:
            return web.json_response([os.path.splitext(name)[0] for name in folders.list_models("embeddings") or []])

        @table.get("/models")
        async def model_kinds(request: web.Request) -> web.Response:
            return web.json_response(list(MODEL_FOLDERS))

        @table.get("/models/{kind}")
        async def models(request: web.Request) -> web.Response:
            kind = request.match_info["kind"]
            if kind not in MODEL_FOLDERS:
                return web.Response(status=404)
            return web.json_response(folders.list_models(kind))

    return add


def _viewed_path(folders: Folders, query: Any) -> str:
    """The file that `filename`, `type` and `subfolder` name. Raises Refused."""
    if "filename" not in query:
        raise Refused(404)
    name, root = folders.split_annotation(query["filename"])
    if not name or name[0] == "/" or ".." in name:
        raise Refused(400)
    root = root or folders.by_type(query.get("type", "output"))
    if root is None:
        raise Refused(400)
    folder = os.path.join(root, query.get("subfolder", ""))
    if os.path.commonpath((os.path.abspath(folder), root)) != root:
        raise Refused(403)
    return os.path.join(folder, os.path.basename(name))


def _view(path: str, query: Any) -> web.StreamResponse:
    channel = query.get("channel", "rgba")
    if "preview" in query:
        return _picture(path, *_preview(path, query["preview"].split(";"), channel, "channel" in query))
    if channel == "rgb":
        with Image.open(path) as picture:
            return _picture(path, "png", _encoded(picture.convert("RGB"), "PNG"))
    if channel == "a":
        with Image.open(path) as picture:
            alpha = picture.getchannel("A") if picture.mode == "RGBA" else Image.new("L", picture.size, 255)
            canvas = Image.new("RGBA", picture.size)
            canvas.putalpha(alpha)
            return _picture(path, "png", _encoded(canvas, "PNG"))
    kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
    kind = "application/octet-stream" if kind in ACTIVE_CONTENT else kind
    return web.FileResponse(path, headers={"Content-Disposition": _disposition(path), "Content-Type": kind})


def _preview(path: str, wanted: list[str], channel: str, has_channel: bool) -> tuple[str, bytes]:
    kind = wanted[0] if wanted[0] in ("webp", "jpeg") and not (has_channel and "a" in channel) else "webp"
    quality = int(wanted[-1]) if wanted[-1].isdigit() else 90
    with Image.open(path) as picture:
        opaque = kind == "jpeg" or (has_channel and channel == "rgb")
        return kind, _encoded(picture.convert("RGB") if opaque else picture, kind, quality=quality)


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def _picture(path: str, kind: str, body: bytes) -> web.Response:
    return web.Response(body=body, content_type=f"image/{kind}", headers={"Content-Disposition": _disposition(path)})


def _disposition(path: str) -> str:
    # A line feed would make aiohttp refuse the header, and with it the whole answer.
    name = os.path.basename(path).replace("\n", "_").replace("\r", "_")
    return f'filename="{name}"'


def _upload(folders: Folders, form: Any, save: Callable[[Any, str], None]) -> web.Response:
    """Store an uploaded picture: an equal file of the name is kept, another one gets ` (1)` unless overwritten."""
    upload = form.get("image")
    kind = form.get("type") or "input"
    root = folders.by_type(kind)
    if root is None:
        raise ValueError(f"unknown upload type {kind}")  # a 500, as on the real server
    if not upload or not upload.file or not upload.filename:  # a text field has no `file`: a 500, too
        return web.Response(status=400)
    name, subfolder = upload.filename, form.get("subfolder", "")
    folder = os.path.join(root, os.path.normpath(subfolder))
    path = os.path.abspath(os.path.join(folder, name))
    if os.path.commonpath((root, path)) != root:
        return web.Response(status=400)
    os.makedirs(folder, exist_ok=True)
    if form.get("overwrite") not in ("true", "1"):
        stem, suffix = os.path.splitext(upload.filename)
        number = 1
        while os.path.exists(path):
            if _same_content(path, upload.file):
                return web.json_response({"name": name, "subfolder": subfolder, "type": kind})
            name = f"{stem} ({number}){suffix}"
            path = os.path.join(folder, name)
            number += 1
    save(upload, path)
    return web.json_response({"name": name, "subfolder": subfolder, "type": kind})


def _same_content(path: str, upload: io.BufferedIOBase) -> bool:
    body = upload.read()
    upload.seek(0)
    with open(path, "rb") as file:
        return file.read() == body


def _copy(upload: Any, path: str) -> None:
    with open(path, "wb") as file:
        file.write(upload.file.read())


def _merge_alpha(original: str, upload: Any, path: str) -> None:
    """Write `original` with the alpha of the uploaded mask, keeping its text chunks."""
    if not os.path.isfile(original):
        return
    with Image.open(original) as picture:
        text = PngInfo()
        for key, value in getattr(picture, "text", {}).items():
            text.add_text(key, value)
        merged = picture.convert("RGBA")
    merged.putalpha(Image.open(upload.file).convert("RGBA").getchannel("A"))
    merged.save(path, compress_level=4, pnginfo=text)


def _safetensors_metadata(folders: Folders, kind: str, name: str) -> Optional[dict]:
    if not name.endswith(".safetensors"):
        return None
    inside = os.path.relpath(os.path.join("/", name), "/")  # `..` cannot climb above the root
    for root in folders.model_paths(kind) or []:
        path = os.path.join(root, inside)
        if os.path.isfile(path):
            with open(path, "rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = file.read(size) if size <= SAFETENSORS_HEADER_LIMIT else b"{}"
            return json.loads(header).get("__metadata__")
    return None
