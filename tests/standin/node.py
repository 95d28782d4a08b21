"""What a node is to the stand-in: its /object_info entry and a function, and the registry of all of them."""
from __future__ import annotations

import copy
import gzip
import json
import os
from typing import Any, Callable, Optional, Sequence

from PIL import Image

from folders import Folders

CORE_INFO_FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "core_nodes.json")


class Interrupted(Exception):
    """POST /interrupt reached a running node."""


class Call:
    """What the executor lends to a node while it runs it. One call, one node, the prompt thread."""

    def __init__(self, node_id: str, folders: Folders, server: Any) -> None:
        self.node_id = node_id
        self.folders = folders
        self.server = server  # the PromptServer; only the test nodes reach into it

    def check_interrupt(self) -> None:
        """Raise Interrupted when an interrupt is pending, and take the flag away."""
        self.server.interrupt.raise_if_set()

    def progress(self, value: float, maximum: float, preview: Optional[tuple[str, Image.Image]] = None) -> None:
        """Report progress, with a ("JPEG"|"PNG", picture) where there is one. Raises Interrupted."""
        self.check_interrupt()
        self.server.executor.report_progress(self.node_id, value, maximum, preview)


class Node:
    """Base of all nodes. The executor keeps an instance per node id as long as prompts contain that id.

    `run` gets the call and the inputs by name and returns a tuple of outputs, or a `Ui`. The hooks in capitals are
    called as custom nodes know them, since Python puts their names into error messages.
    """

    #: names of the inputs that VALIDATE_INPUTS takes over from the standard checks
    VALIDATED: tuple[str, ...] = ()

    def __init__(self, folders: Folders) -> None:
        self.folders = folders

    run: Callable[..., Any]

    #: called as (folders, **inputs): True, or what is wrong (a message, or False for none)
    VALIDATE_INPUTS: Callable[..., Any]

    #: a fingerprint beside the inputs, called as (folders, **inputs); linked inputs arrive as None
    IS_CHANGED: Optional[Callable[..., Any]] = None


class Ui:
    """A node's result when it has something to show: `outputs[node]` of the history."""

    def __init__(self, ui: dict, outputs: tuple = ()) -> None:
        self.ui, self.outputs = ui, outputs


class NodeKind:
    """A registered class of nodes."""

    def __init__(self, info: dict, implementation: type[Node]) -> None:
        self._info = info
        self.implementation = implementation
        self.name: str = info["name"]
        self.is_output: bool = info["output_node"]
        # An index past the end is reported in Python's words for what it is: a list in nodes of the newer API
        # (they say whether they are an `api_node`), a tuple in all others.
        self.outputs: Sequence[str] = info["output"] if "api_node" in info else tuple(info["output"])

    def info(self, folders: Folders) -> dict:
        """The /object_info entry; lists of files are read from the disk now."""
        if not hasattr(self.implementation, "refresh"):
            return self._info
        info = copy.deepcopy(self._info)
        self.implementation.refresh(info, folders)
        return info

    def inputs(self, folders: Folders) -> dict[str, tuple[str, Any, dict]]:
        """Input name -> (category, type, options), required before optional before hidden."""
        found: dict[str, tuple[str, Any, dict]] = {}
        for category in ("required", "optional", "hidden"):
            for name, spec in self.info(folders)["input"].get(category, {}).items():
                spec = [spec] if isinstance(spec, str) else spec  # hidden ones are bare strings
                found.setdefault(name, (category, spec[0], spec[1] if len(spec) > 1 else {}))
        return found

    def hidden(self) -> dict[str, str]:
        """Inputs that the executor fills in, name -> what with. Nodes of the newer API ask for theirs elsewhere."""
        return {name: spec for name, spec in self._info["input"].get("hidden", {}).items() if isinstance(spec, str)}

    def new(self, folders: Folders) -> Node:
        return self.implementation(folders)


#: every class this server knows, by name
KINDS: dict[str, NodeKind] = {}

with open(CORE_INFO_FILE, encoding="utf-8") as _file:
    _CORE_INFO: dict[str, dict] = json.load(_file)


def core(implementation: type[Node]) -> type[Node]:
    """Register a node of the real server under its recorded /object_info entry."""
    KINDS[implementation.__name__] = NodeKind(_CORE_INFO[implementation.__name__], implementation)
    return implementation


def standin(inputs: dict[str, list], outputs: tuple[str, ...] = (), output_node: bool = False,
            description: str = "", optional: Optional[dict[str, list]] = None,
            hidden: Optional[dict[str, str]] = None) -> Callable[[type[Node]], type[Node]]:
    """Register a test node. Each gets an optional `seed`, so that a test can defeat the execution cache."""

    def register(implementation: type[Node]) -> type[Node]:
        name = implementation.__name__
        all_optional = {**(optional or {}), "seed": ["INT", {"default": 0, "min": 0, "max": 2**64 - 1}]}
        info = {
            "input": {"required": inputs, "optional": all_optional},
            "input_order": {"required": list(inputs), "optional": list(all_optional)},
            "output": list(outputs),
            "output_is_list": [False] * len(outputs),
            "output_name": list(outputs),
            "name": name,
            "display_name": name,
            "description": description or (implementation.__doc__ or "").strip().split("\n")[0],
            "python_module": "custom_nodes.standin",
            "category": "standin",
            "output_node": output_node,
        }
        if hidden is not None:
            info["input"]["hidden"] = hidden
        KINDS[name] = NodeKind(info, implementation)
        return implementation

    return register


def describe_foreign(path: str) -> int:
    """Add the classes of a recorded /object_info (.json or .json.gz) by description only: they convert and validate,
    but never run.
    """

    class Foreign(Node):
        def run(self, call: Call, **inputs: Any) -> Any:
            raise NotImplementedError("the stand-in knows this class by its description only")

    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8") as file:
        foreign = {name: info for name, info in json.load(file).items() if name not in KINDS}
    for name, info in foreign.items():
        KINDS[name] = NodeKind(info, Foreign)
    return len(foreign)
