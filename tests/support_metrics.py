"""A server that answers as a test says, for what asks over HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

STABLE, CANDIDATE = "a" * 64, "b" * 64


@dataclass
class Asked:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: str


@dataclass
class Web:
    """A server on loopback. ``answer`` returns status and body; None sends nothing and holds the connection."""

    answer: Callable[[Asked], tuple[int, str] | None] = lambda _: (200, "")
    asked: list[Asked] = field(default_factory=list)
    drip: float = 0.0
    """Seconds between two bytes of the answer."""
    headers: dict[str, str] = field(default_factory=dict)
    declared: int | None = None
    """Content-Length, where it is not the true one."""
    done: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serving(web: Web) -> Iterator[Web]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._do()

        def do_POST(self) -> None:
            self._do()

        def _do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(self.command, self.path, headers, body)
            web.asked.append(asked)
            answer = web.answer(asked)
            if answer is None:
                web.done.wait(30)
                return
            content = answer[1].encode()
            self.send_response(answer[0])
            for name, value in web.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content) if web.declared is None else web.declared))
            self.end_headers()
            if not web.drip:
                self.wfile.write(content)
                return
            for byte in content:
                if web.done.wait(web.drip):
                    return
                try:
                    self.wfile.write(bytes([byte]))
                except OSError:
                    return

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", web.port), Handler) as server:
        server.daemon_threads = True
        web.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield web
        finally:
            web.done.set()
            server.shutdown()
            thread.join()


def elapsed(call: Callable[[], object]) -> float:
    """Return how many seconds a call takes."""
    start = time.monotonic()
    call()
    return time.monotonic() - start
