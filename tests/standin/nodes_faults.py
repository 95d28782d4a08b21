"""Test nodes that misbehave: they fail, hang, crash, and lie about their files."""
from __future__ import annotations

import collections
import ctypes
import itertools
import os
import signal
import subprocess
import threading
import time
from typing import Any, Callable, Optional

from folders import Folders
from images import Batch
from node import Call, Node, Ui, standin
from nodes_output import file_item
from nodes_test import IMAGE_INPUT, POLL_SECONDS, passed, seconds_input, sleep, text_input

OUTPUTS = ("IMAGE",)


def exception_named(qualified: str, message: str) -> Exception:
    """An exception whose type the protocol will call `qualified`, such as "torch.OutOfMemoryError"."""
    module, _, name = qualified.rpartition(".")
    kind = type(name, (RuntimeError,), {"__module__": module or "builtins", "__qualname__": name})
    return kind(message)


@standin({"message": text_input("the stand-in was told to fail"), "exception_type": text_input("Exception")},
         OUTPUTS, output_node=True, optional=IMAGE_INPUT)
class StandinFail(Node):
    """Raises an exception of any type name."""

    def run(self, call: Call, message: str, exception_type: str,
            image: Optional[Batch] = None, seed: int = 0) -> tuple:
        raise exception_named(exception_type, message)


@standin({"mode": [["always", "until_free", "once"]]}, OUTPUTS, output_node=True, optional=IMAGE_INPUT)
class StandinOutOfMemory(Node):
    """Runs out of GPU memory: always, until POST /free was applied after its first failure, or once.

    Failures are remembered by seed, so each seed starts afresh.
    """

    failed_at: dict[tuple[str, int], int] = {}  # (mode, seed) -> frees applied before the first failure

    def run(self, call: Call, mode: str, image: Optional[Batch] = None, seed: int = 0) -> tuple:
        frees = call.server.executor.frees
        first_failure = self.failed_at.get((mode, seed))
        if first_failure is not None and (mode == "once" or mode == "until_free" and frees > first_failure):
            return passed(image)
        self.failed_at.setdefault((mode, seed), frees)
        raise exception_named("torch.OutOfMemoryError", "Allocation on device ")


@standin({"sticky": ["BOOLEAN", {"default": True}]}, OUTPUTS, output_node=True, optional=IMAGE_INPUT)
class StandinCudaError(Node):
    """Loses the GPU. If sticky, every node of every later prompt fails too, until the process is restarted."""

    MESSAGE = ("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously "
               "reported at some other API call, so the stacktrace below might be incorrect.")

    def run(self, call: Call, sticky: bool, image: Optional[Batch] = None, seed: int = 0) -> tuple:
        error = exception_named("torch.AcceleratorError", self.MESSAGE)
        if sticky:
            call.server.faults.lost_device = error
        raise error


@standin({}, OUTPUTS, output_node=True, optional=IMAGE_INPUT)
class StandinHang(Node):
    """Hangs until it is interrupted."""

    def run(self, call: Call, image: Optional[Batch] = None, seed: int = 0) -> tuple:
        while True:
            call.check_interrupt()
            time.sleep(POLL_SECONDS)


@standin({"seconds": seconds_input(30.0)}, OUTPUTS, output_node=True, optional=IMAGE_INPUT)
class StandinIgnoreInterrupt(Node):
    """Runs so long, whatever anybody wants; an interrupt takes effect after it."""

    def run(self, call: Call, seconds: float, image: Optional[Batch] = None, seed: int = 0) -> tuple:
        time.sleep(seconds)
        return passed(image)


@standin({"how": [["exit", "kill", "abort"]], "exit_code": ["INT", {"default": 1, "min": 0, "max": 255}],
          "after_seconds": seconds_input(0.0)}, OUTPUTS, output_node=True, optional=IMAGE_INPUT)
class StandinCrash(Node):
    """Ends the whole server: by an exit code, by SIGKILL (as the kernel does when memory runs out), or by SIGABRT."""

    def run(self, call: Call, how: str, exit_code: int, after_seconds: float,
            image: Optional[Batch] = None, seed: int = 0) -> tuple:
        sleep(call, after_seconds)
        if how == "exit":
            os._exit(exit_code)
        os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGABRT)
        time.sleep(60)
        return passed(image)


@standin({}, OUTPUTS, output_node=True, optional=IMAGE_INPUT)
class StandinKillParent(Node):
    """Kills the process that started this server, as a job that takes all memory has the kernel do."""

    def run(self, call: Call, image: Optional[Batch] = None, seed: int = 0) -> tuple:
        if os.getppid() > 1:
            os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
        return passed(image)


