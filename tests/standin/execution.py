"""The prompt thread: takes prompts, runs their nodes, sends the events, writes the history.

Order of a prompt's end, which clients depend on: execution_success or execution_error, *then* the history entry,
then `status`, then `executing` with node null.
"""
from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import traceback
from typing import Any, Callable, Optional

from PIL import Image

import frames
from cache import Cache, Entry
from folders import Folders
from graph import Schedule
from node import KINDS, Call, Interrupted, Ui
from prompt_queue import Item, PromptQueue
from validation import is_link, qualified_name

LEDGER = os.environ.get("STANDIN_LEDGER")
TIMES = os.environ.get("STANDIN_TIMES")

OUT_OF_MEMORY_TIPS = (
    "This error means you ran out of memory on your GPU.\n\nTIPS: If the workflow worked before you might have "
    "accidentally set the batch_size to a large number."
)


class InterruptFlag:
    """One flag for the whole server. A starting prompt clears it: an interrupt that comes too early is lost."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def clear(self) -> None:
        self._event.clear()

    def raise_if_set(self) -> None:
        if self._event.is_set():
            self._event.clear()
            raise Interrupted()


class Progress:
    """State of the nodes of one prompt, as `progress_state` frames show it: only started ones."""

    def __init__(self, prompt_id: str, send: Callable[[dict], None]) -> None:
        self._prompt_id, self._send = prompt_id, send
        self._nodes: dict[str, dict] = {}

    def start(self, node_id: str) -> None:
        self.update(node_id, 0.0, 1.0)

    def update(self, node_id: str, value: float, maximum: float, state: str = "running") -> None:
        self._nodes[node_id] = {
            "value": value, "max": maximum, "state": state, "node_id": node_id, "prompt_id": self._prompt_id,
            "display_node_id": node_id, "parent_node_id": None, "real_node_id": node_id}
        # Copied, because the frame is written later and by another thread.
        self._send({"prompt_id": self._prompt_id, "nodes": {key: dict(node) for key, node in self._nodes.items()}})

    def finish(self, node_id: str) -> None:
        maximum = self._nodes[node_id]["max"] if node_id in self._nodes else 1
        self.update(node_id, maximum, maximum, "finished")


class Failure(Exception):
    """A node did not finish; `data` is what the event will say beside prompt and timestamp."""

    def __init__(self, node_id: str, interrupted: bool, data: dict[str, Any]) -> None:
        super().__init__(node_id)
        self.node_id, self.interrupted, self.data = node_id, interrupted, data


class Executor:
    """Runs one prompt at a time. `server` lends hub and interrupt flag."""

    def __init__(self, server: Any, queue: PromptQueue, folders: Folders) -> None:
        self.server, self.hub, self.queue, self.folders = server, server.hub, queue, folders
        self.cache = Cache(folders)
        self.runs = 0  # nodes run, cached ones not counted
        self.prompt_ids: list[str] = []
        self.frees = 0
        self._prompt_id = ""
        self._messages: list[list] = []
        self._progress = Progress("", lambda data: None)

    # --- the thread ---

    def work(self) -> None:
        """The prompt thread. An exception that escapes a prompt ends it for good, while HTTP goes on answering."""
        while True:
            taken = self.queue.take(timeout=1000.0)
            if taken is not None:
                self._work_on(*taken)
            flags = self.queue.take_flags()
            if flags:
                self.frees += 1
            if flags.get("free_memory"):
                self.cache = Cache(self.folders)

    def _work_on(self, ticket: int, item: Item) -> None:
        started = time.perf_counter()
        self.prompt_ids.append(item.prompt_id)
        if LEDGER:
            with open(LEDGER, "a", encoding="utf-8") as ledger:
                ledger.write(json.dumps(item.prompt) + "\n")
        begin = time.time()
        succeeded = self._execute(item)
        if TIMES:
            with open(TIMES, "a", encoding="utf-8") as times:
                times.write(json.dumps({"start": begin, "end": time.time()}) + "\n")
        shown = [(node_id, entry) for node_id in self.cache.node_ids()
                 if (entry := self.cache.get(node_id)) is not None and entry.ui is not None]
        status = {"status_str": "success" if succeeded else "error", "completed": succeeded,
                  "messages": self._messages}
        self.queue.finish(ticket, {node_id: entry.ui for node_id, entry in shown},
                          {node_id: _meta(entry.node_id) for node_id, entry in shown}, status)
        if self.hub.client_id is not None:
            self.hub.send("executing", {"node": None, "prompt_id": item.prompt_id}, self.hub.client_id)
        logging.info("Prompt executed in %.2f seconds", time.perf_counter() - started)

    # --- one prompt ---

    def _execute(self, item: Item) -> bool:
        self.server.interrupt.clear()
        self._prompt_id = item.prompt_id
        self.hub.client_id = item.extra_data.get("client_id")
        self._messages = []
        self._message("execution_start", {})
        self.cache.begin(item.prompt)
        self._progress = Progress(
            item.prompt_id, lambda data: self.hub.send("progress_state", data, self.hub.client_id))
        cached = [node_id for node_id in item.prompt if self.cache.get(node_id) is not None]
        self._message("execution_cached", {"nodes": cached}, before_id=True)
        schedule = Schedule(item.prompt, lambda node_id: self.cache.get(node_id) is not None)
        schedule.add_outputs(item.outputs)
        executed: list[str] = []
        try:
            while schedule:
                node_id = schedule.next()
                entry = self.cache.get(node_id)
                if entry is not None:
                    self._report_cached(node_id, entry)
                else:
                    self._run_node(item, node_id)
                    executed.append(node_id)
                schedule.done(node_id)
        except Failure as failure:
            self._report_failure(item, failure, executed)
            return False
        else:
            self._message("execution_success", {})
            return True
        finally:
            self.hub.last_node_id = None

    def _report_cached(self, node_id: str, entry: Entry) -> None:
        self._send_executed(node_id, entry.ui)
        self._progress.finish(node_id)

    def _run_node(self, item: Item, node_id: str) -> None:
        """Run one node and keep its result. Raises Failure; anything beyond Exception goes through."""
        class_type = item.prompt[node_id]["class_type"]
        inputs: Optional[dict[str, Any]] = None
        try:
            self._progress.start(node_id)
            inputs = self._collect_inputs(item, node_id)
            if self.hub.client_id is not None:
                self.hub.last_node_id = node_id
                self.hub.send("executing", {"node": node_id, "display_node": node_id, "prompt_id": item.prompt_id},
                              self.hub.client_id)
            call = Call(node_id, self.folders, self.server)
            call.check_interrupt()
            if self.server.faults.lost_device is not None:
                raise self.server.faults.lost_device.with_traceback(None)
            self.runs += 1
            result = self.cache.instance(node_id, class_type).run(call, **inputs)
        except Interrupted:
            logging.info("Processing interrupted")
            raise Failure(node_id, True, {}) from None
        except Exception as error:  # noqa: BLE001 - a node's failure is the prompt's result
            raise Failure(node_id, False, self._describe(error, inputs)) from error
        ui = result.ui if isinstance(result, Ui) else None
        outputs = result.outputs if isinstance(result, Ui) else result
        if ui:
            self._send_executed(node_id, ui)
        self.cache.put(node_id, Entry(node_id, list(outputs), ui or None))
        self._progress.finish(node_id)

    def _collect_inputs(self, item: Item, node_id: str) -> dict[str, Any]:
        """Literals as they are and links resolved; undeclared literals are dropped, undeclared links are not."""
        kind = KINDS[item.prompt[node_id]["class_type"]]
        declared = kind.inputs(self.folders)
        values: dict[str, Any] = {}
        for name, value in item.prompt[node_id]["inputs"].items():
            if is_link(value):
                entry = self.cache.get(value[0])
                slot = int(value[1])
                values[name] = entry.outputs[slot] if entry is not None and slot < len(entry.outputs) else None
            elif name in declared:
                values[name] = value
        supplied = {"PROMPT": item.prompt, "EXTRA_PNGINFO": item.extra_data.get("extra_pnginfo"), "UNIQUE_ID": node_id,
                    "API_KEY_COMFY_ORG": item.extra_data.get("api_key_comfy_org")}
        values.update({name: supplied.get(wanted) for name, wanted in kind.hidden().items()})
        return values

    def report_progress(self, node_id: str, value: float, maximum: float,
                        picture: Optional[tuple[str, Image.Image]] = None) -> None:
        """progress_state, then with metadata negotiated the picture, then `progress`; else the picture last."""
        client_id = self.hub.client_id
        self._progress.update(node_id, value, maximum)
        with_metadata = self.hub.wants_metadata(client_id)
        if picture and with_metadata:
            metadata = {"node_id": node_id, "prompt_id": self._prompt_id, "display_node_id": node_id,
                        "parent_node_id": None, "real_node_id": node_id}
            self.hub.send_raw(frames.preview(*picture, metadata), client_id)
        self.hub.send("progress", {"value": value, "max": maximum, "prompt_id": self._prompt_id, "node": node_id},
                      client_id)
        if picture and not with_metadata:
            self.hub.send_raw(frames.preview(*picture), client_id)

    # --- events ---

    def _message(self, event: str, data: dict, before_id: bool = False, broadcast: bool = False) -> None:
        """An event that also stands in the history. Without a client it is kept, but sent only if `broadcast`."""
        prompt = {"prompt_id": self._prompt_id}
        data = {**data, **prompt} if before_id else {**prompt, **data}
        data["timestamp"] = int(time.time() * 1000)
        self._messages.append([event, data])
        if self.hub.client_id is not None or broadcast:
            self.hub.send(event, data, self.hub.client_id)

    def _send_executed(self, node_id: str, ui: Optional[dict]) -> None:
        if self.hub.client_id is not None:
            self.hub.send("executed", {"node": node_id, "display_node": node_id, "output": ui,
                                       "prompt_id": self._prompt_id}, self.hub.client_id)

    def _report_failure(self, item: Item, failure: Failure, executed: list[str]) -> None:
        data = {"node_id": failure.node_id, "node_type": item.prompt[failure.node_id]["class_type"],
                "executed": executed}
        if failure.interrupted:
            # The one event of a prompt that goes to everybody when the prompt has no client.
            self._message("execution_interrupted", data, broadcast=True)
        else:
            self._message("execution_error", {**data, **failure.data, "current_outputs": self.cache.node_ids()})

    def _describe(self, error: Exception, inputs: Optional[dict[str, Any]]) -> dict[str, Any]:
        logging.error("!!! Exception during processing !!! %s", error)
        logging.error("%s", traceback.format_exc())
        tips = ""
        kind = qualified_name(type(error))
        if kind == "torch.OutOfMemoryError":
            logging.error("Got an OOM, unloading all loaded models.")
            tips = OUT_OF_MEMORY_TIPS
        return {
            "exception_message": f"{error}\n{tips}",
            "exception_type": kind,
            "traceback": traceback.format_tb(sys.exc_info()[2]),
            "current_inputs": {name: [_shown(value)] for name, value in (inputs or {}).items()},
        }


def _shown(value: Any) -> Any:
    return value if value is None or isinstance(value, (int, float, bool, str)) else str(value)


def _meta(node_id: str) -> dict[str, Any]:
    return {"node_id": node_id, "display_node": node_id, "parent_node": None, "real_node_id": node_id}
