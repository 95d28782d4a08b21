"""Prompts, queue, history and control over HTTP; assembles the whole application.

Every route exists bare and under /api, except /internal/* and static files.
"""
from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
import uuid
from typing import Any, Awaitable, Callable, Optional
from urllib.parse import urlsplit

from aiohttp import web

import control
import files
import frontend
from execution import Executor, InterruptFlag
from folders import Folders
from frames import MIB, Hub
from node import KINDS
from prompt_queue import Item, PromptQueue
from validation import validate_prompt

COMFYUI_VERSION = "0.3.64"
FRONTEND_VERSION = "1.27.10"
TEMPLATES_VERSION = "0.1.95"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class PromptServer:
    """One stand-in: its state and its application. Create it inside the event loop that will serve it."""

    def __init__(self, folders: Folders, web_root: Optional[str], max_upload_megabytes: float) -> None:
        loop = asyncio.get_running_loop()
        max_upload_bytes = round(max_upload_megabytes * MIB)
        self.folders = folders
        self.faults = control.Faults()
        self.interrupt = InterruptFlag()
        self.hub = Hub(loop, max_upload_bytes)
        self.queue = PromptQueue(self.hub.announce_queue)
        self.hub.queue_status = self.queue_status
        self.executor = Executor(self, self.queue, folders)
        self._next_number = 0
        self.app = web.Application(client_max_size=max_upload_bytes, middlewares=[_cache_control, _same_origin])
        routes = web.RouteTableDef()
        for add in (self._add_routes, files.routes(folders), frontend.routes(folders, web_root), control.routes(self)):
            add(routes)
        twins = [web.route(route.method, "/api" + route.path, route.handler)
                 for route in routes if isinstance(route, web.RouteDef)]
        self.app.add_routes([*twins, *routes])
        frontend.add_static(self.app, folders, web_root)

    def start_prompt_thread(self) -> None:
        def prompt_worker() -> None:  # its name is seen when an exception ends the thread
            self.executor.work()

        threading.Thread(target=prompt_worker, daemon=True).start()

    def queue_status(self) -> dict:
        return {"exec_info": {"queue_remaining": self.queue.remaining()}}

    def _add_routes(self, routes: web.RouteTableDef) -> None:
        table: list[tuple[str, str, Handler]] = [
            ("GET", "/ws", self.hub.handle),
            ("GET", "/prompt", self._get_prompt),
            ("POST", "/prompt", self._post_prompt),
            ("GET", "/queue", self._get_queue),
            ("POST", "/queue", self._post_queue),
            ("GET", "/history", self._get_history),
            ("GET", "/history/{prompt_id}", self._get_history),
            ("POST", "/history", self._post_history),
            ("POST", "/interrupt", self._post_interrupt),
            ("POST", "/free", self._post_free),
            ("GET", "/object_info", self._object_info),
            ("GET", "/object_info/{node_class}", self._object_info),
            ("GET", "/system_stats", self._system_stats),
            ("GET", "/features", self._features),
        ]
        for method, path, handler in table:
            routes.route(method, path)(handler)

    # --- prompts ---

    async def _get_prompt(self, request: web.Request) -> web.Response:
        return web.json_response(self.queue_status())

    async def _post_prompt(self, request: web.Request) -> web.StreamResponse:
        """Queue a prompt. A body that is no JSON, or no object where one must be, ends in a 500."""
        logging.info("got prompt")
        body: Any = await request.json()
        number = self._number(body)
        if "prompt" not in body:
            return _error_response({"type": "no_prompt", "message": "No prompt provided",
                                    "details": "No prompt provided", "extra_info": {}}, {})
        prompt_id = str(body.get("prompt_id", uuid.uuid4()))
        verdict = validate_prompt(body["prompt"], self.folders, body.get("partial_execution_targets"))
        extra_data = body.get("extra_data", {})
        if "client_id" in body:
            extra_data["client_id"] = body["client_id"]
        if verdict.error is not None:
            logging.warning("invalid prompt: %s", verdict.error)
            return _error_response(verdict.error, verdict.node_errors)
        self.queue.put(Item(number, prompt_id, body["prompt"], extra_data, verdict.outputs))
        if self.faults.lose_next_prompt_response:
            self.faults.lose_next_prompt_response = False
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({"prompt_id": prompt_id, "number": number, "node_errors": verdict.node_errors})

    def _number(self, body: Any) -> float:
        """The place in the queue, lowest first. A refused prompt uses one up, too."""
        if "number" in body:
            return float(body["number"])
        number = self._next_number
        self._next_number += 1
        return -number if "front" in body and body["front"] else number

    # --- queue and history ---

    async def _get_queue(self, request: web.Request) -> web.Response:
        return web.json_response(self.queue.listing())

    async def _post_queue(self, request: web.Request) -> web.Response:
        body = await request.json()
        # `in`, because a body that is a list or a string passes for an empty one.
        if "clear" in body and body["clear"]:
            self.queue.clear()
        for prompt_id in body["delete"] if "delete" in body else ():
            self.queue.delete(prompt_id)
        return web.Response()

    async def _get_history(self, request: web.Request) -> web.Response:
        if "prompt_id" in request.match_info:
            if self.faults.break_history:
                # What a node's output does that is no JSON.
                return web.Response(status=500, text="500 Internal Server Error")
            return web.json_response(self.queue.history(request.match_info["prompt_id"]))
        max_items = request.query.get("max_items")
        return web.json_response(self.queue.history(
            max_items=None if max_items is None else int(max_items), offset=int(request.query.get("offset", -1))))

    async def _post_history(self, request: web.Request) -> web.Response:
        body = await request.json()
        if "clear" in body and body["clear"]:
            self.queue.clear_history()
        for prompt_id in body["delete"] if "delete" in body else ():
            self.queue.delete_history(prompt_id)
        return web.Response()

    async def _post_interrupt(self, request: web.Request) -> web.Response:
        """Interrupt the running prompt, or only the one named. Always 200, also when nothing matched."""
        try:
            body = await request.json()
        except json.JSONDecodeError:
            body = {}
        prompt_id = body.get("prompt_id")
        if not prompt_id:
            logging.info("Global interrupt (no prompt_id specified)")
            self.interrupt.set()
        elif self.queue.is_running(prompt_id):
            logging.info("Interrupting prompt %s", prompt_id)
            self.interrupt.set()
        else:
            logging.info("Prompt %s is not currently running, skipping interrupt", prompt_id)
        return web.Response()

    async def _post_free(self, request: web.Request) -> web.Response:
        body = await request.json()
        for flag in ("unload_models", "free_memory"):
            if body.get(flag, False):
                self.queue.set_flag(flag)
        return web.Response()

    # --- about the server ---

    async def _object_info(self, request: web.Request) -> web.Response:
        wanted = request.match_info.get("node_class")
        kinds = KINDS.values() if wanted is None else [KINDS[wanted]] if wanted in KINDS else []
        return web.json_response({kind.name: kind.info(self.folders) for kind in kinds})

    async def _system_stats(self, request: web.Request) -> web.Response:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
        device = {"name": "cpu", "type": "cpu", "index": None, "vram_total": memory, "vram_free": free,
                  "torch_vram_total": memory, "torch_vram_free": free}
        system = {
            "os": os.name, "ram_total": memory, "ram_free": free, "comfyui_version": COMFYUI_VERSION,
            "required_frontend_version": FRONTEND_VERSION,
            "installed_templates_version": frontend.installed_version("comfyui-workflow-templates"),
            "required_templates_version": TEMPLATES_VERSION, "python_version": sys.version,
            "pytorch_version": "stand-in", "embedded_python": False, "argv": sys.argv,
            "standin": True,  # the one key the real server does not have
        }
        return web.json_response({"system": system, "devices": [device]})

    async def _features(self, request: web.Request) -> web.Response:
        return web.json_response(self.hub.features)


