"""The websocket side: who is connected, and every frame that goes out.

Frames are queued by any thread and sent by one publisher, one after another: as on the real server, a client that
stops reading stalls it for everybody.
"""
from __future__ import annotations

import asyncio
import io
import json
import logging
import struct
import time
import uuid
from typing import Any, Callable, Optional

import aiohttp
from aiohttp import web
from PIL import Image

PREVIEW_IMAGE, TEXT, PREVIEW_IMAGE_WITH_METADATA = 1, 3, 4  # event numbers of binary frames
JPEG, PNG = 1, 2
MIB = 1024 * 1024


class Raw(str):
    """A text frame sent as it is, whatever JSON parsers say (StandinNaN)."""


def preview(kind: str, picture: Image.Image, metadata: Optional[dict] = None) -> bytes:
    """A binary frame of a picture, "JPEG" or "PNG"; with metadata for clients that negotiated it."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=95, compress_level=1)
    if metadata is None:
        return struct.pack(">II", PREVIEW_IMAGE, JPEG if kind == "JPEG" else PNG) + buffer.getvalue()
    text = json.dumps({**metadata, "image_type": f"image/{kind.lower()}"}).encode()
    return struct.pack(">II", PREVIEW_IMAGE_WITH_METADATA, len(text)) + text + buffer.getvalue()


def progress_text(node_id: str, text: str) -> bytes:
    """The binary frame that shows a line of text under a node."""
    name = node_id.encode()
    return struct.pack(">II", TEXT, len(name)) + name + text.encode()


class Hub:
    """Registered sockets by client id, and the queue of frames to them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, max_upload_bytes: int) -> None:
        self._loop = loop
        self._outbox: asyncio.Queue = asyncio.Queue()
        self._features = {"supports_preview_metadata": True, "max_upload_size": max_upload_bytes}
        self.sockets: dict[str, web.WebSocketResponse] = {}
        self.client_features: dict[str, dict] = {}
        self.silent_until = 0.0  # monotonic; until then frames are swallowed
        self.queue_status: Callable[[], dict] = lambda: {}
        # The prompt thread writes these, a reconnecting client reads them.
        self.client_id: Optional[str] = None
        self.last_node_id: Optional[str] = None

    @property
    def features(self) -> dict:
        return dict(self._features)

    def send(self, event: str, data: Any, client_id: Optional[str] = None) -> None:
        """Queue a frame, from any thread. Without a client id it goes to everybody."""
        self._loop.call_soon_threadsafe(self._outbox.put_nowait, ({"type": event, "data": data}, client_id))

    def send_raw(self, frame: Any, client_id: Optional[str] = None) -> None:
        """Queue ready bytes (a binary frame) or a `Raw` text frame."""
        self._loop.call_soon_threadsafe(self._outbox.put_nowait, (frame, client_id))

    def wants_metadata(self, client_id: Optional[str]) -> bool:
        return self.client_features.get(client_id or "", {}).get("supports_preview_metadata") is True

    def announce_queue(self) -> None:
        self.send("status", {"status": self.queue_status()})

    async def publish(self) -> None:
        """Send queued frames forever."""
        while True:
            frame, client_id = await self._outbox.get()
            await self._deliver(frame, client_id)

    async def _deliver(self, frame: Any, client_id: Optional[str]) -> None:
        if time.monotonic() < self.silent_until:
            return
        if client_id is None:
            receivers = list(self.sockets.values())
        else:
            receivers = [self.sockets[client_id]] if client_id in self.sockets else []
        for socket in receivers:
            try:
                if isinstance(frame, bytes):
                    await socket.send_bytes(frame)
                elif isinstance(frame, Raw):
                    await socket.send_str(frame)
                else:
                    await socket.send_json(frame)
            except (aiohttp.ClientError, ConnectionError) as error:
                logging.warning("send error: %s", error)

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        """GET /ws."""
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        client_id = request.query.get("clientId") or uuid.uuid4().hex
        self.sockets[client_id] = socket
        self.client_features[client_id] = {}
        try:
            await self._deliver({"type": "status", "data": {"status": self.queue_status(), "sid": client_id}},
                                client_id)
            if self.client_id == client_id and self.last_node_id is not None:
                await self._deliver({"type": "executing", "data": {"node": self.last_node_id}}, client_id)
            first = True
            async for message in socket:
                if message.type == aiohttp.WSMsgType.TEXT:
                    first = await self._negotiate(client_id, message.data, first)
        finally:
            # Hazard kept on purpose: this removes by id, not by socket. When a client came back under the same id
            # before its old socket was cleaned up, it is the *new* registration that goes.
            self.sockets.pop(client_id, None)
            self.client_features.pop(client_id, None)
        return socket

    async def _negotiate(self, client_id: str, text: str, first: bool) -> bool:
        """Feature flags count only as the very first message. Returns whether the next one is still the first."""
        try:
            message = json.loads(text)
            if first and message.get("type") == "feature_flags":
                self.client_features[client_id] = message.get("data", {})
                await self._deliver({"type": "feature_flags", "data": self.features}, client_id)
            return False
        except json.JSONDecodeError:
            logging.warning("Invalid JSON received from client %s: %s", client_id, text)
            return first
        except Exception as error:  # noqa: BLE001 - a client must not end its own handler
            logging.error("Error processing WebSocket message: %s", error)
            return first

    def drop_all(self) -> int:
        """Cut every socket without a closing handshake; returns how many."""
        sockets = list(self.sockets.values())
        for socket in sockets:
            transport = socket._req.transport if socket._req is not None else None
            if transport is not None:
                transport.abort()
        return len(sockets)
