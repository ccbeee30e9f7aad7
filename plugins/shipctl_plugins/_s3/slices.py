"""Pieces of a file, read when they are sent: memory does not grow with the file or the number of threads."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from shipctl.errors import CorruptArtifactError, StoreError

_BLOCK = 1 << 16


class Slice:
    """A part of an open file, as a stream that HTTP clients read in blocks."""

    def __init__(self, descriptor: int, offset: int, size: int) -> None:
        self._descriptor = descriptor
        self._offset = offset
        self._end = offset + size
        self._buffer: bytearray | None = None

    def read(self, count: int) -> memoryview:
        """Return the next bytes, at most ``count``; nothing at the end of the part, or of a file that was cut.

        They are valid until the next call: one buffer serves the whole part, since giving memory back to the system
        with each block costs as much as sending it.
        """
        if self._buffer is None or len(self._buffer) < count:
            self._buffer = bytearray(count)
        space = memoryview(self._buffer)[: min(count, self._end - self._offset)]
        done = os.preadv(self._descriptor, [space], self._offset)
        self._offset += done
        return space[:done]

    def digest(self, algorithm: str) -> str:
        """Return the digest (hex) of what is left of the part; it is not used up."""
        found = hashlib.new(algorithm, usedforsecurity=False)
        for block in Slice(self._descriptor, self._offset, self._end - self._offset).blocks():
            found.update(block)
        return found.hexdigest()

    def blocks(self) -> Iterator[memoryview]:
        """Yield what is left."""
        while block := self.read(_BLOCK):
            yield block


class _State(NamedTuple):
    size: int
    changed: int
    inode: int


class Source:
    """A file that is sent, which must not change meanwhile."""

    def __init__(self, path: Path, size: int) -> None:
        """Open the file.

        :raises StoreError: if it cannot be read, or is not ``size`` bytes long
        """
        self.path = path
        self.size = size
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            message = f"cannot read {path} ({exc.strerror}); run the same command again"
            raise StoreError(message) from exc
        self._state = self._look()
        if self._state.size != size:
            os.close(self.descriptor)
            message = f"{path} has {self._state.size} bytes and not {size}; run the same command again"
            raise StoreError(message)

    def _look(self) -> _State:
        found = os.fstat(self.descriptor)
        return _State(found.st_size, found.st_mtime_ns, found.st_ino)

    def part(self, offset: int, size: int) -> Slice:
        """Return a part of it."""
        return Slice(self.descriptor, offset, size)

    @contextmanager
    def verifying(self, sha256: str) -> Iterator[Callable[[], None]]:
        """Read the whole file in a thread of its own; what is yielded waits for the end of that.

        It raises CorruptArtifactError if the digest (hex) is another one. Leaving the block ends the thread.
        """
        stopped = threading.Event()

        def verify() -> None:
            found = hashlib.sha256()
            for block in self.part(0, self.size).blocks():
                if stopped.is_set():
                    return
                found.update(block)
            self.compare(found.hexdigest(), sha256)

        with ThreadPoolExecutor(1, thread_name_prefix="s3-verify") as thread:
            try:
                yield thread.submit(verify).result
            finally:
                stopped.set()

    def compare(self, found: str, sha256: str) -> None:
        """Compare the digest that was found with the one that the file should have.

        :raises CorruptArtifactError: if they differ
        """
        if found != sha256:
            message = (
                f"{self.path} is damaged: its digest is {found[:12]}… and not {sha256[:12]}…; make it again"
            )
            raise CorruptArtifactError(message, sha256)

    def unchanged(self) -> None:
        """Make sure that the parts that were sent are parts of one and the same file.

        :raises StoreError: if it was written to since it was opened
        """
        if self._look() != self._state:
            message = f"{self.path} changed while it was sent; run the same command again"
            raise StoreError(message)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.descriptor)
