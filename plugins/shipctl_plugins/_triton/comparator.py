"""The receiver of copies as its owner sees it: a process in the door's folder that outlives us, and ends with the door.

Below the door's folder::

    comparator.json           who it is, written by :mod:`shipctl_plugins._triton.launcher`
    comparator-order.json     what it compares, and where it listens
    comparator-start.json     how it was started
    comparator.log            what it said
    comparisons.jsonl         one line per comparison, see :mod:`shipctl_plugins._triton.comparator_log`
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from shipctl.errors import StageError
from shipctl.release.router import Backend
from shipctl.store.files import write_atomic
from shipctl_plugins._envoy.processes import Detached
from shipctl_plugins._triton.api import LOOPBACK
from shipctl_plugins._triton.comparator_log import FILE
from shipctl_plugins._triton.comparator_process import Order
from shipctl_plugins._triton.processes import free_ports, is_free
from shipctl_plugins._triton.server import log_tail

TIMEOUT_S = 30.0
"""How long an answer may take."""
START_S = 30.0
_ATTEMPTS = 3
_POLL_S = 0.05
_GOING_S = 2.0
"""How long a process that was ended may still hold its ports."""


class Comparator:
    """The comparator of a door. There is one process at most, which this or another one of us has started."""

    def __init__(self, folder: Path, *, log: Callable[[str], None] = print) -> None:
        """``folder`` is that of the door, such as :attr:`shipctl_plugins._envoy.proxy.Proxy.folder`."""
        self.folder = folder.absolute()
        self.log = log
        self._process = Detached(self.folder / "comparator.json")

    @property
    def comparisons(self) -> Path:
        """Where the comparisons are written down."""
        return self.folder / FILE

    @property
    def running(self) -> bool:
        """Whether the process runs."""
        return self._process.alive

    @property
    def pid(self) -> int | None:
        """Its process id, alive or not."""
        return self._process.pid

    def ensure(
        self,
        stable: Sequence[Backend],
        candidate: Sequence[Backend],
        *,
        stable_revision: str,
        candidate_revision: str,
        timeout: float = TIMEOUT_S,
    ) -> Backend:
        """Have a comparator of these two run, and return where it listens once it does.

        One that compares others is replaced; the ports stay the same if they are free.
        ``timeout`` is in seconds, for each answer of a revision.

        :raises StageError: if it does not start
        """
        if not stable or not candidate:
            message = "there is nothing to compare: one of the two revisions has no replicas"
            raise StageError(message)
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            known = self._known()
            for _ in range(_ATTEMPTS):
                ports = (known.http, known.grpc) if known is not None else (0, 0)
                order = Order(
                    folder=self.folder,
                    state=self._process.state,
                    door=(self.folder / "envoy.json", self.folder / "supervisor.json"),
                    routes=self.folder / "routes.json",
                    http=ports[0],
                    grpc=ports[1],
                    stable=tuple(stable),
                    candidate=tuple(candidate),
                    stable_revision=stable_revision,
                    candidate_revision=candidate_revision,
                    timeout=timeout,
                )
                if order == known and self._answers(order):
                    return _backend(order)
                self._process.stop()
                order = _with_ports(order)
                if self._start(order):
                    return _backend(order)
                known = None
        tail = "\n    ".join(log_tail(self.folder / "comparator.log")) or "(nothing)"
        message = (
            f"the comparator of the door {self.folder.name} does not start; its log ends with\n    {tail}"
        )
        raise StageError(message)

    def stop(self) -> list[str]:
        """End it, and say what was stopped. The comparisons stay."""
        if not self._process.state.exists():
            return []
        with self._alone():
            if not self._process.stop():
                return []
        return [f"the comparator of the door {self.folder.name}"]

    def _start(self, order: Order) -> bool:
        path = self.folder / "comparator-order.json"
        write_atomic(path, order.model_dump_json(indent=1).encode(), durable=False)
        command = [sys.executable, "-P", "-m", "shipctl_plugins._triton.comparator_process", str(path)]
        self._process.start(self.folder / "comparator-start.json", command, self.folder / "comparator.log")
        deadline = time.monotonic() + START_S
        while self._process.alive and time.monotonic() < deadline:
            if self._answers(order):
                self.log(f"the comparator of the door {self.folder.name} runs (pid {self._process.pid})")
                return True
            time.sleep(_POLL_S)
        self._process.stop()
        return False

    def _answers(self, order: Order) -> bool:
        """Whether it is our process that answers."""
        if not self._process.alive:
            return False
        connection = http.client.HTTPConnection(LOOPBACK, order.http, timeout=2)
        try:
            connection.request("GET", "/")
            said = json.loads(connection.getresponse().read())
            return bool(said["comparator"] == self._process.pid)
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
            return False
        finally:
            connection.close()

    def _known(self) -> Order | None:
        try:
            return Order.model_validate_json((self.folder / "comparator-order.json").read_bytes())
        except (OSError, ValidationError):
            return None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Start and stop one at a time."""
        descriptor = os.open(self.folder / "comparator.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _with_ports(order: Order) -> Order:
    """Return it with the ports of last time if they get free, else with others that are."""
    deadline = time.monotonic() + _GOING_S
    while order.http and order.grpc:
        if is_free(order.http) and is_free(order.grpc):
            return order
        if time.monotonic() > deadline:
            break
        time.sleep(_POLL_S)
    http_port, grpc_port = free_ports(2)
    return order.model_copy(update={"http": http_port, "grpc": grpc_port})


def _backend(order: Order) -> Backend:
    return Backend(name="comparator", http=f"{LOOPBACK}:{order.http}", grpc=f"{LOOPBACK}:{order.grpc}")
