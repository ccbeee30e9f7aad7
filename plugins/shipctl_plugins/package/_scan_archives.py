"""Archives: their members, one by one and in memory, and what is wrong with the archives themselves."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from shipctl_plugins.package._scan_findings import Findings

MAX_DEPTH = 6
MAX_MEMBERS = 100_000
_RATIO = 100
_SMALL = 100 << 20
"""Bytes below which nobody minds how well something was compressed."""
_BLOCK = 512
_LOCAL = struct.Struct("<4s5H3L2H")
_LOCAL_NAME_LENGTH, _LOCAL_EXTRA_LENGTH = 9, 10
_ENCRYPTED = 1
_UNIX = 16
_DRIVE = re.compile(r"^[A-Za-z]:")
CLOSED = {
    b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!\x1a\x07": "rar", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4",
    b"MSCF": "cab", b"\x89LZO": "lzo",
}  # fmt: skip
"""Formats that the standard library cannot open, by their magic."""
_MAGICS = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x5d\x00\x00": "lzma",
    b"\x78\x01": "zlib", b"\x78\x5e": "zlib", b"\x78\x9c": "zlib", b"\x78\xda": "zlib",
}  # fmt: skip
"""Compressed streams of one file, by their magic."""

Look = Callable[[BinaryIO, str], None]
"""Looks at a member: a stream to read once, from its beginning, and its name."""


class BombError(Exception):
    """Something unpacks to more than is sane."""


class Budget:
    """How much one file may unpack to, counting everything inside of it."""

    def __init__(self, size: int) -> None:
        self.left = (1 << 30) + 20 * size
        self.members = 0

    def spend(self, count: int) -> None:
        """Take ``count`` bytes.

        :raises BombError: when there are none left
        """
        self.left -= count
        if self.left < 0:
            raise BombError("it unpacks to far more than it holds")

    def member(self) -> None:
        """Count a member.

        :raises BombError: when there were too many
        """
        self.members += 1
        if self.members > MAX_MEMBERS:
            raise BombError(f"it has more than {MAX_MEMBERS} members")


class Metered(io.RawIOBase):
    """A stream that is read once, on somebody's budget."""

    def __init__(self, source: Any, budget: Budget) -> None:
        super().__init__()
        self._source = source
        self._budget = budget

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer."""
        data = self._source.read(len(buffer))
        self._budget.spend(len(data))
        buffer[: len(data)] = data
        return len(data)


class _Inflated:
    """What a zlib stream unpacks to; joblib writes these."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._zlib = zlib.decompressobj()

    def read(self, size: int) -> bytes:
        while not self._zlib.eof:
            packed = self._zlib.unconsumed_tail or self._stream.read(1 << 16)
            data = self._zlib.decompress(packed, size)
            if data:
                return data
            if not packed:
                raise EOFError("the compressed data ends early")
        return b""


def kind_of(stream: BinaryIO) -> str:
    """Return what kind of archive or compressed stream it is, empty if none; ``stream`` is then at its beginning."""
    stream.seek(0)
    head = stream.read(_BLOCK)
    stream.seek(0)
    for magic, name in CLOSED.items():
        if head.startswith(magic):
            return name
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")) or _ends_as_zip(stream):
        return "zip"
    for magic, name in _MAGICS.items():
        if head.startswith(magic) and _begins(stream, name):
            return name
    return "tar" if _is_tar(head) else ""


def _ends_as_zip(stream: BinaryIO) -> bool:
    answer = zipfile.is_zipfile(stream)
    stream.seek(0)
    return answer


def _begins(stream: BinaryIO, kind: str) -> bool:
    """Whether the first bytes really unpack; magics of two bytes stand at the beginning of other data too."""
    try:
        _unpacked(stream, kind).read(1)
    except (OSError, EOFError, zlib.error, lzma.LZMAError):
        return False
    finally:
        stream.seek(0)
    return True


def _unpacked(stream: BinaryIO, kind: str) -> Any:
    """Return what a compressed stream unpacks to, as a stream."""
    if kind == "gzip":
        return gzip.GzipFile(fileobj=stream)
    if kind == "bzip2":
        return bz2.BZ2File(stream)
    return _Inflated(stream) if kind == "zlib" else lzma.LZMAFile(stream)


