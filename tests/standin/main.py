#!/usr/bin/env python3
"""A stand-in for ComfyUI 0.3.64: same start, same protocol, same page, no torch and no models.

    python3 main.py --port 8188

Works in the current folder (or --base-directory): ./input ./output ./temp ./models ./user. What the real server
keeps beside its main.py, this one keeps there, so that one copy serves many tests at once.
"""
from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shutil
import sys
import threading
import time
from typing import Optional

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

try:
    import aiohttp  # noqa: F401
    import PIL  # noqa: F401
except ImportError as missing:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.exit(f"{missing.name} is missing. Install with: "
             f"{sys.executable} -m pip install -r {os.path.join(here, 'requirements.txt')}")

from aiohttp import web

import frontend
from folders import Folders

# Flags of the real server that mean nothing here. They are accepted, so that one command line fits both.
REAL_FLAGS_WITH_VALUE = (
    "--cuda-device", "--default-device", "--oneapi-device-selector", "--preview-method", "--preview-size",
    "--cache-lru", "--reserve-vram", "--default-hashing-function", "--tls-keyfile", "--tls-certfile",
    "--user-directory", "--database-url", "--front-end-version", "--comfy-api-base", "--directml",
)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Command line and STANDIN_* variables. Unknown flags are logged and passed by."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--port", type=int, default=8188)
    parser.add_argument("--listen", nargs="?", default="127.0.0.1", const="0.0.0.0,::", metavar="IP")
    parser.add_argument("--base-directory")
    parser.add_argument("--output-directory")
    parser.add_argument("--input-directory")
    parser.add_argument("--temp-directory")
    parser.add_argument("--front-end-root")
    parser.add_argument("--max-upload-size", type=float, default=100, help="in MB")
    parser.add_argument("--extra-model-paths-config", nargs="+", action="append", metavar="PATH")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--boot-delay", type=float, default=float(os.environ.get("STANDIN_BOOT_DELAY", 0)),
                        metavar="SECONDS", help="boot for so long before binding the port")
    parser.add_argument("--standin-boot", default=os.environ.get("STANDIN_BOOT", "normal"), metavar="HOW",
                        help="normal, exit (fails at once), hang (never binds) or slow:SECONDS")
    parser.add_argument("--standin-boot-file", default=os.environ.get("STANDIN_BOOT_FILE"), metavar="FILE",
                        help="while this file is there its word counts: exit, or hang (until it is gone)")
    parser.add_argument("--standin-extra-nodes", default=os.environ.get("STANDIN_EXTRA_NODES"), metavar="FILE",
                        help="a recorded /object_info: its classes convert and validate, but fail when run")
    for flag in REAL_FLAGS_WITH_VALUE:
        parser.add_argument(flag, nargs="?", help=argparse.SUPPRESS)
    options, unknown = parser.parse_known_args(arguments)
    ignored = unknown + [flag for flag in REAL_FLAGS_WITH_VALUE
                         if getattr(options, flag[2:].replace("-", "_")) is not None]
    if ignored:
        logging.info("The stand-in ignores: %s", " ".join(ignored))
    return options


def fail_boot() -> None:
    logging.error("The stand-in was told to fail its boot")
    sys.exit(1)


def word_in(path: Optional[str]) -> str:
    """What the file says; nothing when it is not there."""
    try:
        with open(path or os.devnull, encoding="utf-8") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def boot_fault(options: argparse.Namespace) -> None:
    """Go through the boot that was ordered; returns only if the server is to come up."""
    while ordered := word_in(options.standin_boot_file):
        if ordered == "exit":
            fail_boot()
        time.sleep(0.1)
    how, _, seconds = options.standin_boot.partition(":")
    if how == "exit":
        fail_boot()
    if how == "hang":
        while True:
            time.sleep(3600)
    if how not in ("normal", "slow"):
        sys.exit(f"--standin-boot {options.standin_boot}: expected normal, exit, hang or slow:SECONDS")
    time.sleep(options.boot_delay + (float(seconds or 10) if how == "slow" else 0))


def find_frontend(root: Optional[str]) -> Optional[str]:
    """The page's files: --front-end-root, else the installed package, else None with a hint in the log."""
    folder = root or frontend.package_folder("comfyui_frontend_package", "static")
    if folder is None:
        logging.warning("comfyui-frontend-package is not installed, so / answers 404. Install with: "
                        "%s -m pip install -r requirements.txt", sys.executable)
    return folder


async def serve(options: argparse.Namespace, folders: Folders) -> None:
    """Bind and serve forever. A taken port raises OSError."""
    from server import PromptServer  # here, so that a boot fault costs no imports

    server = PromptServer(folders, find_frontend(options.front_end_root), options.max_upload_size)
    server.start_prompt_thread()
    runner = web.AppRunner(server.app, access_log=None, handle_signals=False)
    await runner.setup()
    logging.info("Starting server\n")
    for address in options.listen.split(","):
        await web.TCPSite(runner, address, options.port).start()
        shown = f"[{address}]" if ":" in address else address
        logging.info("To see the GUI go to: http://%s:%s", shown, options.port)
    await server.hub.publish()


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = parse(sys.argv[1:])
    logging.info("ComfyUI version: 0.3.64 (stand-in)")
    folders = Folders(options.base_directory or os.getcwd(), options.output_directory, options.input_directory,
                      options.temp_directory, sum(options.extra_model_paths_config or [], []))
    shutil.rmtree(folders.temp, ignore_errors=True)  # the real server empties temp at boot, too
    folders.create()
    boot_fault(options)
    fifo = os.environ.get("STANDIN_STARTUP_THREAD")
    if fifo:  # a thread as custom nodes have them: it waits, and ends some time after the boot
        threading.Thread(target=lambda: open(fifo).close(), daemon=True).start()
    import nodes_core, nodes_faults, nodes_output  # noqa: E401, F401 - registering is their purpose

    if options.standin_extra_nodes:
        from node import describe_foreign

        logging.info("%d classes known by description only", describe_foreign(options.standin_extra_nodes))
    try:
        asyncio.run(serve(options, folders))
    except OSError as error:
        logging.error("%s", error)
        return 1
    except KeyboardInterrupt:
        logging.info("\nStopped server")
    return 0


if __name__ == "__main__":
    sys.exit(main())
