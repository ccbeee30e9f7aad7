"""The comparator's process behind a door: it takes the copies of requests that this door makes, and compares.

``python -m shipctl_plugins._triton.comparator_process ORDER.json`` with an :class:`Order`. It ends by itself when the
door is gone, when it has sent no copies for a while, or when the state file names another process.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

from pydantic import Field

from shipctl_plugins._envoy.config import memo_of
from shipctl_plugins._triton import launcher
from shipctl_plugins._triton.api import LOOPBACK
from shipctl_plugins._triton.comparator_log import Log
from shipctl_plugins._triton.comparator_queue import Comparator, Pair
from shipctl_plugins._triton.comparator_receiver import Server, start

LOOK_S = 1.0
GONE_S = 5.0
"""After which a door that does not run is gone: its supervisor starts an Envoy that died within less."""
IDLE_S = 60.0
"""After which a door that copies nothing has no need of a comparator: a watchdog may have closed it."""


class Order(Pair):
    """What is compared behind a door on this machine."""

    folder: Path = Field(description="The door's folder, where the log and the state file are.")
    state: Path = Field(description="The state file of this process.")
    door: tuple[Path, ...] = Field(description="State files of the door's processes; one of them has to run.")
    routes: Path = Field(description="The door's routes.")
    http: int = Field(description="Port of HTTP on loopback.")
    grpc: int = Field(description="Port of gRPC.")


def main() -> None:
    """Serve until there is nothing to do any more."""
    order = Order.model_validate_json(Path(sys.argv[1]).read_bytes())
    comparator = Comparator(order, Log(order.folder))
    over_grpc = start(comparator, f"{LOOPBACK}:{order.grpc}")
    threading.Thread(target=Server(comparator, LOOPBACK, order.http).serve_forever, daemon=True).start()
    watch(order)
    comparator.tell()
    over_grpc.stop(None)
    os._exit(0)


def watch(order: Order) -> None:
    """Return when there is nothing to do any more."""
    running = copying = time.monotonic()
    while True:
        time.sleep(LOOK_S)
        now = time.monotonic()
        running = now if any(map(launcher.is_running, order.door)) else running
        copying = now if _copies(order.routes) else copying
        if now - running > GONE_S or now - copying > IDLE_S or not _ours(order.state):
            return


def _copies(routes: Path) -> bool:
    try:
        return memo_of(json.loads(routes.read_text())["resources"][0]).traffic.mirror is not None
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _ours(state: Path) -> bool:
    try:
        return bool(json.loads(state.read_text())["pid"] == os.getpid())
    except (OSError, ValueError, LookupError, TypeError):
        return False


if __name__ == "__main__":
    main()