@standin({}, OUTPUTS, output_node=True,
         optional={**IMAGE_INPUT, "how": [["exit", "exception"], {"default": "exit"}]})
class StandinKillPromptThread(Node):
    """Ends the prompt thread: the prompt stays listed as running forever, HTTP goes on, nothing runs any more.

    Python says nothing about an `exit`, and prints an `exception`.
    """

    def run(self, call: Call, image: Optional[Batch] = None, how: str = "exit", seed: int = 0) -> tuple:
        # No Exception, so no handler of the executor stops it.
        raise SystemExit if how == "exit" else BaseException("the stand-in was told to end its prompt thread")


def hold_lock(seconds: float, how: str) -> None:
    """Keep every other thread from running: at work, or waiting for nothing. One call into C each."""
    if how == "wait":
        ctypes.PyDLL(None).sleep(round(seconds))  # unlike CDLL it keeps the lock
        return
    rounds, took = 1_000_000, 0.0
    while took < 0.05:
        begin = time.perf_counter()
        collections.deque(itertools.repeat(None, rounds), maxlen=0)
        took, rounds = time.perf_counter() - begin, rounds * 2
    collections.deque(itertools.repeat(None, int(rounds / 2 / took * seconds)), maxlen=0)


@standin({"seconds": seconds_input(30.0), "how": [["work", "wait"]]}, OUTPUTS, output_node=True,
         optional={**IMAGE_INPUT, "later": ["BOOLEAN", {"default": False}]})
class StandinHoldLock(Node):
    """Holds Python's lock, as the build of a TensorRT engine does: nothing is answered meanwhile. `later`: a second
    after it has returned."""

    def run(self, call: Call, seconds: float, how: str, later: bool = False,
            image: Optional[Batch] = None, seed: int = 0) -> tuple:
        if later:
            threading.Timer(1.0, hold_lock, (seconds, how)).start()
        else:
            hold_lock(seconds, how)
        return passed(image)


@standin({}, OUTPUTS, output_node=True, optional=IMAGE_INPUT)
class StandinSlowDescription(Node):
    """Takes so long to say what its inputs are as `STANDIN_SLOW_DESCRIPTION` says, a file, once there is one: as a node
    that looks through a network share. Nobody else is answered meanwhile."""

    @staticmethod
    def refresh(info: dict, folders: Folders) -> None:
        path = os.environ.get("STANDIN_SLOW_DESCRIPTION", "")
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                time.sleep(float(file.read()))

    def run(self, call: Call, image: Optional[Batch] = None, seed: int = 0) -> tuple:
        return passed(image)


@standin({"megabytes": ["INT", {"default": 100, "min": 1, "max": 100_000}]}, OUTPUTS, output_node=True,
         optional=IMAGE_INPUT)
class StandinLeak(Node):
    """Takes memory and never gives it back."""

    kept: list[bytearray] = []

    def run(self, call: Call, megabytes: int, image: Optional[Batch] = None, seed: int = 0) -> tuple:
        self.kept.append(bytearray(b"\1") * (megabytes * 1024 * 1024))
        return passed(image)


@standin({"seconds": seconds_input(600.0), "how": [["child", "session", "orphan", "stray"]]}, OUTPUTS, output_node=True,
         optional=IMAGE_INPUT)
