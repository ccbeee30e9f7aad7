"""What breaks below HTTP, in a word for a person, and the sockets' own watch over their peers."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

_SILENT_MS = 20_000
"""Milliseconds after which a peer counts as gone that confirms nothing of what was sent to it."""
_SHOWN = 300


class Broken(Exception):  # noqa: N818  (it is how an attempt ended, and always caught)
    """An attempt without an answer of use."""

    def __init__(
        self,
        reason: str,
        *,
        passing: bool,
        unanswered: bool = False,
        untrusted: bool = False,
        late: bool = False,
        retry_after: float = 0.0,
    ) -> None:
        """``unanswered``: the server may have done what it was asked. ``late``: the time was over, no more than that.

        ``retry_after`` is in seconds.
        """
        super().__init__(reason)
        self.passing = passing
        self.unanswered = unanswered
        self.untrusted = untrusted
        self.late = late
        self.retry_after = retry_after


def broken(exc: Exception) -> Broken:
    """Return what an exception of urllib3 or of the system means."""
    from urllib3 import exceptions as http

    inner = _innermost(exc)
    if isinstance(inner, ssl.SSLCertVerificationError):
        return Broken(inner.verify_message, passing=False, untrusted=True)
    if isinstance(inner, ssl.SSLError) and not isinstance(inner, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return Broken(f"TLS: {inner.reason or 'no agreement'}", passing=False)
    if isinstance(inner, FileNotFoundError | PermissionError | IsADirectoryError):  # a certificate's
        return Broken(f"{inner.strerror}: {inner.filename}", passing=False)
    if isinstance(exc, ValueError) and not isinstance(exc, http.ProtocolError | OSError):
        return Broken("its address or the login is not of the right form", passing=False)
    unsent = (http.NewConnectionError, http.ConnectTimeoutError, http.ProxyError, http.SSLError)
    late = isinstance(exc, http.ConnectTimeoutError | http.ReadTimeoutError) or isinstance(
        inner, TimeoutError
    )
    late = late and not isinstance(
        exc, http.NewConnectionError
    )  # which is a ConnectTimeoutError to be compatible
    return Broken(_words(exc, inner), passing=True, unanswered=not isinstance(exc, unsent), late=late)


def keep_alive() -> list[tuple[int, int, int]]:
    """Return socket options by which a peer that is gone without a word is found out (where the system can)."""
    from urllib3.connection import HTTPConnection

    options: list[tuple[int, int, int]] = list(HTTPConnection.default_socket_options)
    options.append((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1))
    values = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 2, "TCP_USER_TIMEOUT": _SILENT_MS}
    for name, value in values.items():
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options


def limit(response: BaseHTTPResponse, seconds: float) -> None:
    """Let the next read of ``response`` take so long at most."""
    sock = getattr(response.connection, "sock", None)
    if sock is not None:
        sock.settimeout(max(seconds, 0.001))


def tolerate_no_verification() -> None:
    """Let urllib3 not warn of each connection that a kubeconfig wants unverified."""
    import urllib3

    urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)


def _innermost(exc: BaseException) -> BaseException:
    """Return what lies below all wrappers; some wrap each other."""
    seen = [exc]
    while True:
        last = seen[-1]
        below = (getattr(last, "reason", None), last.__cause__, *last.args)
        inner = next((each for each in below if isinstance(each, BaseException) and each not in seen), None)
        if inner is None:
            return last
        seen.append(inner)


def _words(exc: Exception, inner: BaseException) -> str:
    """Return `Connection refused` rather than the names of five classes."""
    from urllib3 import exceptions as http

    if isinstance(exc, http.NameResolutionError):
        return "its name is not known"
    if isinstance(exc, http.ConnectTimeoutError) and not isinstance(exc, http.NewConnectionError):
        return "no connection in time"
    if isinstance(exc, http.ReadTimeoutError) or isinstance(inner, TimeoutError):
        return "no answer in time"
    if isinstance(inner, http.IncompleteRead):
        return "the answer broke off"
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    return (str(inner) or type(inner).__name__)[:_SHOWN]
