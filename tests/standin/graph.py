"""The order in which a prompt's nodes run: a node after its inputs, and outputs as early as they can."""
from __future__ import annotations

from typing import Callable, Iterable

from node import KINDS
from validation import is_link


class NodeNotFound(Exception):
    """A link of a *declared-nowhere* input names no node. It is raised outside of every handler, as on the real
    server, and so it ends the prompt thread."""


class Schedule:
    """Nodes still to run. `is_cached` says whose result is already known."""

    def __init__(self, prompt: dict, is_cached: Callable[[str], bool]) -> None:
        self.prompt, self.is_cached = prompt, is_cached
        self.pending: dict[str, None] = {}  # an ordered set
        self.waits_for: dict[str, set[str]] = {}
        self.feeds: dict[str, dict[str, None]] = {}

    def add_outputs(self, node_ids: Iterable[str]) -> None:
        """Add outputs (cached ones too: they still report) with every ancestor that is not cached."""
        for node_id in node_ids:
            self._add(node_id)

    def _add(self, first: str) -> None:
        stack, links = [first], []
        while stack:
            node_id = stack.pop()
            if node_id in self.pending:
                continue
            if node_id not in self.prompt:
                raise NodeNotFound(f"Node {node_id} not found")
            self.pending[node_id] = None
            self.waits_for[node_id], self.feeds[node_id] = set(), {}
            for value in self.prompt[node_id]["inputs"].values():
                if is_link(value) and not self.is_cached(value[0]):
                    stack.append(value[0])
                    links.append((value[0], node_id))
        for source, target in links:
            self.feeds[source][target] = None
            self.waits_for[target].add(source)

    def next(self) -> str:
        """The node to run now: an output if one is ready, else the one nearest to an output, else the oldest."""
        ready = [node_id for node_id in self.pending if not self.waits_for[node_id]]
        for distance in range(3):
            for node_id in ready:
                if self._leads_to_output(node_id, distance):
                    return node_id
        return ready[0]

    def _leads_to_output(self, node_id: str, steps: int) -> bool:
        if steps == 0:
            return KINDS[self.prompt[node_id]["class_type"]].is_output
        return any(self._leads_to_output(target, steps - 1) for target in self.feeds[node_id])

    def done(self, node_id: str) -> None:
        del self.pending[node_id]
        for target in self.feeds.pop(node_id):
            self.waits_for[target].discard(node_id)

    def __bool__(self) -> bool:
        return bool(self.pending)
