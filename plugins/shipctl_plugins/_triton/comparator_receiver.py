"""Taking copies of requests over HTTP and gRPC: each is answered at once, since the proxy throws the answer away."""

from __future__ import annotations

import json
import os
import socket
import socketserver
import threading
import time
from concurrent import futures
from http.server import BaseHTTPRequestHandler
from typing import Any

from shipctl_plugins._triton.comparator_arms import (
    GRPC_METHOD,
    GRPC_OPTIONS,
    MOST_BYTES,
    grpc_copy,
    http_copy,
)
from shipctl_plugins._triton.comparator_queue import Comparator

WORKERS = 8
CONNECTIONS = 300
"""At most; the proxy opens 256."""
TELL_S = 1.0
_NICE = 5
_CHUNK = 1 << 16


class Server(socketserver.ThreadingTCPServer):
    """The receiver of copies over HTTP."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self, comparator: Comparator, host: str, port: int, handler: type[Handler] | None = None
    ) -> None:
        self.comparator = comparator
        self._connections = threading.BoundedSemaphore(CONNECTIONS)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), handler or Handler)

    def server_bind(self) -> None:
        """Listen for IPv4, too, where it is for any address."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

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


def grpc_server(comparator: Comparator, address: str) -> Any:
    """Return the receiver of copies over gRPC at ``address``, which takes them as bytes; not started yet.

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
    server.add_insecure_port(address)
    return server


def start(comparator: Comparator, grpc_address: str, workers: int = WORKERS) -> Any:
    """Receive copies over gRPC, ask, and tell, in threads; HTTP is left to the caller. Returns what to keep for that.

    :raises RuntimeError: if the port is taken
    """
    import numpy  # noqa: F401, ICN001  (before the first copy, which would wait for it)
    import tritonclient.grpc
    import tritonclient.http  # noqa: F401

    os.nice(_NICE)  # those who serve go first
    over_grpc = grpc_server(comparator, grpc_address)
    over_grpc.start()
    for _ in range(workers):
        threading.Thread(target=comparator.work, daemon=True).start()
    threading.Thread(target=_tell, args=(comparator,), daemon=True).start()
    return over_grpc


def _tell(comparator: Comparator) -> None:
    while True:
        time.sleep(TELL_S)
        comparator.tell()
