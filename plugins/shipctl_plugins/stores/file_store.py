"""The store in a folder: of this machine, or of a share that several machines mount.

    blobs/ab/<sha256>   results/ab/<fingerprint>   manifests/…   a file per key, where LocalStore has the same
    tmp/                files that are being written

So a store at the folder of a project's own store shares its files, and nothing is copied. Files of another folder are
copied and never linked: whoever damages the project's copy must not damage the published one, and a file has to look
as young as its publication. Where the file system can share blocks between copies (Btrfs, XFS), that costs nothing.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from shipctl.errors import CorruptArtifactError, SpecError, StoreError
from shipctl.spec.models import StoreSpec
from shipctl.store.files import CHUNK, hash_file, sync_file, temporary_in
from shipctl.store.objects import Moved, ObjectInfo, ObjectStore, unheard

AnyT = TypeVar("AnyT")

_UNFINISHED = "tmp"
_ATTEMPTS = 5
_PIECE = 64 * CHUNK
_SYNCS = 8
_S3_ONLY = ("endpoint", "region", "ca", "profile", "role")
_HINTS = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EACCES: "give this user the right to it",
    errno.EPERM: "give this user the right to it (the file system has to have hard links)",
    errno.EROFS: "mount it for writing",
    errno.EOPNOTSUPP: "choose a folder on a file system with hard links",
}


class FileStore(ObjectStore):
    """Keep artifacts in a folder."""

    def __init__(self, spec: StoreSpec, base: Path) -> None:
        super().__init__(spec, base)
        for name in _S3_ONLY:
            if getattr(spec, name) is not None:
                message = (
                    f"`{name}` is for stores of s3:// and {spec.uri!r} is a folder; remove one of the two"
                )
                raise SpecError(message)
        self.root = _folder(spec.uri, base)
        self._unsynced: dict[Path, None] = {}
        self._lock = threading.Lock()
        self._syncing = threading.Lock()

    @property
    def uri(self) -> str:
        """The folder with `file://` before it."""
        return self.root.as_uri()

    # -- reading -------------------------------------------------------------------------------------------

    def stat(self, key: str) -> ObjectInfo | None:
        """Return what is known of an object, or None if there is none."""
        with self._faults("look for", key):
            try:
                found = self._path(key).lstat()
            except (FileNotFoundError, NotADirectoryError):
                return None
        return ObjectInfo(key, found.st_size, found.st_mtime) if stat.S_ISREG(found.st_mode) else None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield all objects below ``prefix`` in order of their keys; one folder is read at a time."""
        folder = prefix.rpartition("/")[0]
        place = self._path(folder) if folder else self.root
        with self._faults("list", prefix or "all"):
            with suppress(FileNotFoundError):  # a store begins with its first object
                if not stat.S_ISDIR(self.root.stat().st_mode):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self.root))
            yield from self._below(place, f"{folder}/" if folder else "", prefix)

    def _below(self, folder: Path, base: str, prefix: str) -> Iterator[ObjectInfo]:
        try:
            with os.scandir(folder) as entries:
                # A folder sorts as its keys do, with the slash: `a.b` comes before `a/b`.
                found = sorted((f"{base}{entry.name}{'/' * _is_folder(entry)}", entry) for entry in entries)
        except FileNotFoundError:
            return
        except NotADirectoryError:
            if base:  # nothing can be below a file
                return
            raise
        for key, entry in found:
            if key.endswith("/"):
                if key != f"{_UNFINISHED}/" and (key.startswith(prefix) or prefix.startswith(key)):
                    yield from self._below(Path(entry.path), key, prefix)
            elif key.startswith(prefix):
                with suppress(FileNotFoundError):  # removed since the folder was read
                    info = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(info.st_mode):
                        yield ObjectInfo(key, info.st_size, info.st_mtime)

    def read(self, key: str) -> bytes | None:
        """Return the bytes of a small object, or None if there is none."""
        with self._faults("read", key):
            try:
                return self._path(key).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def download(self, key: str, target: Path, *, size: int, moved: Moved = unheard) -> None:
        """Copy the object to a new file.

        :raises StoreError: if there is no such object, or it has another size
        """
        there = self.stat(key)
        if there is None:
            message = f"{self.uri} has no {key}; publish it again"
            raise StoreError(message)
        if there.size != size:
            message = f"{key} in {self.uri} has {there.size} bytes and not {size}; publish it again"
            raise StoreError(message)
        with self._faults("copy", key):
            try:
                _copy(self._path(key), target, moved)
            except BaseException:
                target.unlink(missing_ok=True)
                raise

    # -- writing -------------------------------------------------------------------------------------------

    def create(self, key: str, data: bytes) -> bool:
        """Link a small object into place if there is none of that key; of several at once exactly one gets True."""

        def link(twin: Path, path: Path) -> bool:
            try:
                os.link(twin, path)
            except FileExistsError:
                # A network file system may have lost the answer to a link that was made: link(2), open(2) O_EXCL.
                return twin.stat().st_nlink > 1
            return True

        return self._write(key, data, link)

    def write(self, key: str, data: bytes) -> None:
        """Replace a small object; readers see the old or the new bytes."""
        self._write(key, data, lambda twin, path: bool(twin.replace(path)))

    def _write(self, key: str, data: bytes, place: Callable[[Path, Path], bool]) -> bool:
        def write(twin: Path, path: Path) -> bool:
            with twin.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            return place(twin, path)

        with self._faults("write", key):
            self._sync()  # what a small object names must not be lost when it is not
            done = self._placed(key, write)
            self._sync()
        return done

    def upload(self, key: str, source: Path, *, sha256: str, size: int, moved: Moved = unheard) -> None:
        """Copy a file into the store, read it back, and move it into place, read-only.

        :raises CorruptArtifactError: if it is not what ``sha256`` says
        :raises StoreError: if it cannot be written, or is not ``size`` long
        """
        path = self._path(key)
        with self._faults("copy", key):
            if source.stat().st_size != size:
                message = (
                    f"{source} is not {size} bytes long, it was changed meanwhile; run the same command again"
                )
                raise StoreError(message)
            if path.exists() and path.samefile(source):
                _compare(source, sha256)
                moved(size)
                return

            def copy(twin: Path, path: Path) -> None:
                _copy(source, twin, moved)
                if hash_file(twin)[0] != sha256:
                    _compare(source, sha256)
                    message = f"{source} has other bytes after it was copied to {self.uri}; run the same command again"
                    raise StoreError(message)
                twin.chmod(0o444)
                twin.replace(path)
                with self._lock:
                    self._unsynced[path] = None

            self._placed(key, copy)

    def _placed(self, key: str, work: Callable[[Path, Path], AnyT]) -> AnyT:
        """Call ``work`` with a temporary name and the final one, again if someone tidied up between the two."""
        path = self._path(key)
        attempts = 0
        while True:
            attempts += 1
            self._make(path.parent)
            self._make(self.root / _UNFINISHED)
            try:
                with temporary_in(self.root / _UNFINISHED) as twin:
                    result = work(twin, path)
            except FileNotFoundError:
                if attempts == _ATTEMPTS:
                    raise
                continue
            with self._lock:
                self._unsynced[path.parent] = None
            return result

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are not there are none of its concern."""
        for key in keys:
            with self._faults("remove", key), suppress(FileNotFoundError, NotADirectoryError):
                self._path(key).unlink()

    def unfinished(self, *, older_than: float) -> Iterator[str]:
        """Yield names of files that were begun and not touched since ``older_than`` (seconds since the epoch)."""
        with self._faults("list", _UNFINISHED), suppress(FileNotFoundError):
            for entry in list(os.scandir(self.root / _UNFINISHED)):
                with suppress(FileNotFoundError):
                    info = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(info.st_mode) and info.st_mtime < older_than:
                        yield entry.name

    def discard(self, name: str) -> None:
        """Remove a file that :meth:`unfinished` named."""
        with self._faults("remove", name):
            (self.root / _UNFINISHED / Path(name).name).unlink(missing_ok=True)

    def close(self) -> None:
        """Make everything that was stored survive a power cut."""
        self._sync()

    # -- paths and faults ----------------------------------------------------------------------------------

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if parts[0] == _UNFINISHED or "\0" in key or not all(part not in {"", ".", ".."} for part in parts):
            message = (
                f"{key!r} is no key of a store; keys are relative, without `..`, and do not begin with `tmp`"
            )
            raise StoreError(message)
        return self.root.joinpath(*parts)

    def _make(self, folder: Path) -> None:
        if folder.is_dir():
            return
        self._make(folder.parent)
        folder.mkdir(exist_ok=True)
        with self._lock:
            self._unsynced[folder.parent] = None

    def _sync(self) -> None:
        """Sync what was written since the last time; several files cost a file system as much as one."""
        with self._syncing:  # whoever comes second waits until the bytes of the first are safe too
            with self._lock:
                paths, self._unsynced = list(self._unsynced), {}
            if len(paths) <= _SYNCS:
                for path in paths:
                    _sync_if_there(path)
            else:
                with ThreadPoolExecutor(_SYNCS) as threads:
                    list(threads.map(_sync_if_there, paths))

    @contextmanager
    def _faults(self, what: str, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            hint = _HINTS.get(exc.errno or 0, "look at that folder")
            message = f"cannot {what} {key} in {self.uri}: {exc.strerror or exc}; {hint}"
            raise StoreError(message) from exc


def _folder(uri: str, base: Path) -> Path:
    if "://" in uri:
        parts = urlsplit(uri)
        path = unquote(parts.path)
        if parts.netloc not in {"", "localhost"} or not path.startswith("/") or parts.query or parts.fragment:
            message = f"{uri!r} is no folder; write file:///folder with three slashes, or just the folder"
            raise SpecError(message)
    else:
        path = str(base / Path(uri).expanduser())
    return Path(os.path.abspath(path))  # noqa: PTH100  (`..` goes, links stay as the user wrote them)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _sync_if_there(path: Path) -> None:
    with suppress(FileNotFoundError):
        sync_file(path)


def _compare(source: Path, sha256: str) -> None:
    found = hash_file(source)[0]
    if found != sha256:
        message = f"{source} is damaged: its digest is {found[:12]}… and not {sha256[:12]}…; make it again"
        raise CorruptArtifactError(message, sha256)


def _copy(source: Path, target: Path, moved: Moved) -> None:
    """Copy a file to a new one, by the kernel where it can: that shares blocks on file systems that know how."""
    with source.open("rb") as stream, target.open("xb") as copy:
        with suppress(OSError):  # not between these two file systems, or not in this kernel
            while count := os.copy_file_range(stream.fileno(), copy.fileno(), _PIECE):
                moved(count)
        copy.seek(0, os.SEEK_END)
        stream.seek(copy.tell())
        while chunk := stream.read(CHUNK):
            copy.write(chunk)
            moved(len(chunk))
