"""Hears the alerts of an Alertmanager: a small web server that takes its webhook notifications.

The protocol is Alertmanager's webhook payload, version 4
(https://prometheus.io/docs/alerting/latest/configuration/#webhook_config): a POST of JSON with a list of alerts, each
with a status, labels, annotations and the time at which it began to fire.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from shipctl.errors import SpecError

PATH = "/alerts"
"""Where notifications are sent to."""
HEALTH = "/healthz"
"""Answers a probe."""
_MAX_BODY = 1 << 20
"""Bytes. An Alertmanager sends the alerts of one group, and can be told how many (`max_alerts`)."""
_TIMEOUT = 10.0
"""Seconds that a client may take to send its request."""
_LINGER_S = 1.0
"""Seconds that a refused client may go on sending."""
_MAX_TEXT = 200
"""Characters of a label that are kept."""


class Alert(NamedTuple):
    """One alert that fires."""

    labels: Mapping[str, str]
    starts: float
    """When it began to fire, in seconds since the epoch."""

    @property
    def name(self) -> str:
        """What it is called."""
        return self.labels.get("alertname", "without a name")

    @property
    def key(self) -> tuple[tuple[str, str], ...]:
        """The same for every notification of the same alert."""
        return tuple(sorted(self.labels.items()))


class Listen(NamedTuple):
    """Where alerts are heard, for how long, and from whom."""

    host: str
    port: int
    """0 for any that is free."""
    seconds: float | None = None
    """For how long; None for ever."""
    token: str | None = None
    """What a client has to send as its bearer token."""


def listen_at(text: str, seconds: float | None, token: str | None) -> Listen:
    """Return what ``text``, such as 127.0.0.1:9095, means.

    :raises SpecError: if it is no address, or one that others can reach without a token
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdigit() or int(port) > 0xFFFF:  # noqa: PLR2004
        message = f"{text!r} is no address to listen at; write HOST:PORT, such as 127.0.0.1:9095"
        raise SpecError(message)
    if token is None and not _is_loopback(host):
        message = (
            f"whoever reaches {host} could have a release rolled back; say with `--token-env NAME` which environment "
            "variable holds the token that the Alertmanager sends, or listen at 127.0.0.1"
        )
        raise SpecError(message)
    return Listen(host, int(port), seconds, token)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def firing(body: bytes) -> list[Alert]:
    """Return the alerts of a notification that fire; resolved ones are left out.

    :raises ValueError: if it is no notification, saying why
    """
    try:
        said = json.loads(body)
    except ValueError as exc:
        message = f"the body is no JSON: {exc}"
        raise ValueError(message) from exc
    if not isinstance(said, dict) or said.get("version") != "4" or not isinstance(said.get("alerts"), list):
        raise ValueError("the body is no notification of an Alertmanager in version 4 of its payload")
    return [_alert(item) for item in said["alerts"] if not _is_resolved(item)]


def _is_resolved(item: Any) -> bool:
    return isinstance(item, dict) and item.get("status") == "resolved"


def _alert(item: Any) -> Alert:
    try:
        if item["status"] != "firing":
            message = f"an alert is {item['status']!r}, which is neither firing nor resolved"
            raise ValueError(message)
        labels = {_plain(name): _plain(str(value)) for name, value in item["labels"].items()}
        return Alert(labels, datetime.fromisoformat(item["startsAt"]).timestamp())
    except (KeyError, TypeError, AttributeError) as exc:
        message = f"an alert lacks its status, labels or startsAt ({type(exc).__name__}: {exc})"
        raise ValueError(message) from exc


def _plain(text: str) -> str:
    """Return text as it may stand in a log."""
    return "".join(char if char.isprintable() else " " for char in text[:_MAX_TEXT])


@contextmanager
def listening(listen: Listen, hear: Callable[[list[Alert]], None]) -> Iterator[str]:
    """Hear notifications as long as the block lasts, and yield the URL to which they are sent.

    ``hear`` is called in another thread, and has to come back at once.

    :raises SpecError: if nothing can be heard there
    """

    class Handler(_Handler):
        token = listen.token
        told = staticmethod(hear)

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
        daemon_threads = True

    try:
        server = Server((listen.host, listen.port), Handler)
    except OSError as exc:
        message = (
            f"cannot listen at {listen.host}:{listen.port}: {exc.strerror}; choose another port, or 0 for any"
        )
        raise SpecError(message) from exc
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="alerts")
    thread.start()
    try:
        host = f"[{listen.host}]" if ":" in listen.host else listen.host
        yield f"http://{host}:{server.server_address[1]}{PATH}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """Answers 200 to what was heard, 400 to what is no notification, 401 without the token, 404 elsewhere."""

    token: str | None
    told: Callable[[list[Alert]], None]
    timeout = _TIMEOUT
    server_version = "shipctl"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer a probe."""
        found = self.path == HEALTH
        self._answer(HTTPStatus.OK if found else HTTPStatus.NOT_FOUND, "listening" if found else "not here")

    def do_POST(self) -> None:
        """Take a notification."""
        if self.path != PATH:
            self._answer(HTTPStatus.NOT_FOUND, f"send alerts to {PATH}")
        elif not self._is_known():
            self._answer(HTTPStatus.UNAUTHORIZED, "send the token as `Authorization: Bearer …`")
        else:
            try:
                self.told(firing(self._body()))
            except ValueError as exc:
                self._answer(HTTPStatus.BAD_REQUEST, str(exc))
            else:
                self._answer(HTTPStatus.OK, "heard")

    def _is_known(self) -> bool:
        if self.token is None:
            return True
        given = self.headers.get("Authorization", "")
        return hmac.compare_digest(given.encode(), f"Bearer {self.token}".encode())

    def _body(self) -> bytes:
        """Read the body.

        :raises ValueError: if there is none, or it is none that an Alertmanager sends
        """
        if (
            self.headers.get_content_type() != "application/json"
        ):  # which no foreign web page can make a browser send
            raise ValueError("the body is not declared as application/json")
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > _MAX_BODY:
            message = f"the length of the body has to be declared, and at most {_MAX_BODY} bytes"
            raise ValueError(message)
        return self.rfile.read(int(length))

    def _answer(self, status: HTTPStatus, text: str) -> None:
        self.close_connection = True
        body = f"{text}\n".encode()
        self.send_response(status)
        if status is HTTPStatus.UNAUTHORIZED:
            self.send_header("WWW-Authenticate", "Bearer")
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        if status is not HTTPStatus.OK:
            self._linger()

    def _linger(self) -> None:
        """Take in what a refused sender still sends, so that it gets to read why (RFC 9112, section 9.6)."""
        until = time.monotonic() + _LINGER_S
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(_LINGER_S)
            while self.connection.recv(1 << 16) and time.monotonic() < until:
                pass

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing: what is heard is told by who hears it."""
