"""POST /prompt's checks. Types, messages and details of the errors are the wire protocol of 0.3.64.

Where the real server lets a Python exception through (a link to no node, a node without `inputs`), this one does too:
the exception's words are part of its answer.
"""
from __future__ import annotations

import contextlib
import logging
import sys
import traceback
from typing import Any, Iterator, Optional, Tuple

from folders import Folders
from node import KINDS, NodeKind

COMBO_SHOWN_UP_TO = 20  # options; a longer list is not echoed
DEEPEST_CHAIN = 979  # links; beyond, the real server meets Python's recursion limit (measured)
FRAMES_PER_LINK = 5  # generous: what one step of our own walk takes

NodeError = dict[str, Any]


class Verdict:
    """What a prompt's check ended with: `error` is None when something of it can run."""

    def __init__(self, error: Optional[dict], outputs: list[str], node_errors: dict[str, dict]) -> None:
        self.error, self.outputs, self.node_errors = error, outputs, node_errors


def is_link(value: Any) -> bool:
    """`[node id, output index]`. The index may be a float: JavaScript makes no difference."""
    return (isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
            and isinstance(value[1], (int, float)))


def types_match(received: Any, wanted: Any) -> bool:
    """Types are comma-separated alternatives that must overlap; "*" on the receiving side takes anything."""
    if received == wanted or wanted == "*" or received == "*":
        return True
    if not isinstance(received, str) or not isinstance(wanted, str):
        return False
    return bool({part.strip() for part in received.split(",")} & {part.strip() for part in wanted.split(",")})


