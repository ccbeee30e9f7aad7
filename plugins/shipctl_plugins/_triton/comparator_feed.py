"""How the log of a comparator that runs elsewhere is read over HTTP, and kept up to date in a folder of this machine.

``GET /comparisons?since=PLACE`` answers with a line of JSON, a :class:`Head`, and lines of the log behind it. ``PLACE``
is the ``next`` of the answer before, or left out for everything that there is. The same place twice is the same lines
twice: what was read, and up to where, is written down together by whoever reads.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import Field, ValidationError

from shipctl.errors import StageError
from shipctl.records import Record
from shipctl.store.files import flocked, write_atomic
from shipctl_plugins._triton.comparator_log import BYTES, FILE, Log, Place
from shipctl_plugins._triton.comparator_queue import Comparator

PATH = "/comparisons"
PART_BYTES = 1 << 20
_PARTS = 64
"""Parts that are read at once at most; the others come the next time."""
_LOCK_S = 10.0
_SKEW_S = 0.25
"""Seconds that two clocks may be apart without times being set right: as much as the network takes."""


class Head(Record):
    """What comes with lines of the log."""

    next: str = Field(description="From where to go on.")
    more: bool = Field(description="Whether there are more lines already.")
    lost: bool = Field(description="Whether lines that should have come are gone.")
    now: float = Field(description="The time there, seconds since the epoch.")
    stable: str | None = Field(
        default=None, description="The stable revision that is compared; None for none."
    )
    candidate: str | None = Field(default=None, description="The candidate that is.")


class Feed:
    """The log as others read it. Places of an earlier process are known as such by its name."""

    def __init__(self, comparator: Comparator, log: Log) -> None:
        self._comparator = comparator
        self._log = log
        self._name = secrets.token_hex(8)

    def answer(self, since: str) -> bytes:
        """Return what is answered to who has read up to ``since``, which may be empty."""
        name, _, rest = since.partition(".")
        number, _, offset = rest.partition(".")
        known = name == self._name and number.isdigit() and offset.isdigit()
        part = self._log.read(Place(int(number), int(offset)) if known else Place(0, 0), PART_BYTES)
        pair = self._comparator.pair
        head = Head(
            next=f"{self._name}.{part.next.file}.{part.next.offset}",
            more=part.more,
            lost=part.lost or bool(since and not known),
            now=time.time(),
            stable=pair.stable_revision if pair is not None else None,
            candidate=pair.candidate_revision if pair is not None else None,
        )
        return head.model_dump_json().encode() + b"\n" + part.text


class _Read(Record):
    """What was read, and kept, so far."""

    next: str = ""
    size: int = 0


class Kept:
    """The log as it is kept here, in ``folder``: the file that the metric provider `comparison` reads."""

    def __init__(self, folder: Path, limit: int = BYTES, now: Callable[[], float] = time.time) -> None:
        """A file is full after ``limit`` bytes; ``now`` is this machine's clock."""
        self.folder = folder
        self._limit = limit
        self._now = now
        self._log = folder / FILE
        self._place = folder / f"{FILE}.place"

    def fetch(self, ask: Callable[[str], bytes]) -> Head:
        """Read on: ``ask`` is given the query's ``since`` and returns the answer. Returns the last head.

        Several processes may; each line is kept once. Times are set to this machine's clock.

        :raises StageError: if the answer is none of a comparator, or another process reads for too long
        """
        try:
            with flocked(self.folder / f"{FILE}.lock", _LOCK_S):
                head = self._one(ask)
                for _ in range(_PARTS):
                    if not head.more:
                        break
                    lost = head.lost
                    head = self._one(ask)
                    head = head.model_copy(update={"lost": lost or head.lost})
                return head
        except TimeoutError:
            message = f"another process reads comparisons into {self.folder} and does not finish"
            raise StageError(message) from None

    def _one(self, ask: Callable[[str], bytes]) -> Head:
        read = self._read()
        asked = self._now()
        text, _, lines = ask(read.next).partition(b"\n")
        try:
            head = Head.model_validate_json(text)
        except ValidationError:
            message = f"what answers for the comparator is none: {text[:60]!r}; see what its Service selects"
            raise StageError(message) from None
        behind = (asked + self._now()) / 2 - head.now
        size = self._append(lines if abs(behind) < _SKEW_S else _moved(lines, behind), read.size)
        write_atomic(self._place, _Read(next=head.next, size=size).model_dump_json().encode(), durable=False)
        return head

    def _read(self) -> _Read:
        try:
            return _Read.model_validate_json(self._place.read_bytes())
        except (OSError, ValidationError):
            return _Read()

    def _append(self, lines: bytes, size: int) -> int:
        """Keep more lines, behind the ``size`` bytes of which is known up to where they reach."""
        if size > self._limit:
            self._log.replace(self._log.with_name(f"{FILE}.1"))
            size = 0
        with self._log.open("ab") as log:
            # who was killed here, before he could write down how far he was, reads the rest again
            log.truncate(size if log.tell() >= size else 0)
            log.write(lines)
            return log.tell()


def _moved(lines: bytes, by: float) -> bytes:
    """Return lines of a log with their times moved by some seconds."""
    found = []
    for text in lines.splitlines():
        line = json.loads(text)
        found.append(json.dumps({**line, "time": line["time"] + by}, separators=(",", ":")).encode() + b"\n")
    return b"".join(found)