class StandinSpawn(Node):
    """Leaves a sleeping process behind: a plain child, one with a session of its own, an orphan (double fork), or a
    stray (an orphan with nothing in its environment).

    Shows its pid (key `text`). A plain child becomes a zombie when it ends: nobody waits for it.
    """

    def run(self, call: Call, seconds: float, how: str, image: Optional[Batch] = None, seed: int = 0) -> Ui:
        if how in ("orphan", "stray"):
            # The shell ends at once; its child, in a new session, is inherited by init or the worker.
            script = f"{'env -i ' if how == 'stray' else ''}setsid sleep {seconds} >/dev/null 2>&1 & echo $!"
            pid = subprocess.run(["sh", "-c", script], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
        else:
            child = subprocess.Popen(["sleep", str(seconds)], start_new_session=how == "session")
            _unawaited.append(child)  # kept, so that Python does not reap it on its own
            pid = str(child.pid)
        return Ui({"text": [pid]}, passed(image))


_unawaited: list[subprocess.Popen] = []


# --- files that are not what the outputs say ---------------------------------------------------------------------


def _write(path: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write("made by StandinMisbehave\n")


def _real(folders: Folders, name: str) -> list:
    """An honest file in output/ under a strange name."""
    _write(os.path.join(folders.output, name))
    return [file_item(name, "")]


def _escape(folders: Folders, filename: str, subfolder: str) -> list:
    """A real file beside output/, reached by leaving it."""
    _write(os.path.join(folders.base, "standin_escape.txt"))
    return [file_item(filename, subfolder)]


def _fresh(path: str) -> str:
    if os.path.lexists(path):
        os.unlink(path)
    return path


def _link(make: Callable[[str, str], None], folders: Folders, target: str, name: str) -> list:
    make(target, _fresh(os.path.join(folders.output, name)))
    return [file_item(name, "")]


def _linked_folder(folders: Folders, target: str) -> list:
    os.symlink(os.path.dirname(target), _fresh(os.path.join(folders.output, "linked_folder")))
    return [file_item(os.path.basename(target), "linked_folder")]


def _fifo(folders: Folders, target: str) -> list:
    os.mkfifo(_fresh(os.path.join(folders.output, "fifo.png")))
    return [file_item("fifo.png", "")]


def _directory(folders: Folders, target: str) -> list:
    os.makedirs(os.path.join(folders.output, "directory.png"), exist_ok=True)
    return [file_item("directory.png", "")]


#: mode -> (folders, target) -> the value listed under `images`
MISDEEDS: dict[str, Callable[[Folders, str], Any]] = {
    "parent": lambda folders, _: _escape(folders, "../standin_escape.txt", ""),
    "parent_subfolder": lambda folders, _: _escape(folders, "standin_escape.txt", ".."),
    "absolute": lambda folders, _: _escape(folders, os.path.join(folders.base, "standin_escape.txt"), ""),
    "absolute_subfolder": lambda folders, _: _escape(folders, "standin_escape.txt", folders.base),
    "symlink": lambda folders, target: _link(os.symlink, folders, target, "symlink.png"),
    "symlink_folder": _linked_folder,
    "hard_link": lambda folders, target: _link(os.link, folders, target, "hard_link.png"),
    "fifo": _fifo,
    "directory": _directory,
    "missing": lambda folders, _: [file_item("never_written.png", "")],
    "newline": lambda folders, _: _real(folders, "line\nfeed.png"),
    "ansi": lambda folders, _: _real(folders, "\x1b[31mred\x1b[0m.png"),
    "right_to_left": lambda folders, _: _real(folders, "photo\u202egnp.exe"),
    "dash": lambda folders, _: _real(folders, "-rf"),
    "backslash": lambda folders, _: _real(folders, "..\\..\\x.png"),
    "percent": lambda folders, _: _real(folders, "%2e%2e%2fx.png"),
    "annotated": lambda folders, _: _real(folders, "x.png [input]"),
    "composed_twins": lambda folders, _: _real(folders, "caf\u00e9.png") + _real(folders, "cafe\u0301.png"),
    "case_twins": lambda folders, _: _real(folders, "Twin.png") + _real(folders, "twin.png"),
    "same_twice": lambda folders, _: _real(folders, "twice.png") * 2,
    "long_255": lambda folders, _: _real(folders, "n" * 251 + ".png"),
    "long_300": lambda folders, _: [file_item("n" * 296 + ".png", "")],
    "empty": lambda folders, _: [file_item("", "")],
    "dot": lambda folders, _: [file_item(".", "")],
    "nul": lambda folders, _: [file_item("a\0b.png", "")],
    "lone_surrogate": lambda folders, _: [file_item("\ud800.png", "")],
    "unknown_type": lambda folders, _: [file_item("x.png", "", "nowhere")],
    "wrong_types": lambda folders, _: [{"filename": 5, "subfolder": None, "type": ["output"]}, None, 7, "text", []],
    "no_list": lambda folders, _: "not a list",
    "half_item": lambda folders, _: [{"filename": "x.png"}],
}


@standin({"mode": [list(MISDEEDS)], "target": text_input("/etc/passwd")}, OUTPUTS, output_node=True,
         optional=IMAGE_INPUT)
class StandinMisbehave(Node):
    """Lists files (key `images`) that lead out, are no files, or bear hostile names. Links lead to `target`."""

    def run(self, call: Call, mode: str, target: str, image: Optional[Batch] = None, seed: int = 0) -> Ui:
        return Ui({"images": MISDEEDS[mode](self.folders, target)}, passed(image))
