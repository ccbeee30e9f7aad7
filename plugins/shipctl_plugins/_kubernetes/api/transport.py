"""Calls of the API server: how long, how often, and what is known after a failure.

One call ends within its time, attempts and waits included. Tried again is what may pass: no connection, a broken one,
429 and 5xx (with the wait that the server asks for). Who we are is asked again once when the server does not know us.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode

from shipctl import __version__
from shipctl_plugins._kubernetes.api.errors import UnreachableError
from shipctl_plugins._kubernetes.api.login import Login
from shipctl_plugins._kubernetes.api.messages import ERROR, Answer, RefusedError, Request
from shipctl_plugins._kubernetes.api.sockets import (
    Broken,
    broken,
    keep_alive,
    limit,
    tolerate_no_verification,
)

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

__all__ = ["Answer", "Request", "Transport"]

T = TypeVar("T")

UNAUTHORIZED = 401
_SERVER_ERROR = 500
_CONNECT = 10.0
"""Seconds for a connection, of the call's time."""
_FIRST, _LONGEST = 0.1, 5.0
"""Bounds of the waits between attempts, in seconds: they double from the first to the longest."""
_TELL_AFTER = 3
"""Attempts after which it is said that the server does not answer."""
_PIECE = 1 << 16
_WARNING = re.compile(r'\d{3} \S+ "((?:[^"\\]|\\.)*)"')
_ESCAPE, _ESCAPED = re.compile(r"\\(.)"), r"\1"


@dataclass
class _Attempts:
    """One call's attempts."""

    began: float
    until: float
    number: int = 0
    doubtful: bool = False
    telling: Broken | None = None
    """The last failure that was more than that the time was over."""

    @property
    def left(self) -> float:
        return self.until - time.monotonic()

    def failed(self, reason: Broken) -> float:
        """Count a failed attempt and return how long to wait before the next, in seconds."""
        self.number += 1
        if not reason.late:
            self.telling = reason
        self.doubtful = self.doubtful or reason.unanswered
        bound = min(_LONGEST, _FIRST * 2**self.number)
        return max(random.uniform(0, bound), reason.retry_after)  # noqa: S311  (no secret)

    def worst(self, last: Broken) -> Broken:
        """Return which failure to tell of, at the end."""
        return self.telling if last.late and self.telling else last


