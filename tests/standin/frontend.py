"""What the frontend's page asks for beside prompts: its own files, extensions, settings, logs.

The page is the PyPI package comfyui-frontend-package, the same that the real server serves.
"""
from __future__ import annotations

import glob
import logging
import mimetypes
import os
from collections import deque
from datetime import datetime
from importlib import metadata, resources
from typing import Callable, Optional

from aiohttp import web

from folders import MODEL_FOLDERS, Folders
from userdata import UserData

LOG_LINES_KEPT = 300
NO_CACHE = {"Cache-Control": "no-cache", "Pragma": "no-cache", "Expires": "0"}


def installed_version(package: str) -> Optional[str]:
    """Version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def package_folder(package: str, subfolder: str) -> Optional[str]:
    """A folder of static files inside an installed package, or None."""
    try:
        folder = str(resources.files(package) / subfolder)
    except ModuleNotFoundError:
        return None
    return folder if os.path.isdir(folder) else None


class LogKeeper(logging.Handler):
    """Keeps the last lines for /internal/logs."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque = deque(maxlen=LOG_LINES_KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append({"t": datetime.now().isoformat(), "m": record.getMessage() + "\n"})


def routes(folders: Folders, web_root: Optional[str]) -> Callable[[web.RouteTableDef], None]:
    """The routes of this module that also exist under /api."""

    def add(table: web.RouteTableDef) -> None:
        UserData(folders).add_routes(table)

        @table.get("/")
        async def index(request: web.Request) -> web.StreamResponse:
            if web_root is None:
                return web.Response(status=404, text="comfyui-frontend-package is not installed")
            return web.FileResponse(os.path.join(web_root, "index.html"), headers=NO_CACHE)

        @table.get("/extensions")
        async def extensions(request: web.Request) -> web.Response:
            root = web_root or ""
            found = glob.glob(os.path.join(glob.escape(root), "extensions/**/*.js"), recursive=True)
            return web.json_response(["/" + os.path.relpath(path, root) for path in found])

        @table.get("/workflow_templates")
        async def workflow_templates(request: web.Request) -> web.Response:
            return web.json_response({})  # those of custom nodes; the stand-in loads none

        @table.get("/i18n")
        async def translations(request: web.Request) -> web.Response:
            return web.json_response({})

        @table.get("/experiment/models")
        async def model_folders(request: web.Request) -> web.Response:
            kinds = [kind for kind in MODEL_FOLDERS if kind not in ("configs", "custom_nodes")]
            return web.json_response([{"name": kind, "folders": folders.model_paths(kind)} for kind in kinds])

        @table.get("/experiment/models/{kind}")
        async def model_files(request: web.Request) -> web.Response:
            kind = request.match_info["kind"]
            if kind not in MODEL_FOLDERS:
                return web.Response(status=404)
            found = []
            for index, root in enumerate(folders.model_paths(kind) or []):
                for name in folders.list_models(kind) or []:
                    path = os.path.join(root, name)
                    if os.path.isfile(path):
                        found.append({"name": name, "pathIndex": index, "modified": os.path.getmtime(path),
                                      "created": os.path.getctime(path), "size": os.path.getsize(path)})
            return web.json_response(found)

    return add


def add_static(app: web.Application, folders: Folders, web_root: Optional[str]) -> None:
    """Everything without an /api twin: /internal, templates, docs and the page's own files, in this order."""
    mimetypes.add_type("application/javascript; charset=utf-8", ".js")
    mimetypes.add_type("image/webp", ".webp")
    app.add_subapp("/internal", _internal(folders))
    templates = package_folder("comfyui_workflow_templates", "templates")
    if templates:
        app.add_routes([web.static("/templates", templates)])
    else:
        # The page asks for this list on its first visit and complains about a 404.
        app.add_routes([web.get("/templates/index.json", _no_templates)])
    docs = package_folder("comfyui_embedded_docs", "docs")
    if docs:
        app.add_routes([web.static("/docs", docs)])
    if web_root:
        app.add_routes([web.static("/", web_root)])


async def _no_templates(request: web.Request) -> web.Response:
    return web.json_response([])


def _internal(folders: Folders) -> web.Application:
    keeper = LogKeeper()
    logging.getLogger().addHandler(keeper)
    table = web.RouteTableDef()

    @table.get("/logs")
    async def logs(request: web.Request) -> web.Response:
        return web.json_response("".join(f"{line['t']} - {line['m']}" for line in keeper.lines))

    @table.get("/logs/raw")
    async def raw_logs(request: web.Request) -> web.Response:
        return web.json_response({"entries": list(keeper.lines), "size": {"cols": 80, "rows": 24}})

    @table.patch("/logs/subscribe")
    async def subscribe(request: web.Request) -> web.Response:
        return web.Response()  # accepted; the stand-in sends no `logs` frames

    @table.get("/folder_paths")
    async def folder_paths(request: web.Request) -> web.Response:
        return web.json_response({kind: folders.model_paths(kind) for kind in MODEL_FOLDERS})

    @table.get("/files/{kind}")
    async def newest_files(request: web.Request) -> web.Response:
        root = folders.by_type(request.match_info["kind"])
        if root is None:
            return web.json_response({"error": "Invalid directory type"}, status=400)
        with os.scandir(root) as entries:
            found = sorted((entry for entry in entries if entry.is_file()), key=lambda entry: -entry.stat().st_mtime)
        return web.json_response([entry.name for entry in found])

    app = web.Application()
    app.add_routes(table)
    return app
