"""A small HTTP proxy that spoils what goes through it, in front of a real server.

One request at a time per connection. It knows just enough of HTTP to find where a body begins and ends; requests are
passed on as they came, with their Host header, so that signatures stay right.
"""

from __future__ import annotations

import contextlib
import io
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_CHUNK = 1 << 16


@dataclass
class Request:
    """One request as the client sent it."""

    method: str
    target: str
    headers: dict[str, str]
    received: int = 0
    """Bytes of the body that came from the client."""

    @property
    def length(self) -> int:
        """Bytes that its body has."""
        return int(self.headers.get("content-length", "0"))


@dataclass
class Fault:
    """What to do to the next ``times`` requests that ``when`` is true for. The first one that fits is taken."""

    when: Callable[[Request], bool]
    times: int = 1
    cut_request: int | None = None
    """Break the connection after so many bytes of the request's body."""
    cut_answer: int | None = None
    """Close the connection after so many bytes of the answer's body."""
    drop_answer: bool = False
    """Let the server act, and break the connection without an answer."""
    answer: tuple[int, str] | None = None
    """Status and body (XML) of an answer of our own; the server hears nothing."""
    headers: dict[str, str] = field(default_factory=dict)
    """Further headers of ``answer``."""
    flip_request: int | None = None
    """Change the byte at this place of the request's body."""
    flip_answer: int | None = None
    """Change the byte at this place of the answer's body."""
    without: str = ""
    """A header of the request that the server does not get to see."""
    delay: float = 0.0
    """Seconds to wait before the answer is passed on."""


class _CutError(Exception):
    """The connection breaks, as when a machine goes away."""


class _EndError(Exception):
    """The connection is closed in good order, but too early."""


@dataclass
class Proxy:
    """A running proxy: its faults can be changed, and what it saw be read, at any time."""

    endpoint: str
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(self, method: str = "", part: str = "", **what: object) -> Fault:
        """Add a fault for requests of that method whose target contains ``part``."""
        fault = Fault(lambda seen: seen.method.startswith(method) and part in seen.target, **what)  # type: ignore[arg-type]
        self.faults.append(fault)
        return fault

    def reset(self) -> None:
        """Forget faults and requests."""
        with self._lock:
            self.faults.clear()
            self.requests.clear()

    def bodies(self, method: str = "PUT", part: str = "") -> int:
        """Bytes of bodies that came with such requests."""
        return sum(seen.received for seen in self.seen(method, part))

    def seen(self, method: str = "", part: str = "") -> list[Request]:
        """The requests of that method whose target contains ``part``."""
        return [seen for seen in self.requests if seen.method.startswith(method) and part in seen.target]

    def take(self, request: Request) -> Fault | None:
        """Note a request and return what is to be done to it."""
        with self._lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.times > 0 and fault.when(request):
                    fault.times -= 1
                    return fault
        return None


