"""The execution cache: a node whose inputs and ancestors did not change is not run again.

As with the real server's default, an entry lives only as long as the *latest* prompt contains it: prompts A, B, A
run A twice. A cached output node answers with its old file names, whether or not the files are still there.
"""
from __future__ import annotations

import logging
from typing import Any, Hashable, Optional

from folders import Folders
from node import KINDS, Node
from validation import is_link


class Entry:
    """A finished node: who ran it, its outputs, and what it had to show.

    Equal nodes share an entry, so `node_id` may be another node's: it goes into the history's `meta` all the same.
    """

    def __init__(self, node_id: str, outputs: list, ui: Optional[dict]) -> None:
        self.node_id, self.outputs, self.ui = node_id, outputs, ui


class Cache:
    """Results by signature, and node instances by (id, class). Only the prompt thread touches it."""

    def __init__(self, folders: Folders) -> None:
        self.folders = folders
        self._results: dict[Hashable, Entry] = {}
        self._instances: dict[tuple[str, str], Node] = {}
        self._signatures: dict[str, Hashable] = {}

    def begin(self, prompt: dict) -> None:
        """Compute this prompt's signatures and forget every result that it does not use."""
        signer = _Signer(prompt, self.folders)
        self._signatures = {node_id: signer.signature(node_id) for node_id in prompt}
        wanted = set(self._signatures.values())
        self._results = {key: entry for key, entry in self._results.items() if key in wanted}
        present = {(node_id, node["class_type"]) for node_id, node in prompt.items()}
        self._instances = {key: node for key, node in self._instances.items() if key in present}

    def get(self, node_id: str) -> Optional[Entry]:
        return self._results.get(self._signatures.get(node_id))

    def put(self, node_id: str, entry: Entry) -> None:
        self._results[self._signatures[node_id]] = entry

    def instance(self, node_id: str, class_type: str) -> Node:
        """The node object of this id, the same one from prompt to prompt."""
        key = (node_id, class_type)
        if key not in self._instances:
            self._instances[key] = KINDS[class_type].new(self.folders)
        return self._instances[key]

    def node_ids(self) -> list[str]:
        return list(self._signatures)


class _Signer:
    """Signatures of one prompt. They hold no node ids, so renumbering a prompt keeps it cached."""

    def __init__(self, prompt: dict, folders: Folders) -> None:
        self.prompt, self.folders = prompt, folders

    def signature(self, node_id: str) -> Hashable:
        order: dict[str, int] = {}
        self._visit(node_id, order)
        return tuple(self._own(each, order) for each in (node_id, *order))

    def _visit(self, node_id: str, order: dict[str, int]) -> None:
        """Number the ancestors in the order in which sorted input names lead to them."""
        if node_id not in self.prompt:
            return
        for _, value in sorted(self.prompt[node_id]["inputs"].items()):
            if is_link(value) and value[0] not in order:
                order[value[0]] = len(order)
                self._visit(value[0], order)

    def _own(self, node_id: str, order: dict[str, int]) -> Hashable:
        if node_id not in self.prompt:
            return object()  # a missing ancestor equals nothing: never cached
        node = self.prompt[node_id]
        inputs = tuple(
            (name, ("ancestor", order[value[0]], value[1]) if is_link(value) else _hashable(value))
            for name, value in sorted(node["inputs"].items()))
        return node["class_type"], self._fingerprint(node_id), inputs

    def _fingerprint(self, node_id: str) -> Hashable:
        """What IS_CHANGED said. It is written into the node, and so into the prompt that files embed."""
        node = self.prompt[node_id]
        implementation = KINDS[node["class_type"]].implementation
        if implementation.IS_CHANGED is None:
            return False
        if "is_changed" not in node:
            inputs = {key: None if is_link(item) else item for key, item in node["inputs"].items()}
            try:
                node["is_changed"] = [implementation.IS_CHANGED(self.folders, **inputs)]
            except Exception as error:  # noqa: BLE001 - e.g. the file is gone; then it simply runs
                logging.warning("WARNING: %s", error)
                node["is_changed"] = float("nan")
        return _hashable(node["is_changed"])


def _hashable(value: Any) -> Hashable:
    if isinstance(value, dict):
        return tuple(sorted((key, _hashable(item)) for key, item in value.items()))
    if isinstance(value, list):
        return tuple(map(_hashable, value))
    return value
