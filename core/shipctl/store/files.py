"""Small steps on files that every durable write of shipctl is made of."""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

CHUNK = 1 << 20
_PROCESS = secrets.token_hex(4)
_COUNTER = itertools.count()
_POLL = 0.02


def hash_file(path: Path, forbidden: Sequence[bytes] = ()) -> tuple[str, int, bytes | None]:
    """Return SHA-256 (hex), size in bytes, and the first of ``forbidden`` byte strings that the file contains.

    Reads the file once, in pieces of 1 MiB.
    """
    digest = hashlib.sha256()
    size = 0
    found: bytes | None = None
    overlap = max((len(item) for item in forbidden), default=1) - 1
    tail = b""
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            if forbidden:
                window = tail + chunk
                found = found or next((item for item in forbidden if item in window), None)
                tail = window[-overlap:] if overlap else b""
    return digest.hexdigest(), size, found


def sync_file(path: Path) -> None:
    """Make the bytes of a file, or the entries of a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def place_file(source: Path, target: Path) -> None:
    """Give ``target`` the bytes of ``source``, which never change: a link where possible, no copy.

    :raises FileExistsError: if something is there, since writing to it could change what it is a link to
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # another file system, one without links, or a file of somebody else
        shutil.copyfile(source, target)


def write_atomic(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace ``path`` by ``data`` so that a reader sees the old or the new bytes, whatever happens meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_in(path.parent) as twin:
        with twin.open("wb") as stream:
            stream.write(data)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        twin.replace(path)
    if durable:
        sync_file(path.parent)


@contextmanager
def flocked(path: Path, seconds: float) -> Iterator[None]:
    """Hold the flock(2) of a file, which is made if need be; the kernel lets go of it when its holder dies.

    :raises TimeoutError: if it is not free within ``seconds``
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    message = f"{path} is locked for more than {seconds:g} s"
                    raise TimeoutError(message) from None
                time.sleep(_POLL)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def temporary_in(folder: Path) -> Iterator[Path]:
    """Yield a name in a folder that nobody else uses; a file of that name is removed unless it was moved away."""
    twin = folder / f".{_PROCESS}-{os.getpid()}-{next(_COUNTER)}.tmp"
    try:
        yield twin
    finally:
        twin.unlink(missing_ok=True)