class Transport:
    """The way to one API server. Safe for threads."""

    def __init__(self, log_in: Callable[[], Login], timeout: float, log: Callable[[str], None]) -> None:
        """``timeout`` is what a call may take in all, in seconds; ``log`` is told of waits and of warnings."""
        self.timeout = timeout
        self.log = log
        self._log_in = log_in
        self._lock = threading.Lock()
        self._warned: set[str] = set()
        login = log_in()
        self._way = login, _pool(login, log)

    @property
    def login(self) -> Login:
        """Who we are, as of now."""
        return self._way[0]

    def close(self) -> None:
        """Close idle connections."""
        pools = self._way[1].pools
        for key in pools.keys():  # noqa: SIM118  (it cannot be iterated over itself)
            with suppress(KeyError):
                pools[key].close()

    def call(self, request: Request) -> Answer:
        """Make a call and return what came back, an error answer that would not pass included.

        :raises UnreachableError: if nothing of use came back in time
        """
        answer = self._tried(request, time.monotonic() + self.timeout, self._asked)
        self._tell_warning(answer)
        return answer

    def lines(self, request: Request, until: float) -> Generator[bytes]:
        """Make a call and yield its answer line by line as they come, until ``until`` (of the monotonic clock).

        Ends when the server ends it; what is broken on the way ends it as well.

        :raises UnreachableError: if it cannot even be begun in the time of a call
        :raises RefusedError: for an error answer
        """
        opened = self._tried(request, min(until, time.monotonic() + self.timeout), self._opened)
        if isinstance(opened, Answer):
            raise RefusedError(opened)
        try:
            yield from _lines(opened, until)
        finally:
            opened.close()

    # -- attempts ------------------------------------------------------------------------------------------

    def _tried(self, request: Request, until: float, attempt: Callable[[Request, _Attempts], T]) -> T:
        attempts = _Attempts(began=time.monotonic(), until=until)
        while True:
            try:
                return attempt(request, attempts)
            except Broken as exc:
                wait = attempts.failed(exc)
                last = not exc.passing or wait >= attempts.left
                if last or (exc.unanswered and not request.repeatable):
                    raise UnreachableError(self._explained(attempts.worst(exc), attempts)) from None
                if attempts.number == _TELL_AFTER:
                    self.log(
                        f"{self.login.url} does not answer ({exc}); asking for {attempts.left:.0f} s more"
                    )
                time.sleep(wait)

    def _asked(self, request: Request, attempts: _Attempts) -> Answer:
        response = self._sent(request, attempts)
        return self._answer(response, request, attempts)

    def _opened(self, request: Request, attempts: _Attempts) -> BaseHTTPResponse | Answer:
        response = self._sent(request, attempts)
        if response.status < ERROR:
            return response
        return self._answer(response, request, attempts)

    def _answer(self, response: BaseHTTPResponse, request: Request, attempts: _Attempts) -> Answer:
        """Return a whole answer.

        :raises Broken: for one that may pass
        """
        headers = {name.lower(): value for name, value in response.headers.items()}
        answer = Answer(response.status, headers, self._read(response, attempts), attempts.doubtful)
        if answer.status in request.passing:
            raise _passing(answer)
        return answer

    def _sent(self, request: Request, attempts: _Attempts) -> BaseHTTPResponse:
        login, pool = self._current()
        response = self._exchange(login, pool, request, attempts)
        if response.status == UNAUTHORIZED and self._renewed(login):
            response.drain_conn()
            login, pool = self._way
            response = self._exchange(login, pool, request, attempts)
        return response

    def _exchange(
        self, login: Login, pool: PoolManager, request: Request, attempts: _Attempts
    ) -> BaseHTTPResponse:
        import urllib3
        from urllib3.exceptions import HTTPError

        left = attempts.left
        if left <= 0:
            raise Broken("no answer in time", passing=True, late=True)
        url = str(login.configuration.host).rstrip("/") + request.path
        url += f"?{urlencode(request.query)}" if request.query else ""
        try:
            return pool.urlopen(
                request.method,
                url,
                body=request.body,
                headers=self._headers(login, request),
                timeout=urllib3.Timeout(connect=min(left, _CONNECT), read=left),
                retries=False,
                redirect=False,
                preload_content=False,
            )
        except (HTTPError, OSError, ValueError) as exc:
            raise broken(exc) from None

    def _read(self, response: BaseHTTPResponse, attempts: _Attempts) -> bytes:
        """Return the whole body; a socket's own timeout would only count from one piece to the next."""
        from urllib3.exceptions import HTTPError

        pieces = []
        try:
            limit(response, attempts.left)
            while piece := response.read1(_PIECE):
                pieces.append(piece)
                limit(response, attempts.left)
                if attempts.left <= 0:
                    raise TimeoutError
        except (HTTPError, OSError, ValueError) as exc:
            response.close()
            raise broken(exc) from None
        response.release_conn()
        return b"".join(pieces)

    def _headers(self, login: Login, request: Request) -> Any:
        from urllib3 import HTTPHeaderDict

        headers = HTTPHeaderDict({"Accept": "application/json", "User-Agent": f"shipctl/{__version__}"})
        if request.body is not None:
            headers["Content-Type"] = request.content_type
        for name, value in request.headers.items():
            headers[name] = value
        with self._lock:  # a token may be renewed by this
            for name, value in login.headers():
                headers.add(name, value)
        return headers

    # -- who we are ----------------------------------------------------------------------------------------

    def _current(self) -> tuple[Login, PoolManager]:
        login = self.login
        if login.expired:
            self._renewed(login)
        return self._way

    def _renewed(self, used: Login) -> bool:
        """Log in again unless another thread just has, and return whether we are somebody else now."""
        with self._lock:
            if self.login is used:
                before = used.headers()
                login = self._log_in()
                same = login.headers() == before and not login.configuration.cert_file
                if same and not used.expired:
                    return False
                self._way = login, _pool(login, self.log)
            return True

    # -- what is said --------------------------------------------------------------------------------------

    def _explained(self, reason: Broken, attempts: _Attempts) -> str:
        login = self.login
        what = login.redact(f"{reason}")
        if reason.untrusted:
            return (
                f"the certificate of {login.url} is not trusted ({what}); correct certificate-authority in "
                f"{login.source}"
            )
        if not reason.passing and attempts.number == 1:
            return f"cannot ask {login.url}: {what}; correct {login.source}"
        taken = time.monotonic() - attempts.began
        often = (
            f"asked {attempts.number} times in {taken:.1f} s" if attempts.number > 1 else f"in {taken:.1f} s"
        )
        doubt = "; it may have been done all the same" if attempts.doubtful else ""
        return (
            f"the API server {login.url} does not answer: {what} ({often}){doubt}; see whether it runs, and whether "
            f"{login.source} is the right one"
        )

    def _tell_warning(self, answer: Answer) -> None:
        """Say once what the server warns of (RFC 7234, 5.5), such as a version that is about to go."""
        for warning in _WARNING.findall(answer.headers.get("warning", "")):
            if warning not in self._warned:
                self._warned.add(warning)
                self.log(f"the API server warns: {_ESCAPE.sub(_ESCAPED, warning)}")


def _pool(login: Login, log: Callable[[str], None]) -> PoolManager:
    from kubernetes.client.rest import RESTClientObject

    configuration = login.configuration
    configuration.socket_options = keep_alive()
    if not configuration.verify_ssl:
        tolerate_no_verification()
        log(f"nobody proves to be {login.url}: {login.source} has insecure-skip-tls-verify")
    pool: PoolManager = RESTClientObject(configuration).pool_manager
    return pool


def _passing(answer: Answer) -> Broken:
    """Return what an error answer that may pass says, and how long the server wants to be left alone."""
    said = answer.json()
    details = said.get("details")
    asked = answer.headers.get("retry-after") or (details or {}).get("retryAfterSeconds") or 0
    seconds = 0.0
    with suppress(ValueError):  # a date is taken for no wish: Kubernetes sends seconds
        seconds = max(0.0, float(asked))
    message = " ".join(str(said.get("message") or "").split())[:300]
    reason = f"status {answer.status}" + (f", {message}" if message else "")
    return Broken(reason, passing=True, unanswered=answer.status >= _SERVER_ERROR, retry_after=seconds)


def _lines(response: BaseHTTPResponse, until: float) -> Iterator[bytes]:
    """Yield whole lines as they come. A connection that breaks, or is silent until the end, ends them."""
    from urllib3.exceptions import HTTPError

    kept = b""
    with suppress(HTTPError, OSError, ValueError):
        limit(response, until - time.monotonic())
        while piece := response.read1(_PIECE):
            *lines, kept = (kept + piece).split(b"\n")
            yield from lines
            if time.monotonic() >= until:
                return
            limit(response, until - time.monotonic())
