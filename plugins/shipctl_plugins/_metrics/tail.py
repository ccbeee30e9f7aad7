"""Reads a log that somebody else writes and rotates: each line once, whole, whatever the file is called by then.

A file is known by its inode and kept open, so that what is written to it after it was renamed is read too. The last
line counts only once its end is there.
"""

from __future__ import annotations

import math
import os
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from shipctl.errors import StageError

_CHUNK = 1 << 20
_MAX_LINE = 1 << 20
_REOPENED_WITHIN_S = 1.0
"""Between the renaming of a log and its reopening there is no file of its name."""
_POLL_S = 0.02
_LINES_TRIED = 100
_SMALL = 1 << 22
"""Bytes below which a file is read from its begin rather than searched."""

Inode = tuple[int, int]
End = Callable[[bytes], float | None]
"""Returns the time that a line is about; None for one that cannot be read."""


@dataclass
class _File:
    number: int
    offset: int = 0
    pending: bytes = b""


class Tail:
    """The lines of a log and of those that it was rotated to: ``log.1`` is newer than ``log.2``."""

    def __init__(self, log: Path, rotated: int, end: End, now: Callable[[], float] = time.time) -> None:
        """``rotated`` is how many older files are kept; lines are roughly in the order of their ``end``."""
        self._now = now
        self.log = log
        self._names = [log.with_name(f"{log.name}.{number}") for number in range(rotated, 0, -1)] + [log]
        self._end = end
        self._files: dict[Inode, _File] = {}
        self.lost: float | None = None
        """When it was last seen that lines are gone that nobody has read; None for never."""
        weakref.finalize(self, _close, self._files)

    def lines(self, since: float) -> Iterator[bytes]:
        """Yield the lines that were not yielded before; of a large file met for the first time only from ``since`` on.

        A line without an end in a file that is written no more is yielded as it is.

        :raises StageError: if there is no log
        """
        present = self._present(since)
        for inode, file in list(self._files.items()):
            yield from self._rest(file)
            if inode not in present:  # rotated away, and read to its end
                os.close(file.number)
                del self._files[inode]
                if file.pending:
                    yield file.pending

    def first(self) -> float | None:
        """Return from when on all lines are kept; None if none was ever removed."""
        try:
            with self._names[0].open("rb") as lines:
                ends = (self._end(line) for line in islice(lines, _LINES_TRIED))
                return next((end for end in ends if end is not None), math.inf)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise _unreadable(self._names[0], exc) from exc

    def close(self) -> None:
        """Let go of the files, and forget what was read."""
        _close(self._files)

    def _present(self, since: float) -> list[Inode]:
        """Open what is new, oldest first, and return what is there; a rotation meanwhile makes it look again."""
        deadline = time.monotonic() + _REOPENED_WITHIN_S
        while True:
            before = self._look()
            for inode, path in before.items():
                self._open(inode, path, since)
            there = any(path == self.log for path in before.values())
            if there and list(self._look()) == list(before):
                return list(before)
            if not there and time.monotonic() > deadline:
                raise StageError(f"the access log {self.log} is not there; see whether the door runs")
            time.sleep(_POLL_S)

    def _look(self) -> dict[Inode, Path]:
        found = {}
        for path in self._names:
            with suppress(FileNotFoundError):
                try:
                    status = path.stat()
                except PermissionError as exc:
                    raise _unreadable(path, exc) from exc
                found[status.st_dev, status.st_ino] = path
        return found

    def _open(self, inode: Inode, path: Path, since: float) -> None:
        if inode in self._files:
            return
        try:
            number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # renamed just now: the next look finds it
            return
        except OSError as exc:
            raise _unreadable(path, exc) from exc
        status = os.fstat(number)
        opened = (status.st_dev, status.st_ino)
        if opened in self._files:
            os.close(number)
            return
        self._files[opened] = _File(number, self._search(number, status.st_size, since))

    def _rest(self, file: _File) -> Iterator[bytes]:
        if os.fstat(file.number).st_size < file.offset:  # emptied by somebody, and what stood there is gone
            file.offset, file.pending = 0, b""
            self.lost = self._now()
        while piece := os.pread(file.number, _CHUNK, file.offset):
            file.offset += len(piece)
            *whole, file.pending = (file.pending + piece).split(b"\n")
            yield from whole
            if len(file.pending) > _MAX_LINE:
                yield file.pending
                file.pending = b""

    def _search(self, number: int, size: int, since: float) -> int:
        """Return the offset of a line before which no line is about ``since`` or later, by halving."""
        if size <= _SMALL:
            return 0
        low, high = 0, size
        while high - low > _CHUNK:
            middle = (low + high) // 2
            piece = os.pread(number, _MAX_LINE, middle)
            start = piece.find(b"\n") + 1
            stop = piece.find(b"\n", start)
            end = self._end(piece[start:stop]) if 0 < start <= stop else None
            if end is None or end >= since:
                high = middle
            else:
                low = middle + start
        return low


def _unreadable(path: Path, exc: OSError) -> StageError:
    return StageError(f"the access log {path} cannot be read: {(exc.strerror or str(exc)).lower()}")


def _close(files: dict[Inode, _File]) -> None:
    for file in files.values():
        with suppress(OSError):
            os.close(file.number)
    files.clear()