def _error_response(error: dict, node_errors: dict) -> web.Response:
    return web.json_response({"error": error, "node_errors": node_errors}, status=400)


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


@web.middleware
async def _cache_control(request: web.Request, handler: Handler) -> web.StreamResponse:
    response = await handler(request)
    name = request.path.rsplit("/", 1)[-1]
    if name.endswith((".js", ".css")) or (name.startswith("index") and name.endswith(".json")):
        response.headers.setdefault("Cache-Control", "no-cache")
    elif name.lower().endswith(IMAGE_SUFFIXES) and response.status in (200, 206):
        response.headers.setdefault("Cache-Control", "public, max-age=86400")
    return response


@web.middleware
async def _same_origin(request: web.Request, handler: Handler) -> web.StreamResponse:
    """403 when a page of another origin speaks to a loopback server: Host and Origin must agree."""
    host, origin = request.headers.get("Host"), request.headers.get("Origin")
    if host and origin:
        ours, theirs = urlsplit("//" + host.lower()), urlsplit(origin.lower())
        loopback = ours.hostname in ("localhost", "::1") or (ours.hostname or "").startswith("127.")
        both_ports = ours.port is not None and theirs.port is not None
        same = ours.netloc == theirs.netloc if both_ports else ours.hostname == theirs.hostname
        if loopback and theirs.netloc and not same:
            logging.warning("WARNING: request with non matching host and origin %s != %s, returning 403", host, origin)
            return web.Response(status=403)
    if request.method == "OPTIONS":
        return web.Response()
    return await handler(request)
