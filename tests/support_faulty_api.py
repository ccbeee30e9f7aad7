"""An API server that misbehaves on demand: real sockets, and answers that a test has written down."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

TOKEN = "sesame-open-0123456789"
"""What kubeconfigs of :meth:`FaultyApi.kubeconfig` log in with."""

Act = Callable[["Handler"], None]


@dataclass(frozen=True)
class Seen:
    """One request that has arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any
    when: float


@dataclass
class FaultyApi:
    """Answers each request with the next of ``acts``; the last one is repeated."""

    url: str = ""
    acts: list[Act] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    ending: threading.Event = field(default_factory=threading.Event)
    connections: list[socket.socket] = field(default_factory=list)

    def then(self, *acts: Act) -> FaultyApi:
        self.acts += acts
        return self

    def next(self) -> Act:
        return self.acts.pop(0) if len(self.acts) > 1 else self.acts[0]

    def kubeconfig(self, folder: Path, user: dict[str, Any] | None = None, **cluster: Any) -> Path:
        path = folder / "kubeconfig"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {"server": self.url, **cluster}}],
            "users": [{"name": "me", "user": {"token": TOKEN} if user is None else user}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "me", "namespace": "shop"}}],
        }
        path.write_text(json.dumps(config))
        return path


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: FaultyApi

    def setup(self) -> None:
        super().setup()
        self.api.connections.append(self.connection)

    def handle_any(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        content = self.rfile.read(length)
        parts = urlsplit(self.path)
        body = json.loads(content) if content[:1] in {b"{", b"["} else content
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        self.api.seen.append(Seen(self.command, parts.path, query, headers, body, time.monotonic()))
        with suppress(OSError):
            self.api.next()(self)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815  (the standard library's names)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()


@contextmanager
def faulty_api(tls: Any = None) -> Iterator[FaultyApi]:
    """Run one on loopback; ``tls`` is an ``ssl.SSLContext``."""
    api = FaultyApi()
    bound = type("Bound", (Handler,), {"api": api})
    server = ThreadingHTTPServer(("127.0.0.1", 0), bound)
    server.daemon_threads = False
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    api.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield api
    finally:
        api.ending.set()
        server.shutdown()
        thread.join()
        for connection in api.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        server.server_close()


# -- what it may do -------------------------------------------------------------------------------------------


def answer(body: Any = None, status: int = 200, **headers: str) -> Act:
    """Answer with JSON; names of headers have `_` for `-`."""

    def act(handler: Handler) -> None:
        content = json.dumps({"kind": "Thing", **(body or {})}).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return act


def refusal(status: int, reason: str = "", message: str = "no", headers: Any = None, **details: Any) -> Act:
    """Answer with a `Status`."""
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "reason": reason,
        "message": message,
        "details": details,
        "code": status,
    }
    return answer(body, status, **(headers or {}))


def page(text: str, status: int = 200) -> Act:
    """Answer with a page of text, as something that is no API server does."""

    def act(handler: Handler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", "text/html")
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text.encode())

    return act


def hang(seconds: float = 60.0) -> Act:
    """Say nothing for a while and then close."""

    def act(handler: Handler) -> None:
        handler.close_connection = True
        handler.api.ending.wait(seconds)

    return act


def slow(seconds: float, then: Act) -> Act:
    """Answer later."""

    def act(handler: Handler) -> None:
        if not handler.api.ending.wait(seconds):
            then(handler)

    return act


def reset(handler: Handler) -> None:
    """Tear the connection down without an answer (RST)."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.close()


def half(handler: Handler) -> None:
    """Begin an answer, and close within it."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"kind": "Thi')
    handler.close_connection = True


def drip(handler: Handler) -> None:
    """Send a byte every tenth of a second, for ever."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    while not handler.api.ending.wait(0.1):
        handler.wfile.write(b" ")


def stream(events: Sequence[Any], end: str = "close", pause: float = 0.0) -> Act:
    """Send events of a watch, and then `close` it, `cut` it within a line, or `hang`."""

    def send(handler: Handler, content: bytes) -> None:
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))

    def act(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for event in events:
            handler.api.ending.wait(pause)
            send(handler, json.dumps(event).encode() + b"\n")
        if end == "hang":
            handler.api.ending.wait(60)
        if end == "cut":
            send(handler, b'{"type": "MODIFIED", "obj')
            handler.close_connection = True
        else:
            handler.wfile.write(b"0\r\n\r\n")

    return act


def event(kind: str, name: str, version: int) -> dict[str, Any]:
    """Return an event of a watch of ConfigMaps."""
    metadata = {"name": name, "resourceVersion": str(version)}
    return {"type": kind, "object": {"kind": "ConfigMap", "apiVersion": "v1", "metadata": metadata}}
