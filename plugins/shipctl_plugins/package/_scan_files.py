"""One file of an artifact, and whatever is inside of it: recognised by its bytes first, and by its name second."""

from __future__ import annotations

import io
import re
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from shipctl_plugins.package import _scan_archives as archives
from shipctl_plugins.package._scan_findings import Findings
from shipctl_plugins.package._scan_onnx import look_at_onnx
from shipctl_plugins.package._scan_pickles import look_for_pickles

PICKLE_NAMES = frozenset({".pkl", ".pickle", ".joblib", ".pt", ".pth", ".ckpt", ".dill", ".cloudpickle"})
"""Names under which loaders expect a pickle. `.bin` and `.dat` are mostly plain weights: those are tried."""
_ARCHIVE_NAMES = frozenset(
    {".zip", ".npz", ".whl", ".jar", ".keras", ".tar", ".tgz", ".gz", ".xz", ".bz2", ".7z", ".rar"}
)
_NATIVE_NAMES = frozenset({".so", ".dll", ".dylib", ".pyd", ".a", ".exe"})
_NATIVE = (
    b"\x7fELF",
    b"\xfe\xed\xfa\xce",
    b"\xfe\xed\xfa\xcf",
    b"\xce\xfa\xed\xfe",
    b"\xcf\xfa\xed\xfe",
    b"\xca\xfe\xba\xbe",
)
_WASM = b"\x00asm"
_NPY = b"\x93NUMPY"
_IN_MEMORY = 256 << 20
"""Bytes of a member that may be held; a larger one is read once, as a stream."""
_ONNX_START = re.compile(rb"\x08[\x01-\x1f][\x12\x1a\x22\x2a\x32\x3a\x42]")
"""`ir_version`, then any other field of a ModelProto."""
_CONFIG = "config.pbtxt"
_PYTHON_BACKEND = re.compile(rb"""(?:backend|platform)\s*:\s*["']python["']""")
_LARGEST_CONFIG = 1 << 20


