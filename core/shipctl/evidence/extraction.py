"""Taking files out of archives that somebody else made: nothing leaves the folder, nothing fills the disk.

Only plain files and folders with relative names come out. Links, devices, sparse files, names that lead elsewhere,
a name that comes twice, and archives that unpack to far more than they hold are refused. What is refused may have
been written in part: the caller throws the folder away.
"""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import zlib
from pathlib import Path
from typing import BinaryIO, Protocol, Self

from shipctl.errors import GateError, StoreError

MAX_FILES = 100_000
"""Entries of one package, folders included."""
MAX_RATIO = 200
"""How many times its own size an archive may unpack to; weights hardly shrink, deflate reaches 1,000 on zeros."""
SMALL = 64 << 20
"""Bytes that any archive may unpack to, however small it is."""
MAX_NAME = 1024
MAX_HEADER = 64 << 10
"""Bytes of one extended header, which has to be held in memory; a name is the longest thing in it."""
_CHUNK = 1 << 20
_FIRST_PRINTABLE, _DELETE = 0x20, 0x7F
_SPARSE = "a file in it is sparse, which no package has"


class Readable(Protocol):
    """What a tar file is read from."""

    def read(self, size: int = -1, /) -> bytes:
        """Return at most ``size`` bytes, none at the end."""
        ...


class Extraction:
    """The files of one package on their way into an empty folder."""

    def __init__(self, target: Path, archive: Path, packed: int) -> None:
        """``archive`` is named in messages; ``packed`` is its size in bytes, which bounds what may come out."""
        self._target = target
        self._archive = archive
        self._left = max(SMALL, packed * MAX_RATIO)
        self._entries = 0
        self._files: set[str] = set()
        self._folders: set[str] = set()

    def take_tar(self, stream: Readable, *, compressed: bool) -> None:
        """Take every file out of a tar, ``compressed`` by gzip or not.

        :raises GateError: if it holds what no package holds
        :raises StoreError: if it cannot be read to its end
        """
        plain: Readable = stream
        if compressed:
            plain = gzip.GzipFile(mode="rb", fileobj=stream)  # type: ignore[call-overload]  # nor does this rewind
        try:
            with tarfile.open(
                fileobj=_Metered(plain, self), mode="r|", bufsize=_CHUNK, tarinfo=_Member
            ) as tar:  # type: ignore[call-overload]  # it only reads
                for member in tar:
                    self._take(tar, member)
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, RecursionError) as exc:
            message = f"{self._archive} cannot be read: {str(exc) or type(exc).__name__}; get it again"
            raise StoreError(message) from exc
        except OSError as exc:
            message = f"{self._archive} cannot be unpacked into {self._target.parent}: {exc}"
            raise StoreError(message) from exc

    def spend(self, count: int) -> None:
        """Count bytes that were unpacked.

        :raises GateError: if there are too many
        """
        self._left -= count
        if self._left < 0:
            raise self._refused(
                f"it unpacks to more than {MAX_RATIO} times its own size; "
                "unpack it by hand if you trust who made it, and give the folder"
            )

    def _take(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        self._entries += 1
        if self._entries > MAX_FILES:
            raise self._refused(f"it has more than {MAX_FILES} entries")
        name = self._name(member.name)
        if member.isdir():
            self._folder(name)
            return
        if not member.isreg() or member.issparse():
            raise self._refused(f"{name!r} is {_kind(member)}; a package has plain files only")
        if not name or name in self._files or name in self._folders:
            raise self._refused(f"{name!r} is in it twice")
        self._folder(name.rpartition("/")[0])
        self._files.add(name)
        source = tar.extractfile(member)
        assert source is not None  # noqa: S101  (it is a plain file)
        place = self._target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("xb") as file:
            left = member.size
            while left:
                chunk = source.read(min(left, _CHUNK))
                if not chunk:
                    message = f"{name!r} has fewer bytes than it says"
                    raise tarfile.ReadError(message)
                file.write(chunk)
                left -= len(chunk)

    def _folder(self, name: str) -> None:
        while name and name not in self._folders:
            if name in self._files:
                raise self._refused(f"{name!r} is in it twice, as a file and as a folder")
            self._folders.add(name)
            name = name.rpartition("/")[0]

    def _name(self, name: str) -> str:
        parts = name.split("/")
        while parts and parts[0] == ".":  # as `tar c .` writes them
            parts.pop(0)
        try:
            length = len(name.encode())
        except UnicodeEncodeError:
            raise self._refused(f"the name {name!r} is not UTF-8") from None
        if length > MAX_NAME:
            raise self._refused(f"a name in it has {length} bytes, more than {MAX_NAME}: {name[:40]!r}…")
        if any(part in {"", ".", ".."} for part in parts):
            raise self._refused(f"the name {name!r} leads out of the package")
        if any(ord(char) < _FIRST_PRINTABLE or ord(char) == _DELETE for char in name):
            raise self._refused(f"the name {name!r} has control characters")
        if parts and parts[-1].startswith(".wh."):
            raise self._refused(f"{name!r} is a mark to delete a file")
        return "/".join(parts)

    def _refused(self, why: str) -> GateError:
        return GateError(f"{self._archive} is refused: {why}")


def _kind(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return f"a link to {member.linkname!r}"
    if member.issparse():
        return "a sparse file"
    return "a device" if member.isdev() else f"an entry of type {member.type!r}"


class _Member(tarfile.TarInfo):
    """A header that is refused where Python's own reading would guess, stop silently, or fill the memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # zeros: the regular end
            raise
        except tarfile.HeaderError as exc:
            message = f"a header in it is damaged ({exc})" if buf else "it ends in the middle"
            raise tarfile.ReadError(message) from exc

    def _proc_member(self, tar: tarfile.TarFile) -> Self:
        if self.size < 0:
            message = "a size in it is negative"
            raise tarfile.ReadError(message)
        extended = self.type not in tarfile.SUPPORTED_TYPES or self.type in {
            tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
        }  # fmt: skip
        if extended and self.size > MAX_HEADER:
            message = f"it has an extended header of {self.size} bytes"
            raise tarfile.ReadError(message)
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError(_SPARSE)
        return super()._proc_member(tar)  # type: ignore[misc, no-any-return]  # meant to be overridden, and not typed

    def _proc_gnusparse_10(self, *_: object) -> None:
        raise tarfile.ReadError(_SPARSE)


class _Metered:
    """Counts what is read against the bounds of an extraction."""

    def __init__(self, stream: Readable, extraction: Extraction) -> None:
        self._stream = stream
        self._extraction = extraction

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._extraction.spend(len(data))
        return data


class Verified:
    """A stream that makes sure of the size and SHA-256 of what passes through it."""

    def __init__(self, stream: BinaryIO, *, name: str, sha256: str, size: int) -> None:
        """``name`` stands in messages."""
        self._stream = stream
        self._name = name
        self._sha256 = sha256
        self._left = size
        self._digest = hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        """Return at most ``size`` bytes, and never more than there should be."""
        data = self._stream.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        self._digest.update(data)
        return data

    def finish(self) -> None:
        """Read what is left.

        :raises GateError: if it was not what it should have been
        """
        while self.read(_CHUNK):
            pass
        if self._left or self._stream.read(1) or self._digest.hexdigest() != self._sha256:
            message = f"{self._name} is not what its digest says; get it again"
            raise GateError(message)