def _is_tar(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def look_into(
    kind: str, stream: BinaryIO, size: int, file: str, found: Findings, budget: Budget, look: Look
) -> None:
    """Hand every member of an archive to ``look``, and note what is wrong with the archive.

    :raises BombError: when it unpacks to more than the budget has
    """
    found.archives += 1
    if kind == "zip":
        _zip(stream, size, file, found, budget, look)
    elif kind == "tar":
        _tar(stream, file, found, budget, look)
    else:
        found.members += 1
        look(
            io.BufferedReader(Metered(_unpacked(stream, kind), budget)), f"{file}!{PurePosixPath(file).stem}"
        )


def _zip(stream: BinaryIO, size: int, file: str, found: Findings, budget: Budget, look: Look) -> None:
    from picklescan.relaxed_zipfile import RelaxedZipFile

    with RelaxedZipFile(stream) as archive:
        members = archive.infolist()
        unpacked = sum(member.file_size for member in members)
        if unpacked > _SMALL and unpacked > _RATIO * size:
            raise BombError(f"its {size} bytes say that they unpack to {unpacked}")
        for name, count in Counter(member.filename for member in members).items():
            if count > 1:
                message = f"has {count} members named {name!r}; which one is read depends on the reader"
                found.add("archive-inconsistent", "high", file, message, name)
        _check_layout(stream, members, file, found)
        for member in members:
            budget.member()
            found.members += 1
            where = f"{file}!{member.filename}"
            _check_name(member.orig_filename, where, found)
            if stat.S_ISLNK(member.external_attr >> _UNIX):
                found.add("archive-link", "high", where, "is a link")
            if member.flag_bits & _ENCRYPTED:
                found.unscannable(where, "it is encrypted, or says so")
            if not member.is_dir():
                _member(archive, member, where, found, budget, look)


def _member(
    archive: Any, member: zipfile.ZipInfo, where: str, found: Findings, budget: Budget, look: Look
) -> None:
    try:
        with archive.open(member) as content:
            look(io.BufferedReader(Metered(content, budget)), where)
    except BombError:
        raise
    except Exception as exc:  # noqa: BLE001  (broken archives break in every way)
        found.unscannable(where, f"{type(exc).__name__}: {exc}")


def _check_layout(stream: BinaryIO, members: list[zipfile.ZipInfo], file: str, found: Findings) -> None:
    """Compare the directory at the end with the headers before the members: readers trust either."""
    end = 0
    for number, member in enumerate(sorted(members, key=lambda member: member.header_offset)):
        if number == 0 and member.header_offset > 0:
            message = (
                f"begins with {member.header_offset} bytes that belong to no member: it is two files in one"
            )
            found.add("archive-inconsistent", "high", file, message, "prefix")
        stream.seek(member.header_offset)
        header = stream.read(_LOCAL.size)
        if len(header) < _LOCAL.size or header[:4] != b"PK\x03\x04":
            found.add(
                "archive-inconsistent", "high", file, f"{member.filename!r} has no header", member.filename
            )
            continue
        fields = _LOCAL.unpack(header)
        name = stream.read(fields[_LOCAL_NAME_LENGTH])
        encoding = "utf-8" if fields[2] & 0x800 else "cp437"
        if name.decode(encoding, "replace") != member.orig_filename:
            message = f"names a member {member.filename!r} in its directory and {name!r} in front of it"
            found.add("archive-inconsistent", "high", file, message, member.filename)
        if member.header_offset < end:
            message = f"{member.filename!r} lies over another member, which is how zip bombs are made"
            found.add("archive-bomb", "critical", file, message, member.filename)
        begin = member.header_offset + _LOCAL.size + fields[_LOCAL_NAME_LENGTH] + fields[_LOCAL_EXTRA_LENGTH]
        end = begin + member.compress_size


def _tar(stream: BinaryIO, file: str, found: Findings, budget: Budget, look: Look) -> None:
    # As a stream, so that nothing seeks: a sparse member that claims terabytes is then read on the budget too.
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in _members(archive):
            budget.member()
            found.members += 1
            where = f"{file}!{member.name}"
            _check_name(member.name, where, found)
            if member.issym() or member.islnk():
                outside = _leaves(
                    member.linkname, PurePosixPath(member.name).parent if member.issym() else None
                )
                message = f"is a link to {member.linkname!r}"
                found.add("archive-link", "critical" if outside else "high", where, message)
            elif not (member.isfile() or member.isdir()):
                found.add(
                    "archive-link", "high", where, "is a device, a pipe or something else that is no file"
                )
            content = archive.extractfile(member) if member.isfile() else None
            if content is not None:
                look(io.BufferedReader(Metered(content, budget)), where)


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := archive.next()) is not None:
        yield member
        archive.members = []  # type: ignore[attr-defined]  # or a tar of many members fills the memory


def _check_name(name: str, where: str, found: Findings) -> None:
    if _leaves(name, None):
        found.add("archive-path", "critical", where, f"would be unpacked to {name!r}, outside of its folder")


def _leaves(name: str, base: PurePosixPath | None) -> bool:
    """Whether a member's name, or a link's target seen from ``base``, leads out of the folder of unpacking."""
    plain = name.replace("\\", "/")
    if plain.startswith("/") or _DRIVE.match(plain) or "\x00" in plain:
        return True
    depth = len(base.parts) if base is not None else 0
    for part in PurePosixPath(plain).parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return True
    return False
