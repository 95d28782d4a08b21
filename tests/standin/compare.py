#!/usr/bin/env python3
"""Replays recorded exchanges against a running server and says where it answers differently.

    python3 compare.py http://127.0.0.1:8188 ../fixtures/transcripts
    python3 compare.py http://127.0.0.1:8188 ../fixtures/transcripts --record ../fixtures/transcripts-NEW

A transcript is a .jsonl file: POST /prompt, the websocket frames, perhaps POST /interrupt, GET /history/{id}. They are
replayed in the order in which they were recorded, since a cached repeat needs its predecessor. Works against the
stand-in and against a real ComfyUI alike.

Ignored, because it differs between two runs of the same server: ids, timestamps, the prompt's number, counters and
random parts in file names (--exact-names compares counters: for a server in an empty folder), absolute paths,
tracebacks, pixels, the values of `current_inputs`, and the order within sets (`executed`, `current_outputs`, the
errors of one node). Everything else must be equal, down to key order and the difference between 1 and 1.0.
"""
from __future__ import annotations

import argparse
import asyncio
import base64
import difflib
import json
import re
import struct
import sys
import time
import uuid
from pathlib import Path
from typing import Any, Optional

import aiohttp

FRAME_TIMEOUT_SECONDS = 240
PREVIEW_IMAGE, PREVIEW_IMAGE_WITH_METADATA = 1, 4


class Exchange:
    """One exchange, recorded or replayed, in comparable form."""

    def __init__(self, exact_names: bool) -> None:
        self.exact_names = exact_names
        self.lines: list[str] = []
        self.steps: list[dict] = []  # as a transcript has them
        self.began = time.monotonic()
        self.ids: dict[str, str] = {}  # id -> what it is called in the comparison

    def step(self, at: str, **what: Any) -> None:
        self.steps.append({"at": at, "t": round(time.monotonic() - self.began, 4), **what})

    def add(self, label: str, content: Any) -> None:
        text = json.dumps(self._neutral(content), ensure_ascii=False)
        for each, name in self.ids.items():
            text = text.replace(each, name)
        self.lines.append(f"{label}: {text}")

    def add_binary(self, frame: bytes) -> None:
        event, length = struct.unpack(">II", frame[:8])
        if event == PREVIEW_IMAGE_WITH_METADATA:
            metadata, picture = json.loads(frame[8 : 8 + length]), frame[8 + length :]
            self.add("binary", {"event": event, "metadata": metadata, "picture": _magic(picture)})
        elif event == PREVIEW_IMAGE:
            self.add("binary", {"event": event, "format": length, "picture": _magic(frame[8:])})
        else:
            self.add("binary", {"event": event, "payload": frame[4:].hex()})

    def _neutral(self, value: Any, key: str = "") -> Any:
        if key in ("timestamp", "number", "create_time"):
            return key
        if key in ("traceback", "current_inputs"):
            return sorted(value) if isinstance(value, dict) else "..."
        if isinstance(value, dict):
            return {name: self._neutral(item, name) for name, item in value.items()}
        if key == "prompt" and isinstance(value, list):  # the queue item in a history entry: its number comes first
            value = ["number", *value[1:]]
        if isinstance(value, list):
            items = [self._neutral(item) for item in value]
            unordered = key in ("executed", "current_outputs", "errors", "dependent_outputs")
            return sorted(items, key=json.dumps) if unordered else items
        return self._neutral_text(value) if isinstance(value, str) else value

    def _neutral_text(self, text: str) -> str:
        text = re.sub(r"_temp_[a-z]{5}_", "_temp_RANDOM_", text)
        text = re.sub(r"(?<=: )/[^\n]*", "/PATH", text)
        return text if self.exact_names else re.sub(r"_\d{5}_", "_COUNTER_", text)


def _magic(picture: bytes) -> str:
    return "png" if picture.startswith(b"\x89PNG") else "jpeg" if picture.startswith(b"\xff\xd8") else "?"