class Inspector:
    """Looks at the files of one artifact."""

    def __init__(self, root: Path, paths: list[str], found: Findings) -> None:
        """``root`` is the artifact's folder, ``paths`` are its files."""
        self._root = root
        self._found = found
        self._budget = archives.Budget(0)
        self.operators: list[tuple[str, str, set[str]]] = []
        """File, domain and operators of the ONNX models."""
        self._repositories = {
            PurePosixPath(path).parent for path in paths if PurePosixPath(path).name == _CONFIG
        }

    def look_at(self, path: str) -> None:
        """Look at one file; whatever goes wrong is a finding."""
        place = self._root / path
        try:
            if any(part.is_symlink() for part in (place, *place.parents) if part.is_relative_to(self._root)):
                self._found.add("link", "high", path, "is a link; what it leads to can change after the scan")
            size = place.stat().st_size
            self._budget = archives.Budget(size)
            with place.open("rb") as stream:
                self._look(stream, size, path, depth=0)
        except archives.BombError as exc:
            self._found.add("archive-bomb", "critical", path, f"was not looked at to its end: {exc}")
        except Exception as exc:  # noqa: BLE001  (a hostile file may break any parser, and that must not pass)
            self._found.unscannable(path, f"{type(exc).__name__}: {exc}")

    def _look(self, stream: BinaryIO, size: int, file: str, depth: int) -> None:
        """Look at a stream that can seek."""
        head = stream.read(512)
        suffix = PurePosixPath(file.rpartition("!")[2]).suffix.lower()
        self._code(stream, head, suffix, file)
        kind = archives.kind_of(stream)
        if kind in archives.CLOSED.values():
            self._found.unscannable(
                file, f"{kind} archives cannot be looked into; unpack it, or use zip or tar"
            )
            return
        model = not kind and self._model(stream, head, suffix, file, depth)
        if head.startswith(_NPY):
            self._arrays(stream, file)
        elif not model:
            # A file can be an archive at its end and a pickle at its beginning, so this is tried for both.
            stream.seek(0)
            look_for_pickles(stream, file, self._found, expected=not kind and suffix in PICKLE_NAMES)
        if kind:
            self._archive(kind, stream, size, file, depth)
        elif suffix in _ARCHIVE_NAMES:
            self._found.unscannable(file, f"its name says {suffix}, its bytes do not")

    def _archive(self, kind: str, stream: BinaryIO, size: int, file: str, depth: int) -> None:
        if depth >= archives.MAX_DEPTH:
            self._found.add(
                "archive-bomb", "critical", file, f"archives within archives, deeper than {depth}"
            )
            return
        stream.seek(0)
        archives.look_into(
            kind, stream, size, file, self._found, self._budget,
            lambda member, name: self._member(member, name, depth + 1),
        )  # fmt: skip

    def _member(self, stream: BinaryIO, file: str, depth: int) -> None:
        """Look at a stream that is read once."""
        content = stream.read(_IN_MEMORY + 1)
        if len(content) <= _IN_MEMORY:
            self._look(io.BytesIO(content), len(content), file, depth)
            return
        beginning = io.BytesIO(content[: 1 << 20])
        suffix = PurePosixPath(file.rpartition("!")[2]).suffix.lower()
        self._code(beginning, content[:512], suffix, file)
        opaque = archives.kind_of(beginning) or suffix == ".onnx" or content.startswith(_NPY)
        look_for_pickles(_Rest(content, stream), file, self._found, expected=suffix in PICKLE_NAMES)  # type: ignore[arg-type]
        if opaque or _Rest.ends_as_zip(stream):
            self._found.unscannable(file, f"it is inside of an archive and larger than {_IN_MEMORY} bytes")

    def _arrays(self, stream: BinaryIO, file: str) -> None:
        """Look at numpy arrays, one after another: those of objects are pickles."""
        import numpy as np

        stream.seek(0)
        while start := stream.read(len(_NPY)):
            if start != _NPY:
                self._found.unscannable(file, f"bytes follow the array, at {stream.tell() - len(start)}")
                return
            stream.seek(-len(_NPY), 1)
            version = np.lib.format.read_magic(stream)
            reader: Any = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                reader = np.lib.format.read_array_header_2_0
            shape, _, dtype = reader(stream)
            if dtype.hasobject:
                look_for_pickles(stream, file, self._found, expected=True)
                return
            stream.seek(int(np.prod(shape, dtype=object)) * dtype.itemsize, 1)

    def _model(self, stream: BinaryIO, head: bytes, suffix: str, file: str, depth: int) -> bool:
        """Look at an ONNX model, and return whether it is one."""
        if suffix != ".onnx" and not _ONNX_START.match(head):
            return False
        stream.seek(0)
        folder = (self._root / file).parent if depth == 0 else None
        operators = look_at_onnx(stream.read(), file, self._found, folder)
        if operators is None:
            if suffix == ".onnx":
                self._found.unscannable(file, "it should be an ONNX model, but does not parse as one")
            return False
        self.operators += [(file, domain, names) for domain, names in operators.items()]
        return True

    def _code(self, stream: BinaryIO, head: bytes, suffix: str, file: str) -> None:
        """Note what is run rather than read."""
        name = PurePosixPath(file.rpartition("!")[2])
        if (
            head.startswith(_NATIVE)
            or suffix in _NATIVE_NAMES
            or ".so." in name.name
            or _is_windows(stream, head)
        ):
            self._found.add("native-code", "high", file, "is machine code; whoever loads it runs it")
        elif head.startswith(_WASM):
            self._found.add("native-code", "high", file, "is WebAssembly; whoever loads it runs it")
        elif suffix in {".pyc", ".pyo"}:
            self._found.add("native-code", "high", file, "is compiled Python, which nobody can review")
        elif name.name == _CONFIG:
            stream.seek(0)
            if _PYTHON_BACKEND.search(_uncommented(stream.read(_LARGEST_CONFIG))):
                self._found.add(
                    "python-backend", "medium", file, "has Triton run Python code of the repository"
                )
        elif suffix == ".py" and any(parent in self._repositories for parent in name.parents):
            self._found.add("python-backend", "medium", file, "is Python code that Triton may run")
        elif suffix == ".py":
            self._found.add("python-code", "low", file, "is Python code")
        elif head.startswith(b"#!"):
            self._found.add("script", "low", file, "is a script")


class _Rest:
    """A large member, of which the beginning has been read; it cannot go back."""

    def __init__(self, beginning: bytes, stream: BinaryIO) -> None:
        self._beginning = io.BytesIO(beginning)
        self._stream = stream

    def seekable(self) -> bool:
        return False

    def read(self, size: int) -> bytes:
        data = self._beginning.read(size)
        return data if len(data) == size else data + self._stream.read(size - len(data))

    def readline(self, size: int) -> bytes:
        data = self._beginning.readline(size)
        return (
            data
            if data.endswith(b"\n") or len(data) == size
            else data + self._stream.readline(size - len(data))
        )

    @staticmethod
    def ends_as_zip(stream: BinaryIO) -> bool:
        """Whether the directory of a zip stands near the end of what is left."""
        tail = b""
        while block := stream.read(1 << 20):
            tail = (tail + block)[-(1 << 20) :]
        return b"PK\x05\x06" in tail


def _is_windows(stream: BinaryIO, head: bytes) -> bool:
    """Whether it is an executable or a library for Windows."""
    if not head.startswith(b"MZ") or len(head) < 64:  # noqa: PLR2004
        return False
    stream.seek(int.from_bytes(head[60:64], "little"))
    return stream.read(4) == b"PE\x00\x00"


def _uncommented(text: bytes) -> bytes:
    return re.sub(rb"#[^\n]*", b"", text)