def qualified_name(kind: type) -> str:
    """An exception's type as the protocol writes it: without a module for built-in ones."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def validate_prompt(prompt: Any, folders: Folders, only: Optional[list[str]] = None) -> Verdict:
    """Check a whole prompt. Outputs that fail are dropped while any other output stands.

    Values are converted in place ("12" for an INT becomes 12), as on the real server.
    """
    outputs: list[str] = []
    for node_id in prompt:
        if "class_type" not in prompt[node_id]:
            return _refused("invalid_prompt", "Cannot execute because a node is missing the class_type property.",
                            f"Node ID '#{node_id}'")
        kind = KINDS.get(prompt[node_id]["class_type"])
        if kind is None:
            return _refused("invalid_prompt",
                            f"Cannot execute because node {prompt[node_id]['class_type']} does not exist.",
                            f"Node ID '#{node_id}'")
        if kind.is_output and (only is None or node_id in only):
            outputs.append(node_id)
    if not outputs:
        return _refused("prompt_no_outputs", "Prompt has no outputs")

    graph = _Graph(prompt, folders)
    good: list[str] = []
    details: list[str] = []
    node_errors: dict[str, dict] = {}
    for output in outputs:
        try:
            with _deep_recursion():
                valid, reasons = graph.check(output)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is an answer
            valid, reasons = False, [_exception("exception_during_validation", "Exception when validating node", error)]
            graph.checked[output] = (valid, reasons)
        if valid:
            good.append(output)
            continue
        logging.error("Failed to validate prompt for output %s:", output)
        details += [f"{reason['message']}: {reason['details']}" for reason in reasons]
        graph.collect(node_errors, output)
        logging.error("Output will be ignored")
    if good:
        return Verdict(None, good, node_errors)
    refusal = _refused("prompt_outputs_failed_validation", "Prompt outputs failed validation", "\n".join(details))
    refusal.node_errors = node_errors
    return refusal


def _refused(kind: str, message: str, details: str = "") -> Verdict:
    return Verdict({"type": kind, "message": message, "details": details, "extra_info": {}}, [], {})


def _exception(kind: str, message: str, error: Exception, before: Optional[dict] = None,
               after: Optional[dict] = None) -> NodeError:
    info = {"exception_type": qualified_name(type(error)), "traceback": traceback.format_tb(sys.exc_info()[2])}
    return {"type": kind, "message": message, "details": str(error),
            "extra_info": {**(before or {}), **info, **(after or {})}}


@contextlib.contextmanager
def _deep_recursion() -> Iterator[None]:
    """Room for DEEPEST_CHAIN. Only meanwhile: the normal limit is what refuses deeply nested JSON."""
    normal = sys.getrecursionlimit()
    sys.setrecursionlimit(normal + DEEPEST_CHAIN * FRAMES_PER_LINK)
    try:
        yield
    finally:
        sys.setrecursionlimit(normal)


class _Graph:
    """One walk over a prompt; each node is checked once, ancestors first."""

    def __init__(self, prompt: dict, folders: Folders) -> None:
        self.prompt, self.folders = prompt, folders
        self.checked: dict[str, Tuple[bool, list[NodeError]]] = {}
        self.open: set[str] = set()

    def check(self, node_id: str) -> Tuple[bool, list[NodeError]]:
        """(valid, own errors): a node whose ancestor fails is invalid without an error of its own."""
        if node_id in self.checked:
            return self.checked[node_id]
        if node_id in self.open:
            # A cycle. The real server runs into Python's recursion limit here, and what is left of that
            # on the way back is an invalid prompt without any node error (transcript cycle.jsonl).
            return False, []
        if len(self.open) > DEEPEST_CHAIN:
            raise RecursionError("maximum recursion depth exceeded")
        self.open.add(node_id)
        try:
            result = self._check_node(node_id)
        finally:
            self.open.discard(node_id)
        self.checked[node_id] = result
        return result

    def _check_node(self, node_id: str) -> Tuple[bool, list[NodeError]]:
        inputs = self.prompt[node_id]["inputs"]
        kind = KINDS[self.prompt[node_id]["class_type"]]
        errors: list[NodeError] = []
        ancestors_valid = True
        for name, (category, wanted, options) in kind.inputs(self.folders).items():
            if category == "hidden":
                continue
            if name not in inputs:
                if category == "required":
                    errors.append(_input_error("required_input_missing", "Required input is missing", name, name))
                continue
            if isinstance(inputs[name], list):
                ancestors_valid &= self._check_link(name, inputs[name], wanted, options, errors)
            else:
                error = _check_value(name, inputs, wanted, options, name in kind.implementation.VALIDATED)
                errors += [error] if error else []
        errors += self._check_custom(kind, inputs)
        return ancestors_valid and not errors, errors

    def _check_link(self, name: str, link: list, wanted: Any, options: dict, errors: list[NodeError]) -> bool:
        """Check a linked input and the node behind it; False when that node, not the link, is what is wrong."""
        config = (wanted, options)
        if len(link) != 2:
            errors.append(_input_error(
                "bad_linked_input", "Bad linked input, must be a length-2 list of [node_id, slot_index]", name, name,
                input_config=config, received_value=link))
            return True
        source, slot = link
        received = KINDS[self.prompt[source]["class_type"]].outputs[slot]
        if not types_match(received, wanted):
            errors.append(_input_error(
                "return_type_mismatch", "Return type mismatch between linked nodes",
                f"{name}, received_type({received}) mismatch input_type({wanted})", name,
                input_config=config, received_type=received, linked_node=link))
            return True
        try:
            return self.check(source)[0]
        except Exception as error:  # noqa: BLE001 - see validate_prompt
            self.checked[source] = (False, [_exception(
                "exception_during_inner_validation", "Exception when validating inner node", error,
                before={"input_name": name, "input_config": config, "exception_message": str(error)},
                after={"linked_node": link})])
            return False

    def _check_custom(self, kind: NodeKind, inputs: dict) -> list[NodeError]:
        names = [name for name in kind.implementation.VALIDATED if name in inputs]
        if not kind.implementation.VALIDATED:
            return []
        # A linked value is not known yet: the node's own check sees None for it.
        values = {name: None if is_link(inputs[name]) else inputs[name] for name in names}
        verdict = kind.implementation.VALIDATE_INPUTS(self.folders, **values)
        if verdict is True:
            return []
        return [_input_error("custom_validation_failed", "Custom validation failed for node",
                             name if verdict is False else f"{name} - {verdict}", name) for name in names]

    def collect(self, node_errors: dict[str, dict], output: str) -> None:
        """Add the failures seen so far to the answer, as belonging to `output`."""
        for node_id, (valid, reasons) in self.checked.items():
            if valid or not reasons:
                continue
            entry = node_errors.setdefault(node_id, {
                "errors": reasons, "dependent_outputs": [], "class_type": self.prompt[node_id]["class_type"]})
            entry["dependent_outputs"].append(output)
            for reason in reasons:
                logging.error("* %s %s: %s: %s", entry["class_type"], node_id, reason["message"], reason["details"])


def _input_error(kind: str, message: str, details: str, name: str, **extra: Any) -> NodeError:
    return {"type": kind, "message": message, "details": details, "extra_info": {"input_name": name, **extra}}


CONVERSIONS = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}


def _check_value(name: str, inputs: dict, wanted: Any, options: dict, custom: bool) -> Optional[NodeError]:
    """Convert a literal in place, then hold it against its limits unless the node checks it itself."""
    config, value = (wanted, options), inputs[name]
    try:
        if isinstance(value, dict) and "__value__" in value:  # how a literal list is told from a link
            inputs[name] = value = value["__value__"]
        if isinstance(wanted, str) and wanted in CONVERSIONS:
            inputs[name] = value = CONVERSIONS[wanted](value)
    except Exception as error:  # noqa: BLE001 - Python's own words are the protocol
        return _input_error(
            "invalid_input_type", f"Failed to convert an input value to a {wanted} value", f"{name}, {value}, {error}",
            name, input_config=config, received_value=value, exception_message=str(error))
    if custom:
        return None
    if "min" in options and value < options["min"]:
        return _input_error("value_smaller_than_min", f"Value {value} smaller than min of {options['min']}", name, name,
                            input_config=config, received_value=value)
    if "max" in options and value > options["max"]:
        return _input_error("value_bigger_than_max", f"Value {value} bigger than max of {options['max']}", name, name,
                            input_config=config, received_value=value)
    if isinstance(wanted, list) and value not in wanted:
        short = len(wanted) <= COMBO_SHOWN_UP_TO
        shown = str(wanted) if short else f"(list of length {len(wanted)})"
        return _input_error("value_not_in_list", "Value not in list", f"{name}: '{value}' not in {shown}", name,
                            input_config=config if short else None, received_value=value)
    return None