def read_transcript(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def recorded(transcript: list[dict], exact_names: bool) -> Exchange:
    """A transcript in comparable form."""
    exchange = Exchange(exact_names)
    request = transcript[0]["request"]
    exchange.ids = {request["client_id"]: "CLIENT", request["prompt_id"]: "PROMPT"}
    for step in transcript:
        if step["at"] == "ws text":
            exchange.add("text", step["message"])
        elif step["at"] == "ws binary":
            exchange.add_binary(base64.b64decode(step["base64"]))
        else:
            exchange.add(step["at"], [step["status"], step.get("response")])
    return exchange


async def replay(session: aiohttp.ClientSession, url: str, transcript: list[dict], exact_names: bool) -> Exchange:
    """The same requests with ids of our own."""
    exchange = Exchange(exact_names)
    client_id, prompt_id = str(uuid.uuid4()), str(uuid.uuid4())
    exchange.ids = {client_id: "CLIENT", prompt_id: "PROMPT"}
    interrupt = next((step for step in transcript if step["at"] == "POST /interrupt"), None)
    async with session.ws_connect(f"{url}/ws?clientId={client_id}", max_msg_size=0) as socket:
        await socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        greeting = [await socket.receive_json(), await socket.receive_json()]
        started = time.monotonic()
        body = {**transcript[0]["request"], "client_id": client_id, "prompt_id": prompt_id}
        exchange.began = started
        async with session.post(f"{url}/prompt", json=body) as response:
            exchange.add("POST /prompt", [response.status, await response.json()])
            exchange.step("POST /prompt", request=body, status=response.status, response=await response.json())
            if response.status != 200:
                return exchange
        for message in greeting:
            exchange.add("text", message)
            exchange.step("ws text", message=message)
        interrupting: Optional[asyncio.Task] = None
        if interrupt is not None:
            due = interrupt["t"] - (time.monotonic() - started)
            interrupting = asyncio.create_task(_interrupt(session, url, prompt_id, due, exchange))
        while True:
            message = await socket.receive(timeout=FRAME_TIMEOUT_SECONDS)
            if message.type == aiohttp.WSMsgType.BINARY:
                exchange.add_binary(message.data)
                exchange.step("ws binary", base64=base64.b64encode(message.data).decode())
            elif message.type == aiohttp.WSMsgType.TEXT:
                frame = json.loads(message.data)
                exchange.add("text", frame)
                exchange.step("ws text", message=frame)
                if frame["type"] == "executing" and frame["data"] == {"node": None, "prompt_id": prompt_id}:
                    break
            else:
                exchange.lines.append(f"socket ended: {message.type}")
                break
        if interrupting is not None:
            await interrupting
        async with session.get(f"{url}/history/{prompt_id}") as response:
            exchange.add("GET /history/{prompt_id}", [response.status, await response.json()])
            exchange.step("GET /history/{prompt_id}", status=response.status, response=await response.json())
    return exchange


async def _interrupt(session: aiohttp.ClientSession, url: str, prompt_id: str, due: float, to: Exchange) -> None:
    await asyncio.sleep(due)
    async with session.post(f"{url}/interrupt", json={"prompt_id": prompt_id}) as response:
        to.add("POST /interrupt", [response.status, None])
        to.step("POST /interrupt", request={"prompt_id": prompt_id}, status=response.status)


def without_interrupt(lines: list[str]) -> list[str]:
    """When the interrupt is answered is a matter of speed, so its place among the frames says nothing."""
    return [line for line in lines if not line.startswith("POST /interrupt")]


async def compare(url: str, folder: Path, exact_names: bool, record: Optional[Path]) -> int:
    transcripts = [(path.stem, read_transcript(path)) for path in sorted(folder.glob("*.jsonl"))]
    # Refused ones have no number of their own, and need no order.
    transcripts.sort(key=lambda named: named[1][0]["response"].get("number", 0))
    differing = 0
    async with aiohttp.ClientSession() as session:
        for name, transcript in transcripts:
            expected = recorded(transcript, exact_names)
            got = await replay(session, url, transcript, exact_names)
            if record is not None:
                steps = [json.dumps(step, ensure_ascii=False) + "\n" for step in got.steps]
                (record / f"{name}.jsonl").write_text("".join(steps), encoding="utf-8")
            lines = [without_interrupt(exchange.lines) for exchange in (expected, got)]
            difference = list(difflib.unified_diff(*lines, "recorded", "server", lineterm="", n=0))
            print(f"{'DIFFERS' if difference else 'agrees '} {name}")
            for line in difference:
                print(f"    {line}")
            differing += bool(difference)
    print(f"{len(transcripts) - differing} of {len(transcripts)} agree")
    return 1 if differing or not transcripts else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("url", help="such as http://127.0.0.1:8188")
    parser.add_argument("folder", type=Path, help="folder of .jsonl transcripts")
    parser.add_argument("--exact-names", action="store_true", help="also compare the counters in file names")
    parser.add_argument("--record", type=Path, metavar="FOLDER", help="write what the server answers there, as transcripts")
    options = parser.parse_args()
    return asyncio.run(compare(options.url.rstrip("/"), options.folder, options.exact_names, options.record))


if __name__ == "__main__":
    sys.exit(main())
