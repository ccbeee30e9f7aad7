"""Objects in a bucket of S3, MinIO, Ceph or any other server that speaks S3's protocol."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from shipctl.errors import SpecError, StoreError
from shipctl.spec.models import StoreSpec
from shipctl.store.objects import Moved, ObjectInfo, ObjectStore, unheard
from shipctl_plugins._s3.connection import Connection, host_of
from shipctl_plugins._s3.download import Download
from shipctl_plugins._s3.faults import AnswerError, CallError, Fault, Place, Retries, calling, coded
from shipctl_plugins._s3.multipart import Multipart, VanishedError, part_size_for
from shipctl_plugins._s3.slices import Source, Whole

T = TypeVar("T")

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_ID = "?uploadId="
_SMALL = 1 << 18
"""Up to so many bytes of a file are read at once; larger ones are read, and hashed, as they are sent."""
_BEGINNINGS = 3
"""How often a large upload is begun, if somebody else ends it."""
_NOT_FOUND, _PRECONDITION_FAILED = 404, 412


class S3Store(ObjectStore):
    """``s3://bucket/prefix``. Reads, lists and deletes by the minio client; sends as `_s3` says.

    Everything is tried again when that may help. What is sent is checked on arrival by its SHA-256.
    """

    part_size: int = 32 << 20
    """Bytes per part of a large upload and per range of a large download; up to twice that is received in one piece."""
    in_one: int = 128 << 20
    """Up to so many bytes are sent in one piece. Parts cost a second SHA-256, and a server more work."""
    threads: int = 4
    """How many parts, ranges and large files move at a time; more cost processor time, on both sides."""
    page: int = 1000
    """How many objects, uploads or parts are asked for, or deleted, at once: what S3 allows at most."""
    retries: Retries = Retries()

    def __init__(self, spec: StoreSpec, base: Path) -> None:
        super().__init__(spec, base)
        place = spec.uri.partition("://")[2]
        self.bucket, _, prefix = place.partition("/")
        prefix = prefix.strip("/")
        if not _BUCKET.fullmatch(self.bucket) or "//" in prefix or re.search(r"[?#@\s]", place):
            shown = spec.uri if "@" not in place else f"s3://…@{place.rpartition('@')[2]}"
            message = f"store {shown!r} is not s3://bucket/prefix; correct `uri:`"
            raise SpecError(message)
        if spec.endpoint is not None:
            host_of(spec.endpoint)
        self._prefix = f"{prefix}/" if prefix else ""
        self._lock = threading.RLock()
        self._connected: Connection | None = None
        self._workers: ThreadPoolExecutor | None = None
        self._sends: threading.BoundedSemaphore | None = None
        self._bucket_seen = self._conditions_seen = False

    @property
    def uri(self) -> str:
        """The bucket and the prefix."""
        return f"s3://{self.bucket}/{self._prefix}".rstrip("/")

    # -- small objects -------------------------------------------------------------------------------------

    def stat(self, key: str) -> ObjectInfo | None:
        """Return what is known of an object, or None if there is none."""

        def ask() -> ObjectInfo:
            found = self._connection.minio.stat_object(self.bucket, self._prefix + key)
            return self._info(found)

        try:
            return self._call(ask, "look at", key)
        except CallError as exc:
            # The answer to HEAD has no body that says why; that to GET has one.
            if exc.fault.status != _NOT_FOUND:
                if not exc.fault.code:
                    self._get(key, 1)
                raise
        if not self._bucket_seen:
            self._get(key, 1)
            self._bucket_seen = True
        return None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield all objects whose key begins with ``prefix``, in ascending order of keys, fetched page by page."""
        after: str | None = None
        while True:
            page = self._call(partial(self._page, prefix, after), "list", prefix)
            yield from page
            if len(page) < self.page:
                return
            after = self._prefix + page[-1].key

    def _page(self, prefix: str, after: str | None) -> Sequence[ObjectInfo]:
        whole = self._prefix + prefix
        found = self._connection.minio.list_objects(
            self.bucket, prefix=whole, recursive=True, start_after=after
        )
        return [self._info(each) for each in islice(found, self.page)]

    def read(self, key: str) -> bytes | None:
        """Return the bytes of a small object, or None if there is none."""
        return self._get(key)

    def _get(self, key: str, most: int = 0) -> bytes | None:
        """Return an object, or its first ``most`` bytes."""

        def ask() -> bytes:
            answer = self._connection.minio.get_object(self.bucket, self._prefix + key, length=most)
            try:
                return answer.read()
            finally:
                answer.close()
                answer.release_conn()

        try:
            return self._call(ask, "read", key)
        except CallError as exc:
            if exc.fault.status == _NOT_FOUND and exc.fault.code != "NoSuchBucket":
                return None
            raise

    def create(self, key: str, data: bytes) -> bool:
        """Write a small object if there is none of that key; of several at once exactly one gets True."""
        unanswered: list[Fault] = []
        try:
            self._put(key, data, "create", once=True, lost=unanswered.append)
        except CallError as exc:
            if exc.fault.status != _PRECONDITION_FAILED:
                raise
            # An attempt whose answer was lost may have been the one that won.
            return bool(unanswered) and self.read(key) == data
        self._prove_conditions(key, data)
        return True

    def _prove_conditions(self, key: str, data: bytes) -> None:
        """Make sure, once, that the server does not just ignore the condition, as some do: then nobody would win.

        :raises StoreError: if it does
        """
        if self._conditions_seen:
            return
        try:
            self._put(key, data, "create", once=True)
        except CallError as exc:
            if exc.fault.status != _PRECONDITION_FAILED:
                raise
            self._conditions_seen = True
            return
        message = (
            f"cannot publish to {self.uri}: {self._connection.endpoint} ignores conditional writes (If-None-Match), "
            "so two publishers could replace each other's versions; update the server, or use another"
        )
        raise StoreError(message)

    def write(self, key: str, data: bytes) -> None:
        """Write a small object, whatever was there: readers see the old or the new bytes."""
        self._put(key, data, "write")

    def _put(
        self,
        key: str,
        data: bytes,
        doing: str,
        *,
        sha256: str = "",
        once: bool = False,
        lost: Callable[[Fault], None] | None = None,
    ) -> None:
        sha256 = sha256 or hashlib.sha256(data).hexdigest()
        headers = {"If-None-Match": "*"} if once else {}

        def put() -> None:
            self._connection.put(self._prefix + key, data, size=len(data), sha256=sha256, headers=headers)

        self._call(put, doing, key, lost=lost)

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are not there are none of its concern."""
        rest = iter(keys)
        while batch := tuple(islice(rest, self.page)):
            self._call(partial(self._remove, batch), "delete", batch[0])

    def _remove(self, keys: Sequence[str]) -> None:
        from minio.deleteobjects import DeleteObject

        objects = [DeleteObject(self._prefix + key) for key in keys]
        for error in self._connection.minio.remove_objects(self.bucket, objects):
            if error.code not in {"NoSuchKey", "NoSuchVersion"}:
                raise AnswerError(coded(error.code, f"{error.message or ''} ({error.name})"))

    # -- files ---------------------------------------------------------------------------------------------

    def upload(self, key: str, source: Path, *, sha256: str, size: int, moved: Moved = unheard) -> None:
        """Store a file, in parts where it is large, so that it appears whole or not at all.

        :raises CorruptArtifactError: if the file has another digest than ``sha256``
        :raises StoreError: if it cannot be done, or the file is not ``size`` long
        """
        with Source(source, size) as opened:
            if size <= _SMALL:
                self._send_small(key, opened, sha256)
                moved(size)
            elif size <= self.in_one:
                self._send_whole(key, opened, sha256, moved)
            else:
                self._send_parts(key, opened, sha256, moved)

    def _send_small(self, key: str, source: Source, sha256: str) -> None:
        data = bytes(source.part(0, source.size).read(source.size))
        source.compare(hashlib.sha256(data).hexdigest(), sha256)
        self._put(key, data, "upload", sha256=sha256)

    def _send_whole(self, key: str, source: Source, sha256: str, moved: Moved) -> None:
        told = 0

        def send() -> None:
            reached = 0

            def sent(count: int) -> None:
                nonlocal told, reached
                reached += count
                if reached > told:  # what is sent again was told the first time
                    told, new = reached, reached - told
                    moved(new)

            body = Whole(source, sha256, sent)
            self._connection.put(self._prefix + key, body, size=source.size, sha256=sha256)

        with self._room if source.size > self.part_size else nullcontext():
            self._call(send, "upload", key)

    def _send_parts(self, key: str, source: Source, sha256: str, moved: Moved) -> None:
        part_size = part_size_for(source.size, self.part_size)
        multipart = self._multipart(key)
        for _ in range(_BEGINNINGS):
            try:
                multipart.upload(self._prefix + key, source, sha256, part_size, moved)
            except VanishedError:
                # Completed: by us, though the answer was lost, or by another publisher of the same file.
                if self._holds(key, sha256, source.size):
                    return
            else:
                return
        message = (
            f"cannot upload {self.uri}/{key}: the upload was given up {_BEGINNINGS} times by somebody else; "
            "look for a lifecycle rule of the bucket that aborts uploads, and run the same command again"
        )
        raise StoreError(message)

    def _holds(self, key: str, sha256: str, size: int) -> bool:
        """Read an object back and compare it."""
        found = self.stat(key)
        if found is None or found.size != size:
            return False
        digest = hashlib.sha256()
        Download(self._connection, partial(self._call, key=key), self._prefix + key, size).into(digest.update)
        return digest.hexdigest() == sha256

    def download(self, key: str, target: Path, *, size: int, moved: Moved = unheard) -> None:
        """Write the object to a new file, in ranges side by side where it is large; the caller verifies it."""
        download = Download(self._connection, partial(self._call, key=key), self._prefix + key, size)
        try:
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except OSError as exc:
            message = (
                f"cannot write {target} ({exc.strerror}); make room for it and run the same command again"
            )
            raise StoreError(message) from exc
        try:
            if size <= 2 * self.part_size:
                download.range_to(descriptor, 0, size, moved)
            else:
                download.ranges_to(descriptor, self.part_size, self._threads, moved)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)

    def unfinished(self, *, older_than: float) -> Iterator[str]:
        """Yield names of uploads that were begun before ``older_than`` and never finished."""
        for each in self._multipart("").unfinished(self._prefix):
            if each.begun < older_than:
                yield f"{each.key.removeprefix(self._prefix)}{_ID}{each.id}"

    def discard(self, name: str) -> None:
        """Give up an unfinished upload that :meth:`unfinished` named."""
        key, _, upload = name.rpartition(_ID)
        self._multipart(key).discard(self._prefix + key, upload)

    # -- what all of them use ------------------------------------------------------------------------------

    @property
    def _connection(self) -> Connection:
        with self._lock:
            if self._connected is None:
                self._connected = Connection(self.spec, self.base, self.bucket)
            return self._connected

    @property
    def _room(self) -> threading.BoundedSemaphore:
        """For as many large files as would otherwise be parts: with more streams a server has more work."""
        with self._lock:
            if self._sends is None:
                self._sends = threading.BoundedSemaphore(self.threads)
            return self._sends

    @property
    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._workers is None:
                self._workers = ThreadPoolExecutor(self.threads, thread_name_prefix="s3")
            return self._workers

    def _multipart(self, key: str) -> Multipart:
        return Multipart(self._connection, partial(self._call, key=key), self._threads, self.page)

    def _call(
        self, call: Callable[[], T], doing: str, key: str, *, lost: Callable[[Fault], None] | None = None
    ) -> T:
        connection = self._connection
        place = Place(f"{self.uri}/{key}", connection.endpoint, self.bucket, connection.identity.source)
        return calling(call, doing, place, self.retries, lost=lost)

    def _info(self, found: Any) -> ObjectInfo:
        modified = found.last_modified.timestamp() if found.last_modified else 0.0
        return ObjectInfo(found.object_name.removeprefix(self._prefix), found.size or 0, modified)

    def close(self) -> None:
        """Let go of connections and threads."""
        with self._lock:
            if self._workers is not None:
                self._workers.shutdown(cancel_futures=True)
                self._workers = None
            if self._connected is not None:
                self._connected.close()
                self._connected = None
