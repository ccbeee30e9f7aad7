"""Following what becomes of objects: a stream that is made again whenever it ends, until the time is over.

Protocol: kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

from shipctl_plugins._kubernetes.api.answers import GONE
from shipctl_plugins._kubernetes.api.errors import UnreachableError
from shipctl_plugins._kubernetes.api.messages import PASSING, Answer, RefusedError, Request
from shipctl_plugins._kubernetes.api.transport import Transport

_LONGEST = 60.0
"""Seconds of one stream: a proxy that has lost the server keeps a silent one open."""
_FIRST, _SLOWEST = 0.1, 5.0
"""Bounds of the wait before a stream is made again that brought nothing, in seconds."""

Event = tuple[str, dict[str, Any]]


class Events:
    """The events of one watch."""

    def __init__(self, transport: Transport, request: Request) -> None:
        """``request`` is the one that lists the objects."""
        self._transport = transport
        self._request = request
        self._version: str | None = None
        """Where the next stream goes on; None: with all that is there."""

    def during(self, seconds: float, refuse: Callable[[Answer], Any]) -> Iterator[Event]:
        """Yield type and object of each event for so long. ``refuse`` raises what an error answer means.

        :raises UnreachableError: if the server cannot be reached for as long as a call may take
        """
        until = time.monotonic() + seconds
        fruitless = 0
        while (left := until - time.monotonic()) > 0:
            fruitful = False
            try:
                with closing(self._stream(min(left, _LONGEST))) as stream:
                    for event in stream:
                        fruitful = True
                        yield event
            except RefusedError as exc:
                if exc.answer.status != GONE and exc.answer.status not in PASSING:
                    refuse(exc.answer)
                self._version = None
            except UnreachableError:
                if time.monotonic() < until:  # otherwise it was only the end of our time
                    raise
            fruitless = 0 if fruitful else fruitless + 1
            pause = random.uniform(0, min(_SLOWEST, _FIRST * 2**fruitless))  # noqa: S311  (no secret)
            time.sleep(max(0.0, min(pause, until - time.monotonic())))

    def _stream(self, seconds: float) -> Generator[Event]:
        query = {
            **self._request.query,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(max(1, math.ceil(seconds))),
        }
        if self._version is not None:
            query["resourceVersion"] = self._version
        request = replace(self._request, query=query)
        with closing(self._transport.lines(request, time.monotonic() + seconds)) as lines:
            for kind, found in map(_read, filter(None, lines)):
                if kind == "ERROR":
                    raise RefusedError(Answer(int(found.get("code") or 0), {}, json.dumps(found).encode()))
                self._version = found.get("metadata", {}).get("resourceVersion", self._version)
                if kind != "BOOKMARK":
                    yield kind, found


def _read(line: bytes) -> Event:
    try:
        event = json.loads(line)
        kind, found = str(event["type"]), dict(event["object"])
    except (ValueError, LookupError, TypeError):
        raise RefusedError(Answer(0, {}, b"")) from None
    return kind, found
