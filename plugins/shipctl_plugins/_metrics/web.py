"""One HTTP request that ends in time, whatever the other side does, over the standard library.

The timeout of a socket counts from one byte to the next: a server that sends one a second holds its client for ever.
Here it counts for the whole of the request, looking up the name included.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import re
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from shipctl.errors import StageError, UnavailableError
from shipctl.spec.fields import fault
from shipctl.spec.problems import shorten

MAX_BYTES = 32 * 1024 * 1024
"""An answer that is longer is no answer to what was asked."""
MASK = "***"
_CHUNK = 1 << 16
_MAX_SHOWN = 300
_T = TypeVar("_T")


@dataclass(frozen=True)
class Caller:
    """Whom to ask, as what, and for how long."""

    timeout: float
    """Seconds for a whole request."""
    token_env: str | None = None
    """The environment variable with a bearer token."""
    authority: Path | None = None
    """A file with certificates of authorities, in place of the system's."""

    def token(self) -> str | None:
        """Return the token.

        :raises UnavailableError: if there should be one and is none
        """
        if self.token_env is None:
            return None
        token = os.environ.get(self.token_env, "").strip()
        if not token:
            raise UnavailableError(
                f"the environment variable {self.token_env} is not set; export the token in it"
            )
        return token

    def ask(
        self, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        """Send GET, or POST with ``body``, and return status and text, with the token taken out of it.

        Redirects are not followed: what asks with a token says exactly whom.

        :raises StageError: if no whole answer comes in time; its message names the address, and never the token
        """
        try:
            token = self.token()
        except UnavailableError as exc:
            raise StageError(str(exc)) from None
        request = urllib.request.Request(url, data=body, headers=dict(headers or {}))  # noqa: S310  (see `address`)
        if token is not None:
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        kept = _Kept()
        try:
            status, content = within(self.timeout, lambda: self._exchange(request, kept), kept.cut)
        except TimeoutError:
            message = f"{shown(url)} did not answer within {self.timeout:g} s; see whether it works, or raise `timeout`"
            raise StageError(message) from None
        except (OSError, http.client.HTTPException, ValueError) as exc:
            said = _masked(_reason(exc), token)
            raise StageError(f"{shown(url)} cannot be asked: {said}; see whether it runs there") from None
        return status, _masked(content.decode(errors="replace"), token)

    def _exchange(self, request: urllib.request.Request, kept: _Kept) -> tuple[int, bytes]:
        handlers: list[urllib.request.BaseHandler] = [_Http(kept), _NoRedirect()]
        if is_loopback(request.full_url):
            handlers.append(urllib.request.ProxyHandler({}))
        if request.type == "https":
            context = ssl.create_default_context(cafile=self.authority)
            handlers.append(_Https(kept, context))
        opener = urllib.request.build_opener(*handlers)
        try:
            answer = opener.open(request, timeout=self.timeout)
        except urllib.error.HTTPError as exc:
            answer = exc
        with answer:
            content = bytearray()
            while piece := answer.read(_CHUNK):
                content += piece
                if len(content) > MAX_BYTES:
                    raise ValueError(f"its answer has more than {MAX_BYTES >> 20} MiB")
            missing = getattr(answer, "length", None)
            if missing:  # http.client says so only where it reads to the end at once
                raise http.client.IncompleteRead(bytes(content[-_CHUNK:]), missing)
            return int(answer.status or 0), bytes(content)


@dataclass
class _Kept:
    """The sockets of a request, so that it can be ended from outside."""

    sockets: list[socket.socket] = field(default_factory=list)

    def cut(self) -> None:
        """Break the connections: whoever reads from them goes on with an error."""
        for each in self.sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def connection(self, base: type[http.client.HTTPConnection]) -> type[http.client.HTTPConnection]:
        """Return a class of connections that are kept here."""
        sockets = self.sockets

        class Connection(base):  # type: ignore[valid-type, misc]
            def connect(self) -> None:
                super().connect()
                sockets.append(self.sock)

        return Connection


class _Http(urllib.request.HTTPHandler):
    def __init__(self, kept: _Kept) -> None:
        super().__init__()
        self._connection: Any = kept.connection(http.client.HTTPConnection)

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection, req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, kept: _Kept, context: ssl.SSLContext) -> None:
        super().__init__(context=context)
        self._connection: Any = kept.connection(http.client.HTTPSConnection)
        self._trusting = context

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection, req, context=self._trusting)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def within(seconds: float, call: Callable[[], _T], stop: Callable[[], None]) -> _T:
    """Return what ``call`` returns; after ``seconds`` call ``stop`` and leave it alone.

    :raises TimeoutError: if it took longer
    """
    answers: list[_T] = []
    failures: list[BaseException] = []

    def attempt() -> None:
        try:
            answers.append(call())
        except BaseException as exc:  # noqa: BLE001  (raised again below, in the thread that waits)
            failures.append(exc)

    thread = threading.Thread(target=attempt, name="shipctl-metrics", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        stop()
        raise TimeoutError
    if failures:
        if isinstance(failures[0], urllib.error.URLError) and isinstance(failures[0].reason, TimeoutError):
            raise TimeoutError from None
        raise failures[0]
    return answers[0]


def address(value: str) -> str:
    """Return ``value`` if it is the address of a server, for an option (see :func:`shipctl.spec.fields.fault`)."""
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        raise fault(f"{shorten(value)} is not an address; write one such as https://host:9090") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or re.search(r"[\s\x00-\x1f]", value):
        raise fault(f"{shorten(value)} is not an address; write one such as https://host:9090")
    if parts.username is not None or parts.password is not None:
        raise fault(
            "an address must not hold a password; put a token into a variable and name it in token_env"
        )
    return value


def guarded(url: str, token_env: str | None) -> None:
    """Refuse an address that a token would be sent to in the clear."""
    if token_env is not None and urlsplit(url).scheme != "https" and not is_loopback(url):
        raise fault(f"the token of {token_env} would go to {shown(url)} unencrypted; use https://")


def is_loopback(url: str) -> bool:
    """Whether an address is on this machine, by its text alone."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def shown(url: str) -> str:
    """Return an address for a message: without its query, which may be long and may hold a key."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


def excerpt(text: str, length: int = _MAX_SHOWN) -> str:
    """Return the beginning of an answer in one line, for a message or a record."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[:length]}…"


def _reason(exc: BaseException) -> str:
    inner = getattr(exc, "reason", None)
    if isinstance(inner, BaseException):
        exc = inner
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror.lower()
    return excerpt(str(exc)) or type(exc).__name__


def _masked(text: str, token: str | None) -> str:
    return text if token is None else text.replace(token, MASK)
