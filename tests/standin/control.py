"""/standin/*: what tests ask of the stand-in itself. The real server has none of this."""
from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Callable, Optional

from aiohttp import web

if TYPE_CHECKING:
    from server import PromptServer


KNOWN = {"drop_ws", "silence_ws", "lose_next_prompt_response", "clear_history", "discard_history", "break_history",
         "interrupt", "block_http"}


class Faults:
    """Faults waiting to happen."""

    def __init__(self) -> None:
        self.lose_next_prompt_response = False
        self.break_history = False
        self.lost_device: Optional[Exception] = None  # set: every node fails with it, as after a CUDA error


def routes(server: "PromptServer") -> Callable[[web.RouteTableDef], None]:
    """The routes of this module, to be added to a table."""

    def add(table: web.RouteTableDef) -> None:
        @table.get("/standin/stats")
        async def stats(request: web.Request) -> web.Response:
            """What happened so far. `executions` counts nodes that really ran, not cached ones."""
            return web.json_response({
                "executions": server.executor.runs,
                "prompts": server.executor.prompt_ids,
                "frees": server.executor.frees,
                "clients": len(server.hub.sockets),
                "client_ids": list(server.hub.sockets),
                "queue_remaining": server.queue.remaining(),
                "pid": os.getpid(),
            })

        @table.post("/standin/faults")
        async def faults(request: web.Request) -> web.Response:
            """Make faults happen; several at once are applied in the order below. An unknown one is a 400.

            drop_ws: true                    cut every websocket without a closing frame
            silence_ws: SECONDS              swallow every frame for so long, sockets stay open
            lose_next_prompt_response: true  take the next prompt, then cut the connection instead of answering
            clear_history: true              forget every finished prompt
            discard_history: BOOL            keep none from now on, as if somebody cleared it at once
            break_history: BOOL              answer 500 to those who ask for one prompt's, from now on
            interrupt: true                  a foreign, global interrupt
            block_http: SECONDS              answer this, then nothing at all for so long (a stuck event loop)
            """
            body = await request.json()
            unknown = set(body) - KNOWN
            if unknown:
                return web.json_response({"error": f"unknown fault: {', '.join(sorted(unknown))}"}, status=400)
            done: dict[str, object] = {}
            if body.get("drop_ws"):
                done["dropped"] = server.hub.drop_all()
            if "silence_ws" in body:
                server.hub.silent_until = time.monotonic() + float(body["silence_ws"])
            if "lose_next_prompt_response" in body:
                server.faults.lose_next_prompt_response = bool(body["lose_next_prompt_response"])
            if body.get("clear_history"):
                server.queue.clear_history()
            if "discard_history" in body:
                server.queue.discard_history = bool(body["discard_history"])
            if "break_history" in body:
                server.faults.break_history = bool(body["break_history"])
            if body.get("interrupt"):
                server.interrupt.set()
            if "block_http" in body:
                # Blocking is the point. A moment later, so that this answer gets out.
                asyncio.get_running_loop().call_later(0.05, time.sleep, float(body["block_http"]))
            return web.json_response(done)

    return add
