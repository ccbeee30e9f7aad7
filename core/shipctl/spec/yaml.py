"""Reads a YAML file that nobody has checked: bounded, as UTF-8 text, with its digest."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from shipctl.errors import SpecError
from shipctl.spec import nodes
from shipctl.spec.composer import compose, end_of, error_at
from shipctl.spec.nodes import MappingNode, Source
from shipctl.spec.problems import Keys, Location, Part

MAX_BYTES = 256 * 1024
"""Of one file, and of a spec with all that it includes: what is scanned in well below a second."""


@dataclass(frozen=True)
class Document:
    """A YAML file as data and as a tree with positions."""

    path: Path
    text: str
    sha256: str
    """Of the file's bytes, in hex."""
    root: MappingNode

    @cached_property
    def data(self) -> dict[str, Any]:
        """The content as plain values; every access gives the same dict."""
        return self.root.plain()

    def locate(self, keys: Keys, part: Part = "value") -> Location:
        """Return where ``keys`` was written; what is missing is located at its nearest parent."""
        return nodes.locate(self.root, keys, part)


def load_document(path: Path) -> Document:
    """Read one YAML file whose top level is a mapping.

    Raises SpecError, with the position, for everything that is not a plain file of bounded, well-formed YAML.
    """
    raw = _read_bounded(path)
    text = _decode(path, raw)
    source = Source(str(path), text)
    root = compose(source)
    if root is None:
        raise SpecError(
            f"{Location(str(path), 1, 1)}: the file is empty; 'shipctl init' writes a spec to start from"
        )
    if not isinstance(root, MappingNode):
        raise error_at(
            source, root.line, root.column, "a spec is a mapping; begin with 'apiVersion: shipctl.dev/v1'"
        )
    return Document(path, text, hashlib.sha256(raw).hexdigest(), root)


def _read_bounded(path: Path) -> bytes:
    # O_NONBLOCK: opening a FIFO that nobody writes to would wait for ever
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise SpecError(f"{Location(str(path))}: there is no such file; name the spec's file") from None
    except (OSError, ValueError) as exc:
        reason = (exc.strerror if isinstance(exc, OSError) else None) or "a NUL character is in it"
        raise SpecError(
            f"{Location(str(path))}: cannot be read ({reason}); check the path and its permissions"
        ) from exc
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            kind = "a folder" if stat.S_ISDIR(info.st_mode) else "not a regular file"
            raise SpecError(f"{Location(str(path))}: is {kind}; name the spec's file")
        size, raw = info.st_size, b""
        # the size may be a lie (files of /proc have none), so one byte more than allowed is asked for
        while size <= MAX_BYTES and len(raw) <= MAX_BYTES:
            block = os.read(descriptor, MAX_BYTES + 1 - len(raw))
            if not block:
                return raw
            raw += block
    except OSError as exc:
        raise SpecError(f"{Location(str(path))}: cannot be read ({exc.strerror}); check the file") from exc
    finally:
        os.close(descriptor)
    raise SpecError(
        f"{Location(str(path))}: has {max(size, len(raw))} bytes and a spec may have {MAX_BYTES};"
        " move data into files of its own and stages into files named under include"
    )


def _decode(path: Path, raw: bytes) -> str:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")):
        raise SpecError(f"{Location(str(path), 1, 1)}: the file is UTF-16 or UTF-32; save it as UTF-8")
    raw = raw.removeprefix(b"\xef\xbb\xbf")  # editors on Windows write this mark; it changes nothing
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        before = Source(str(path), raw[: exc.start].decode("utf-8"))
        line, column = end_of(before.text)
        where = Location(str(path), line + 1, column + 1)
        raise SpecError(
            f"{where}: byte 0x{raw[exc.start]:02x} is not UTF-8 text; save the file as UTF-8"
        ) from None
