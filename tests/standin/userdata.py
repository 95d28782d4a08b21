"""Settings and user files, stored under ./user/default as the frontend expects them."""
from __future__ import annotations

import glob
import json
import os
import shutil
from typing import Any, Optional, Union
from urllib.parse import unquote

from aiohttp import web

from folders import Folders


class UserData:
    """The one user "default". Every path is checked to stay under `root`."""

    def __init__(self, folders: Folders) -> None:
        self.root = os.path.join(folders.user, "default")
        self._settings_file = os.path.join(self.root, "comfy.settings.json")

    def add_routes(self, table: web.RouteTableDef) -> None:
        for method, path, handler in (
            ("GET", "/users", self.users),
            ("GET", "/settings", self.get_settings),
            ("GET", "/settings/{id}", self.get_setting),
            ("POST", "/settings", self.post_settings),
            ("POST", "/settings/{id}", self.post_setting),
            ("GET", "/userdata", self.list),
            ("GET", "/v2/userdata", self.list_tree),
            ("GET", "/userdata/{file}", self.get),
            ("POST", "/userdata/{file}", self.post),
            ("DELETE", "/userdata/{file}", self.delete),
            ("POST", "/userdata/{file}/move/{dest}", self.move),
        ):
            table.route(method, path)(handler)

    async def users(self, request: web.Request) -> web.Response:
        return web.json_response({"storage": "server", "migrated": os.path.exists(self.root)})

    # --- settings ---

    def _settings(self) -> dict[str, Any]:
        try:
            with open(self._settings_file, encoding="utf-8") as file:
                return json.load(file)
        except (FileNotFoundError, json.JSONDecodeError):
            return {}

    def _store(self, settings: dict[str, Any]) -> web.Response:
        os.makedirs(self.root, exist_ok=True)
        with open(self._settings_file, "w", encoding="utf-8") as file:
            json.dump(settings, file, indent=4)
        return web.Response()

    async def get_settings(self, request: web.Request) -> web.Response:
        return web.json_response(self._settings())

    async def get_setting(self, request: web.Request) -> web.Response:
        return web.json_response(self._settings().get(request.match_info["id"]))

    async def post_settings(self, request: web.Request) -> web.Response:
        return self._store({**self._settings(), **await request.json()})

    async def post_setting(self, request: web.Request) -> web.Response:
        return self._store({**self._settings(), request.match_info["id"]: await request.json()})

    # --- files ---

    def _path(self, name: str) -> Optional[str]:
        """Absolute path of a user file, or None when it would lead out."""
        path = os.path.abspath(os.path.join(self.root, unquote(name) if "%" in name else name))
        return path if os.path.commonpath((self.root, path)) == self.root else None

    def _existing(self, request: web.Request) -> Union[str, web.Response]:
        path = self._path(request.match_info["file"])
        if path is None:
            return web.Response(status=403)
        return path if os.path.exists(path) else web.Response(status=404)

    async def list(self, request: web.Request) -> web.Response:
        query = request.query
        if not query.get("dir"):
            return web.Response(status=400, text="Directory not provided")
        folder = self._path(query["dir"])
        if folder is None:
            return web.Response(status=403, text="Invalid directory")
        if not os.path.exists(folder):
            return web.Response(status=404, text="Directory not found")
        recurse, full, split = (query.get(key, "").lower() == "true" for key in ("recurse", "full_info", "split"))
        pattern = os.path.join(glob.escape(folder), "**/*" if recurse else "*")
        found: list[Any] = []
        for path in glob.glob(pattern, recursive=recurse):
            if os.path.isfile(path):
                name = os.path.relpath(path, folder)
                found.append(_file_info(path, folder) if full else [name, *name.split("/")] if split else name)
        return web.json_response(found)

    async def list_tree(self, request: web.Request) -> web.Response:
        name = unquote(request.query.get("path", ""))
        folder = self._path(name)
        if folder is None:
            return web.Response(status=400, text="Invalid path requested")
        if not os.path.exists(folder):
            if folder == self.root:
                return web.json_response([])
            return web.Response(status=404, text="Requested path not found")
        if not os.path.isdir(folder):
            return web.Response(status=400, text="Requested path is not a directory")
        found: list[dict[str, Any]] = []
        for here, folders, names in os.walk(folder):
            for each in folders:
                path = os.path.relpath(os.path.join(here, each), self.root)
                found.append({"name": each, "path": path, "type": "directory"})
            for each in names:
                full = os.path.join(here, each)
                found.append({"name": each, "path": os.path.relpath(full, self.root), "type": "file",
                              "size": os.path.getsize(full), "modified": os.path.getmtime(full)})
        found.sort(key=lambda entry: (entry["type"] != "directory", entry["name"].lower()))
        return web.json_response(found)

    async def get(self, request: web.Request) -> web.StreamResponse:
        path = self._existing(request)
        return web.FileResponse(path) if isinstance(path, str) else path

    async def post(self, request: web.Request) -> web.Response:
        path = self._path(request.match_info["file"])
        if path is None:
            return web.Response(status=403)
        if request.query.get("overwrite") == "false" and os.path.exists(path):
            return web.Response(status=409, text="File already exists")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(await request.read())
        return self._answer(request, path)

    async def delete(self, request: web.Request) -> web.Response:
        path = self._existing(request)
        if not isinstance(path, str):
            return path
        os.remove(path)
        return web.Response(status=204)

    async def move(self, request: web.Request) -> web.Response:
        source, target = self._existing(request), self._path(request.match_info["dest"])
        if not isinstance(source, str):
            return source
        if target is None:
            return web.Response(status=403)
        if request.query.get("overwrite") == "false" and os.path.exists(target):
            return web.Response(status=409, text="File already exists")
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.move(source, target)
        return self._answer(request, target)

    def _answer(self, request: web.Request, path: str) -> web.Response:
        full = request.query.get("full_info", "").lower() == "true"
        return web.json_response(_file_info(path, self.root) if full else os.path.relpath(path, self.root))


def _file_info(path: str, root: str) -> dict[str, Any]:
    return {"path": os.path.relpath(path, root), "size": os.path.getsize(path),
            "modified": os.path.getmtime(path), "created": os.path.getctime(path)}
