"""The comparator's log: a JSON object per comparison, in the door's folder."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from shipctl.records import Record
from shipctl_plugins._triton.client import Protocol
from shipctl_plugins._triton.tensor_comparison import Distribution

FILE = "comparisons.jsonl"
KEPT = 1
"""Full logs that are kept: `comparisons.jsonl.1` is the one before."""
BYTES = 50_000_000
"""After which a log is full."""


class Line(Record):
    """One comparison, or (with `protocol` left out) the copies that were not compared since the last such line."""

    time: float = Field(description="When it ended, seconds since the epoch.")
    stable: str = Field(default="", description="The stable revision.")
    candidate: str = Field(default="", description="The candidate.")
    protocol: Protocol | None = Field(default=None, description="How the request came, and both were asked.")
    ok: bool = Field(default=False, description="Whether both answered.")
    problem: str | None = Field(
        default=None,
        description="Why the answers differ whatever bounds are set: names, types, shapes, NaN or infinity.",
    )
    max_abs: float | None = Field(default=None, description="Largest absolute difference of a value.")
    max_rel: float | None = Field(
        default=None, description="Largest difference as a share of its tensor's largest magnitude."
    )
    samples: int = Field(default=0, description="Samples that have a class, or are equal or not.")
    agree: int = Field(default=0, description="Of these, how many have the same.")
    unequal: int = Field(
        default=0, description="Of those of integers, booleans and strings, how many have not."
    )
    error_stable: str | None = Field(default=None, description="Why the stable revision gave no answer.")
    error_candidate: str | None = Field(
        default=None, description="Why the candidate gave none, where the stable revision did."
    )
    seconds_stable: float | None = Field(default=None, description="How long the stable revision took.")
    seconds_candidate: float | None = Field(default=None, description="How long the candidate took.")
    distributions: dict[str, Distribution] = Field(default_factory=dict, description="Per output.")
    dropped: int = Field(default=0, description="Copies that came faster than they could be asked.")
    skipped: int = Field(default=0, description="Copies of a kind that cannot be asked again.")


class Place(NamedTuple):
    """Where in the log somebody has read to."""

    file: int
    """Which file, counted from when the log was opened; 0 is the first."""
    offset: int


class Part(NamedTuple):
    """Some lines of a log, whole ones."""

    text: bytes
    next: Place
    more: bool
    """Whether there are more of them already."""
    lost: bool
    """Whether lines before these are gone."""


class Log:
    """Writes lines, each at once and whole; any thread may."""

    def __init__(self, folder: Path, limit: int = BYTES) -> None:
        """A file is full after ``limit`` bytes."""
        self._path = folder / FILE
        self._limit = limit
        self._lock = threading.Lock()
        self._number = 0
        self._open()

    def write(self, line: Line) -> None:
        """Append a line."""
        data = line.model_dump_json(exclude_defaults=True).encode() + b"\n"
        with self._lock:
            if self._size > self._limit:
                os.close(self._file)
                self._path.replace(self._path.with_name(f"{FILE}.1"))
                self._number += 1
                self._open()
            self._size += os.write(self._file, data)

    def read(self, place: Place, most: int) -> Part:
        """Return lines from ``place`` on, of ``most`` bytes or a little less; of what is gone, what is left."""
        with self._lock:
            newest = self._number
            number, offset, lost = place.file, place.offset, not max(0, newest - KEPT) <= place.file <= newest
            if lost:
                number, offset = max(0, newest - KEPT), 0
            name = FILE if number == newest else f"{FILE}.1"
            file = os.open(self._path.with_name(name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.pread(file, most, offset)
            size = os.fstat(file).st_size
        finally:
            os.close(file)
        text = text[: text.rfind(b"\n") + 1]
        if not text and number < newest:
            return Part(b"", Place(number + 1, 0), more=True, lost=lost)
        end = offset + len(text)
        return Part(text, Place(number, end), more=bool(text) and (end < size or number < newest), lost=lost)

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._size = os.fstat(self._file).st_size
