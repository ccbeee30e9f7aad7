"""Large files in parts: several at a time, and after an interruption only those that are not there yet.

A part that is there counts if it has the size that we would send and its ETag is the MD5 of our bytes. (ETags are
MD5 sums of parts at every S3 server that does not encrypt with a key service; where they are not, a part is simply
sent again.) Whether bytes arrive as they were sent is never judged by ETags: see :mod:`shipctl_plugins._s3.connection`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple, TypeVar

from shipctl.store.objects import Moved
from shipctl_plugins._s3.connection import Connection
from shipctl_plugins._s3.faults import Caller, CallError
from shipctl_plugins._s3.parallel import side_by_side
from shipctl_plugins._s3.slices import Piece, Source

T = TypeVar("T")

MOST_PARTS = 10_000
_MEBIBYTE = 1 << 20
_STALE = 3600.0
"""Seconds without a new part after which nobody can be expected to work on an upload any more."""


class Unfinished(NamedTuple):
    """An upload that was begun."""

    key: str
    id: str
    begun: float
    """Seconds since the epoch."""


class Part(NamedTuple):
    """A part that the server has."""

    size: int
    etag: str
    sent: float
    """Seconds since the epoch."""


class VanishedError(Exception):
    """The upload is not there any more: somebody has completed it or given it up."""


def part_size_for(size: int, preferred: int) -> int:
    """Return the preferred part size, or a larger one where a file would have too many parts."""
    if size <= preferred * MOST_PARTS:
        return preferred
    least = -(-size // MOST_PARTS)
    return -(-least // _MEBIBYTE) * _MEBIBYTE


class Multipart:
    """Multipart uploads to one bucket."""

    def __init__(self, connection: Connection, caller: Caller, threads: Executor, page: int) -> None:
        self._connection = connection
        self._calling = caller
        self._threads = threads
        self._page = page

    def upload(self, key: str, source: Source, sha256: str, part_size: int, moved: Moved) -> None:
        """Send the file in parts, and complete it if the file's digest is ``sha256`` (hex).

        The file is read here, in order, a few parts ahead of those that are being sent.

        :raises VanishedError: if somebody else ended the same upload meanwhile
        :raises CorruptArtifactError: if the file has another digest; its last part is not even sent
        :raises StoreError: if it cannot be done, or the file changed
        """
        sizes = _sizes(source.size, part_size)
        upload, there = self._resumable(key, sizes)
        if upload is None:
            upload = self._begin(key)

        def send(piece: Piece) -> str:
            known = there.get(piece.number)
            if known and known.size == piece.size and known.etag == piece.md5:
                return known.etag
            etag = self._send(key, upload, source, piece)
            moved(piece.size)
            return etag

        etags = side_by_side(self._threads, send, source.pieces(part_size, sha256, md5_of=there))
        source.unchanged()
        parts = [{"PartNumber": number, "ETag": f'"{etag}"'} for number, etag in enumerate(etags, 1)]
        call = {"Bucket": self._connection.bucket, "Key": key, "UploadId": upload}
        self._existing(
            lambda: self._connection.aws.complete_multipart_upload(**call, MultipartUpload={"Parts": parts}),
            "upload",
        )

    def unfinished(self, prefix: str) -> Iterator[Unfinished]:
        """Yield uploads of keys that begin so and that nobody has completed or given up."""
        known: set[tuple[str, str]] = set()
        markers: dict[str, str] = {}
        while True:
            call = {
                "Bucket": self._connection.bucket,
                "Prefix": prefix,
                "MaxUploads": self._page,
                **markers,
            }
            page = self._calling(partial(self._connection.aws.list_multipart_uploads, **call), "list")
            found = [
                Unfinished(each["Key"], each["UploadId"], _seconds(each.get("Initiated")))
                for each in page.get("Uploads", [])
            ]
            fresh = [each for each in found if (each.key, each.id) not in known]
            known.update((each.key, each.id) for each in fresh)
            yield from fresh
            if not page.get("IsTruncated") or not fresh:  # a page of nothing new would be asked for for ever
                return
            # Ceph leaves out the markers of some pages; the last entry is what they would say
            markers = {
                "KeyMarker": page.get("NextKeyMarker") or found[-1].key,
                "UploadIdMarker": page.get("NextUploadIdMarker") or found[-1].id,
            }

    def discard(self, key: str, upload: str) -> None:
        """Give up an upload; one that is not there is none of our concern."""
        call = {"Bucket": self._connection.bucket, "Key": key, "UploadId": upload}
        try:
            self._calling(lambda: self._connection.aws.abort_multipart_upload(**call), "clean up")
        except CallError as exc:
            if exc.fault.code != "NoSuchUpload":
                raise

    # -- steps ---------------------------------------------------------------------------------------------

    def _begin(self, key: str) -> str:
        call = {"Bucket": self._connection.bucket, "Key": key}
        answer = self._calling(lambda: self._connection.aws.create_multipart_upload(**call), "upload")
        upload: str = answer["UploadId"]
        return upload

    def _resumable(self, key: str, sizes: list[int]) -> tuple[str | None, dict[int, Part]]:
        """Return the unfinished upload of this file that has most of it, with its parts.

        What cannot be continued and nobody works on any more is given up. One that was cut into other parts may
        belong to another release of shipctl that is at it just now.
        """
        best: str | None = None
        most: dict[int, Part] = {}
        for each in self.unfinished(key):
            if each.key != key:
                continue
            try:
                parts = self._parts(key, each.id)
            except VanishedError:
                continue
            fits = all(
                number <= len(sizes) and part.size == sizes[number - 1] for number, part in parts.items()
            )
            if fits and len(parts) >= len(most):
                best, most = each.id, parts
            elif (
                not fits and time.time() - max([each.begun, *(part.sent for part in parts.values())]) > _STALE
            ):
                self.discard(key, each.id)
        return best, most

    def _parts(self, key: str, upload: str) -> dict[int, Part]:
        parts: dict[int, Part] = {}
        marker = 0
        while True:
            call = {
                "Bucket": self._connection.bucket,
                "Key": key,
                "UploadId": upload,
                "MaxParts": self._page,
                "PartNumberMarker": marker,
            }
            list_parts = self._connection.aws.list_parts
            page = self._existing(partial(list_parts, **call), "look at the parts of")
            for each in page.get("Parts", []):
                part = Part(int(each["Size"]), each["ETag"].strip('"'), _seconds(each.get("LastModified")))
                parts[int(each["PartNumber"])] = part
            following = max([int(page.get("NextPartNumberMarker") or 0), *parts])
            if not page.get("IsTruncated") or following <= marker:
                return parts
            marker = following

    def _send(self, key: str, upload: str, source: Source, piece: Piece) -> str:
        query = {"partNumber": str(piece.number), "uploadId": upload}

        def put() -> str:
            source.unchanged()  # the server would find other bytes than were hashed, and be asked again and again
            part = source.part(piece.offset, piece.size)
            return self._connection.put(key, part, size=piece.size, sha256=piece.sha256, query=query)

        return self._existing(put, "upload")

    def _existing(self, call: Callable[[], T], doing: str) -> T:
        """Make a call about an upload, which somebody else may have ended."""
        try:
            return self._calling(call, doing)
        except CallError as exc:
            if exc.fault.code == "NoSuchUpload":
                raise VanishedError from exc
            raise


def _sizes(size: int, part_size: int) -> list[int]:
    whole, rest = divmod(size, part_size)
    return [part_size] * whole + ([rest] if rest else [])


def _seconds(moment: Any) -> float:
    """Return a server's time in seconds since the epoch; now, if it says none."""
    if not isinstance(moment, datetime):
        return time.time()
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
