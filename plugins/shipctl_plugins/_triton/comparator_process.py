"""The comparator's process: takes copies of requests, asks both revisions, and writes down how their answers differ.

``python -m shipctl_plugins._triton.comparator_process ORDER.json`` with an :class:`Order`. A copy is answered at once,
since the proxy throws the answer away, and asked again from a queue. The stable revision is asked first: what it
fails itself is no evidence of anything, and the candidate is spared it. The candidate then has a multiple of the time
that the stable one took, so that one which hangs is found soon.

Memory is bounded: by bytes for what is read and queued, by size for each answer. What does not fit is counted and
dropped. The process ends by itself when the door is gone, when it has sent no copies for a while, or when the state
file names another process.
"""

from __future__ import annotations

import json
import os
import queue
import socketserver
import sys
import threading
import time
from concurrent import futures
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from pydantic import Field

from shipctl.records import Record
from shipctl.release.router import Backend
from shipctl_plugins._envoy.config import memo_of
from shipctl_plugins._triton import launcher
from shipctl_plugins._triton.api import LOOPBACK
from shipctl_plugins._triton.comparator_arms import (
    GRPC_METHOD,
    GRPC_OPTIONS,
    MOST_BYTES,
    Arm,
    ArmError,
    Copy,
    SkippedError,
    grpc_copy,
    http_copy,
)
from shipctl_plugins._triton.comparator_log import Line, Log
from shipctl_plugins._triton.tensor_comparison import compare

QUEUED = 256
"""Copies that wait at most."""
BUDGET = 64 * 1024 * 1024
"""Bytes of bodies that are read, wait, or are being asked at most."""
WORKERS = 8
CONNECTIONS = 300
"""At most; the proxy opens 256."""
SLOWER = 10.0
"""Times the stable revision's time that the candidate has for its answer."""
LEAST_S = 5.0
"""Seconds that it has in any case."""
TELL_S = 1.0
LOOK_S = 1.0
GONE_S = 5.0
"""After which a door that does not run is gone: its supervisor starts an Envoy that died within less."""
IDLE_S = 60.0
"""After which a door that copies nothing has no need of a comparator: a watchdog may have closed it."""
_NICE = 5
_CHUNK = 1 << 16


class Order(Record):
    """What is compared, and for whom."""

    folder: Path = Field(description="The door's folder, where the log and the state file are.")
    state: Path = Field(description="The state file of this process.")
    door: tuple[Path, ...] = Field(description="State files of the door's processes; one of them has to run.")
    routes: Path = Field(description="The door's routes.")
    http: int = Field(description="Port of HTTP on loopback.")
    grpc: int = Field(description="Port of gRPC.")
    stable: tuple[Backend, ...] = Field(min_length=1, description="Replicas of the stable revision.")
    candidate: tuple[Backend, ...] = Field(min_length=1, description="Replicas of the candidate.")
    stable_revision: str = Field(description="Its digest, for the log.")
    candidate_revision: str = Field(description="The candidate's.")
    timeout: float = Field(gt=0, description="Seconds that an answer may take.")


