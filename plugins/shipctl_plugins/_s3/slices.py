"""Pieces of a file, read when they are sent: memory does not grow with the file or the number of threads."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Container, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from shipctl.errors import CorruptArtifactError, StoreError
from shipctl.store.objects import Moved

_BLOCK = 1 << 18
"""Bytes that are hashed at a time: few enough to be in the processor's cache for the second digest."""


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


class Whole(Slice):
    """A file that is hashed while it is sent. Its last block does not leave unless the digest is the right one.

    So nobody ever gets all of a damaged file, and what a receiver gets less than it was promised it does not keep.
    """

    def __init__(self, source: Source, sha256: str, sent: Moved) -> None:
        super().__init__(source.descriptor, 0, source.size)
        self._source = source
        self._sha256 = sha256
        self._digest = hashlib.sha256()
        self._sent = sent

    def read(self, count: int) -> memoryview:
        """Return the next bytes.

        :raises CorruptArtifactError: instead of the last ones, if the file's digest is another one
        """
        block = super().read(count)
        self._digest.update(block)
        if not block or self._offset == self._end:
            self._source.compare(self._digest.hexdigest(), self._sha256)
        self._sent(len(block))
        return block


class Piece(NamedTuple):
    """A part of a file, and what was found when the file was read as a whole."""

    number: int
    """From 1."""
    offset: int
    size: int
    sha256: str
    md5: str
    """Empty where nobody asked for it."""


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

    def pieces(self, part_size: int, sha256: str, *, md5_of: Container[int] = ()) -> Iterator[Piece]:
        """Read the file once from its beginning to its end, and yield it in parts, each as soon as it was read.

        The digests of parts say nothing about that of the file, so both are taken from the same bytes. ``md5_of``
        are numbers of parts whose MD5 is wanted too.

        :raises CorruptArtifactError: instead of the last part, if the file's digest (hex) is another one
        """
        whole = hashlib.sha256()
        for number, offset in enumerate(range(0, self.size, part_size), 1):
            part, size = hashlib.sha256(), min(part_size, self.size - offset)
            md5 = hashlib.md5(usedforsecurity=False) if number in md5_of else None
            stream = self.part(offset, size)
            while block := stream.read(_BLOCK):
                part.update(block)
                whole.update(block)
                if md5:
                    md5.update(block)
            if offset + size == self.size:
                self.compare(whole.hexdigest(), sha256)
            yield Piece(number, offset, size, part.hexdigest(), md5.hexdigest() if md5 else "")

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
