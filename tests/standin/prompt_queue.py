"""The queue of prompts and the history, shared by the HTTP side and the prompt thread."""
from __future__ import annotations

import copy
import heapq
import threading
from typing import Any, Callable, NamedTuple, Optional

HISTORY_LIMIT = 10_000
SECRET_EXTRA_DATA = ("auth_token_comfy_org", "api_key_comfy_org")  # kept in /queue, removed in /history


class Item(NamedTuple):
    """A queued prompt; as JSON it is the five-element list that /queue and /history show."""

    number: float
    prompt_id: str
    prompt: dict
    extra_data: dict
    outputs: list


class PromptQueue:
    """Prompts by number, lowest first. `on_change` is told about every change, so that `status` frames go out."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._lock = threading.RLock()
        self._arrived = threading.Condition(self._lock)
        self._pending: list[Item] = []
        self._running: dict[int, Item] = {}
        self._history: dict[str, dict] = {}
        self._flags: dict[str, bool] = {}
        self._taken = 0
        self.discard_history = False  # a fault

    # --- the HTTP side ---

    def put(self, item: Item) -> None:
        with self._lock:
            heapq.heappush(self._pending, item)
            self._on_change()
            self._arrived.notify()

    def remaining(self) -> int:
        with self._lock:
            return len(self._pending) + len(self._running)

    def listing(self) -> dict[str, list]:
        """What GET /queue answers: the heap's own order, not sorted. API keys are in it."""
        with self._lock:
            return {"queue_running": list(self._running.values()), "queue_pending": list(self._pending)}

    def is_running(self, prompt_id: str) -> bool:
        with self._lock:
            return any(item.prompt_id == prompt_id for item in self._running.values())

    def clear(self) -> None:
        with self._lock:
            self._pending.clear()
            self._on_change()

    def delete(self, prompt_id: str) -> None:
        """Drop a pending prompt: it leaves no event and no history."""
        with self._lock:
            kept = [item for item in self._pending if item.prompt_id != prompt_id]
            if len(kept) != len(self._pending):
                self._pending = kept
                heapq.heapify(kept)
                self._on_change()

    def set_flag(self, name: str) -> None:
        """Ask the prompt thread for something it does between prompts."""
        with self._lock:
            self._flags[name] = True
            self._arrived.notify()

    def history(self, prompt_id: Optional[str] = None, max_items: Optional[int] = None,
                offset: int = -1) -> dict[str, dict]:
        with self._lock:
            if prompt_id is not None:
                return {prompt_id: self._history[prompt_id]} if prompt_id in self._history else {}
            entries = list(self._history.items())
            if offset < 0:
                offset = 0 if max_items is None else len(entries) - max_items
            chosen = entries[max(offset, 0):]
            # 0 stops after the first entry, because the real one counts after it has added.
            return dict(chosen if max_items is None else chosen[: max(max_items, 1)])

    def clear_history(self) -> None:
        with self._lock:
            self._history.clear()

    def delete_history(self, prompt_id: str) -> None:
        with self._lock:
            self._history.pop(prompt_id, None)

    # --- the prompt thread ---

    def take(self, timeout: float) -> Optional[tuple[int, Item]]:
        """Next prompt, marked as running; None when a flag was raised or the time ran out."""
        with self._lock:
            if not self._pending:
                self._arrived.wait(timeout)
            if not self._pending:
                return None
            item = heapq.heappop(self._pending)
            self._taken += 1
            self._running[self._taken] = copy.deepcopy(item)
            self._on_change()
            return self._taken, item

    def finish(self, ticket: int, outputs: dict, meta: dict, status: dict[str, Any]) -> None:
        """Move a prompt from running to the history, then announce the new queue length."""
        with self._lock:
            item = self._running.pop(ticket)
            if len(self._history) > HISTORY_LIMIT:
                self._history.pop(next(iter(self._history)))
            for secret in SECRET_EXTRA_DATA:
                item.extra_data.pop(secret, None)
            if not self.discard_history:
                self._history[item.prompt_id] = {
                    "prompt": item, "outputs": outputs, "status": copy.deepcopy(status), "meta": meta}
            self._on_change()

    def take_flags(self) -> dict[str, bool]:
        with self._lock:
            flags, self._flags = self._flags, {}
            return flags