class Budget:
    """Bytes that may be held at once."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._lock = threading.Lock()

    def take(self, count: int) -> bool:
        """Take some, and say whether there were so many."""
        with self._lock:
            if count > self._left:
                return False
            self._left -= count
            return True

    def give(self, count: int) -> None:
        """Give some back."""
        with self._lock:
            self._left += count


class Comparator:
    """The queue between those who take copies and those who ask."""

    def __init__(self, order: Order, log: Log) -> None:
        self.order = order
        self.log = log
        self.budget = Budget(BUDGET)
        self._copies: queue.Queue[tuple[Copy, int]] = queue.Queue(QUEUED)
        self._stable, self._candidate = Arm(order.stable), Arm(order.candidate)
        self._aside = {"dropped": 0, "skipped": 0}
        self._lock = threading.Lock()

    def offer(self, made: Any, size: int) -> None:
        """Queue what ``made`` returns; ``size`` bytes of the budget were taken for it, to be given back in the end."""
        try:
            self._copies.put_nowait((made(), size))
        except (SkippedError, queue.Full) as error:
            self.budget.give(size)
            self.count("skipped" if isinstance(error, SkippedError) else "dropped")

    def count(self, kind: str) -> None:
        """Count a copy that is not compared."""
        with self._lock:
            self._aside[kind] += 1

    def tell(self) -> None:
        """Write down what was not compared."""
        with self._lock:
            aside = {kind: count for kind, count in self._aside.items() if count}
            self._aside = dict.fromkeys(self._aside, 0)
        if aside:
            self.log.write(Line(time=time.time(), **self._names, **aside))

    def work(self) -> None:
        """Ask one copy after another, for ever."""
        while True:
            copy, size = self._copies.get()
            try:
                self.log.write(self._compared(copy))
            finally:
                self.budget.give(size)

    @property
    def _names(self) -> dict[str, Any]:
        return {"stable": self.order.stable_revision, "candidate": self.order.candidate_revision}

    def _compared(self, copy: Copy) -> Line:
        found: dict[str, Any] = {"protocol": copy.protocol, **self._names}
        try:
            stable = self._stable.ask(copy, self.order.timeout, others=True)
        except ArmError as error:
            return Line(time=time.time(), error_stable=str(error), **found)
        found["seconds_stable"] = stable.seconds
        limit = min(self.order.timeout, max(LEAST_S, SLOWER * stable.seconds))
        try:
            candidate = self._candidate.ask(copy, limit, others=False)
        except ArmError as error:
            return Line(time=time.time(), error_candidate=str(error), **found)
        difference = compare(stable.outputs, candidate.outputs, copy.classified)
        return Line(
            time=time.time(),
            ok=True,
            seconds_candidate=candidate.seconds,
            **found,
            **difference.__dict__,
        )


# -- receiving ----------------------------------------------------------------------------------------------


class Server(socketserver.ThreadingTCPServer):
    """The receiver of copies over HTTP."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, comparator: Comparator) -> None:
        self.comparator = comparator
        self._connections = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__((LOOPBACK, comparator.order.http), Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection, unless there are too many."""
        if not self._connections.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a proxy that goes away in the middle of a copy is no event."""


class Handler(BaseHTTPRequestHandler):
    """One connection of the proxy."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        """Say who this is."""
        self._answer(json.dumps({"comparator": os.getpid()}).encode())

    def do_POST(self) -> None:
        """Take a copy."""
        comparator = self.server.comparator
        chunked = "chunked" in self.headers.get("Transfer-Encoding", "")
        length = MOST_BYTES if chunked else int(self.headers.get("Content-Length") or 0)
        # Of a body in chunks nobody knows the size before its end, so that the most is taken at first.
        if length > MOST_BYTES or not comparator.budget.take(length):
            comparator.count("dropped")
            self.close_connection = chunked or length > MOST_BYTES
            while not self.close_connection and length > 0:
                length -= len(self.rfile.read(min(length, _CHUNK))) or length
            self._answer(b"")
            return
        try:
            body = self._chunks() if chunked else self.rfile.read(length)
        except BaseException:
            comparator.budget.give(length)
            raise
        self._answer(b"")
        if body is None or not (chunked or len(body) == length):
            comparator.budget.give(length)
            comparator.count("dropped")
            self.close_connection = True
            return
        comparator.budget.give(length - len(body))
        comparator.offer(lambda: http_copy(self.path, dict(self.headers), body), len(body))

    def _chunks(self) -> bytes | None:
        """Return a body in chunks (RFC 9112, section 7.1); None if it is too large."""
        parts: list[bytes] = []
        left = MOST_BYTES
        while size := int(self.rfile.readline(_CHUNK).partition(b";")[0] or b"-1", 16):
            left -= size
            if size < 0 or left < 0:
                return None
            parts.append(self.rfile.read(size))
            self.rfile.readline(_CHUNK)
        while self.rfile.readline(_CHUNK).strip():
            continue  # trailers
        return b"".join(parts)

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def grpc_server(comparator: Comparator) -> Any:
    """Return the receiver of copies over gRPC, which takes them as bytes; not started yet.

    :raises RuntimeError: if the port is taken
    """
    import grpc

    def take(body: bytes, _: Any) -> bytes:
        if comparator.budget.take(len(body)):
            comparator.offer(lambda: grpc_copy(body), len(body))
        else:
            comparator.count("dropped")
        return b""  # an empty message is a valid one

    class Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            if details.method == GRPC_METHOD:
                return grpc.unary_unary_rpc_method_handler(take)
            comparator.count("skipped")
            return None

    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=4),
        handlers=(Handlers(),),
        options=[*GRPC_OPTIONS, ("grpc.so_reuseport", 0)],
        maximum_concurrent_rpcs=64,
    )
    server.add_insecure_port(f"{LOOPBACK}:{comparator.order.grpc}")
    return server


# -- living and ending --------------------------------------------------------------------------------------


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


def main() -> None:
    """Serve until there is nothing to do any more."""
    import numpy  # noqa: F401, ICN001  (before the first copy, which would wait for it)
    import tritonclient.grpc
    import tritonclient.http  # noqa: F401

    order = Order.model_validate_json(Path(sys.argv[1]).read_bytes())
    os.nice(_NICE)  # those who serve go first
    comparator = Comparator(order, Log(order.folder))
    over_grpc = grpc_server(comparator)
    over_http = Server(comparator)
    over_grpc.start()
    for _ in range(WORKERS):
        threading.Thread(target=comparator.work, daemon=True).start()
    threading.Thread(target=over_http.serve_forever, daemon=True).start()
    threading.Thread(target=_tell, args=(comparator,), daemon=True).start()
    watch(order)
    comparator.tell()
    os._exit(0)


def _tell(comparator: Comparator) -> None:
    while True:
        time.sleep(TELL_S)
        comparator.tell()


if __name__ == "__main__":
    main()
