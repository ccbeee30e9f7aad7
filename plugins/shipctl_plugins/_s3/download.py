"""Objects to files, in ranges; what was received before a connection was cut is not asked for again."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from shipctl.errors import StoreError
from shipctl.store.objects import Moved
from shipctl_plugins._s3.connection import Connection
from shipctl_plugins._s3.faults import AnswerError, Caller, CallError, Fault
from shipctl_plugins._s3.parallel import side_by_side

_PIECE = 1 << 16
"""Bytes that are written at a time. Larger pieces are slower: their memory goes back to the system each time."""
_NO_SUCH_RANGE = 416


class Download:
    """One object of a known size."""

    def __init__(self, connection: Connection, caller: Caller, key: str, size: int) -> None:
        self._connection = connection
        self._calling = caller
        self._key = key
        self._size = size

    def into(self, take: Callable[[bytes], object]) -> None:
        """Hand all bytes to ``take``, piece by piece, in order."""
        self._range(0, self._size, lambda _, piece: take(piece))

    def range_to(self, descriptor: int, offset: int, length: int, moved: Moved) -> None:
        """Write a range to its place in an open file.

        :raises StoreError: if it cannot be had, or written, or the object has another size
        """

        def write(place: int, piece: bytes) -> None:
            done = 0
            while done < len(piece):
                done += os.pwrite(descriptor, piece[done:], place + done)
            moved(len(piece))

        self._range(offset, length, write)

    def ranges_to(self, descriptor: int, range_size: int, threads: Executor, moved: Moved) -> None:
        """Write the whole object, several ranges at a time. After a failure nothing goes on in the background."""

        def one(start: int) -> None:
            self.range_to(descriptor, start, min(range_size, self._size - start), moved)

        side_by_side(threads, one, range(0, self._size, range_size))

    def _range(self, offset: int, length: int, take: Callable[[int, bytes], object]) -> None:
        done = 0

        def ask() -> None:
            nonlocal done
            part: dict[str, Any] = (
                {}
                if length == self._size and not done
                else {"offset": offset + done, "length": length - done}
            )
            answer: Any = self._connection.minio.get_object(self._connection.bucket, self._key, **part)
            try:
                self._same_size(answer.headers)
                while piece := answer.read(_PIECE, decode_content=False):
                    take(offset + done, piece)
                    done += len(piece)
            finally:
                answer.close()
                answer.release_conn()
            if done != length:
                raise AnswerError(Fault("the answer was cut short", passing=True))

        try:
            self._calling(ask, "download")
        except CallError as exc:
            if exc.fault.status == _NO_SUCH_RANGE:
                raise self._another_size("fewer") from exc
            raise
        except OSError as exc:
            message = (
                f"cannot write what was downloaded ({exc.strerror}); "
                f"make room for {self._size} bytes and run the same command again"
            )
            raise StoreError(message) from exc

    def _same_size(self, headers: Any) -> None:
        total = headers.get("content-range", "").rpartition("/")[2] or headers.get("content-length", "")
        if total != str(self._size):
            raise self._another_size(total)

    def _another_size(self, total: str) -> StoreError:
        where = f"s3://{self._connection.bucket}/{self._key}"
        return StoreError(
            f"{where} has {total} bytes and not {self._size}; somebody replaced it: publish it again"
        )