@contextmanager
def proxy_to(endpoint: str, *, tls: ssl.SSLContext | None = None, port: int = 0) -> Iterator[Proxy]:
    """Run a proxy in front of an ``http://host:port``, on any free port; with ``tls`` its clients speak https."""
    address = urlsplit(endpoint)
    upstream = (address.hostname or "127.0.0.1", address.port or 80)
    listener = socket.create_server(("127.0.0.1", port), backlog=64)
    proxy = Proxy(f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}")
    threads: list[threading.Thread] = []
    open_sockets: set[socket.socket] = set()

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=_serve, args=(proxy, client, upstream, tls, open_sockets))
            threads.append(thread)
            thread.start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield proxy
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for each in list(open_sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


def _serve(
    proxy: Proxy,
    client: socket.socket,
    upstream: tuple[str, int],
    tls: ssl.SSLContext | None,
    open_sockets: set[socket.socket],
) -> None:
    open_sockets.add(client)
    server = None
    try:
        if tls:
            open_sockets.discard(client)
            client = tls.wrap_socket(client, server_side=True)
            open_sockets.add(client)
        server = socket.create_connection(upstream)
        open_sockets.add(server)
        reader, answers = client.makefile("rb"), server.makefile("rb")
        with reader, answers:
            while _exchange(proxy, client, reader, server, answers):
                pass
    except _CutError:
        # a reset and not an orderly end, as when a machine goes away
        with contextlib.suppress(OSError):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except (OSError, _EndError):
        pass
    finally:
        for each in (client, server):
            if each is not None:
                open_sockets.discard(each)
                each.close()


def _exchange(
    proxy: Proxy,
    client: socket.socket,
    reader: io.BufferedReader,
    server: socket.socket,
    answers: io.BufferedReader,
) -> bool:
    """Pass one request and its answer; False when the connection is over."""
    first, headers = _head(reader)
    if not first:
        return False
    method, target, _ = first.decode("latin-1").split(" ", 2)
    request = Request(method, target, _named(headers))
    fault = proxy.take(request)
    if "expect" in request.headers:
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        headers = [line for line in headers if not line.lower().startswith(b"expect:")]
    if fault and fault.answer:
        for _ in _body(reader, request):
            pass
        _wait(fault)
        client.sendall(_own_answer(fault, request))
        return True
    if fault and fault.without:
        headers = [line for line in headers if not line.lower().startswith(fault.without.encode() + b":")]
    server.sendall(first + b"".join(headers) + b"\r\n")
    _pass_on(
        _body(reader, request),
        server,
        cut=fault.cut_request if fault else None,
        flip=fault.flip_request if fault else None,
        broken=_CutError,
    )
    return _answer(request, fault, client, answers)


def _answer(request: Request, fault: Fault | None, client: socket.socket, answers: io.BufferedReader) -> bool:
    first, headers = _head(answers)
    if not first:
        raise _CutError
    status = int(first.split(b" ", 2)[1])
    named = _named(headers)
    chunked = named.get("transfer-encoding") == "chunked"
    empty = request.method == "HEAD" or status in {204, 304}
    body: Iterator[bytes] = iter(())
    if not empty:
        body = _chunks(answers) if chunked else _exactly(answers, int(named.get("content-length", "0")))
    if fault and fault.drop_answer:
        for _ in body:
            pass
        raise _CutError
    if fault:
        _wait(fault)
    client.sendall(first + b"".join(headers) + b"\r\n")
    _pass_on(
        body,
        client,
        cut=fault.cut_answer if fault else None,
        flip=fault.flip_answer if fault else None,
        broken=_EndError,
    )
    return named.get("connection") != "close"


def _pass_on(
    body: Iterator[bytes], to: socket.socket, *, cut: int | None, flip: int | None, broken: type[Exception]
) -> None:
    done = 0
    if cut == 0:
        raise broken
    for piece in body:
        data = bytearray(piece)
        if flip is not None and done <= flip < done + len(data):
            data[flip - done] ^= 1
        if cut is not None and done + len(data) >= cut:
            to.sendall(data[: cut - done])
            raise broken
        to.sendall(data)
        done += len(data)


def _head(reader: io.BufferedReader) -> tuple[bytes, list[bytes]]:
    first = reader.readline()
    headers = []
    while (line := reader.readline()) not in {b"\r\n", b""}:
        headers.append(line)
    return first, headers


def _named(headers: list[bytes]) -> dict[str, str]:
    pairs = (line.decode("latin-1").split(":", 1) for line in headers)
    return {name.strip().lower(): value.strip() for name, value in pairs}


def _body(reader: io.BufferedReader, request: Request) -> Iterator[bytes]:
    body = (
        _chunks(reader)
        if request.headers.get("transfer-encoding") == "chunked"
        else _exactly(reader, request.length)
    )
    for piece in body:
        request.received += len(piece)
        yield piece


def _exactly(reader: io.BufferedReader, length: int) -> Iterator[bytes]:
    while length:
        data = reader.read1(min(length, _CHUNK))
        if not data:
            raise _CutError
        length -= len(data)
        yield data


def _chunks(reader: io.BufferedReader) -> Iterator[bytes]:
    """Yield a chunked body as it stands, frames included."""
    while True:
        line = reader.readline()
        yield line
        size = int(line.split(b";")[0] or b"0", 16)
        yield from _exactly(reader, size + 2)
        if size == 0:
            return


def _wait(fault: Fault) -> None:
    if fault.delay:
        time.sleep(fault.delay)


def _own_answer(fault: Fault, request: Request) -> bytes:
    status, text = fault.answer or (503, "")
    body = b"" if request.method == "HEAD" else text.encode()
    headers = {"Content-Type": "application/xml", "Content-Length": str(len(body)), **fault.headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} Fault\r\n{head}\r\n".encode() + body


def s3_error(code: str, message: str = "injected") -> str:
    """Return the body of an S3 error."""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        f"<Error><Code>{code}</Code><Message>{message}</Message><RequestId>1</RequestId></Error>"
    )
