"""Digests of files outside the store, kept so that an unchanged file is not read again to plan.

A digest is believed as long as size, modification and change time and inode are the same, and only if the
file was already older than two seconds when it was read (a file system's clock is coarse). It serves
planning; bytes that are used are hashed when they are copied into the store.
"""

from __future__ import annotations

import ast
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from shipctl.store.files import hash_file, write_atomic

_SETTLED = 2.0


class FileCache:
    """Digest, and for Python files the imports, of files by path."""

    def __init__(self, path: Path | None) -> None:
        """``path`` keeps the entries between runs; None keeps them in memory."""
        self._path = path
        self._entries: dict[str, dict[str, object]] = {}
        self._changed = False
        self.used: set[str] = set()
        """The files that were asked for."""
        if path is not None:
            with suppress(OSError, ValueError):
                loaded = json.loads(path.read_bytes())
                if isinstance(loaded, dict):
                    self._entries = loaded

    def _entry(self, path: Path) -> dict[str, object]:
        status = os.stat(path)  # noqa: PTH116  (hot: once per source file of a plan)
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        name = str(path)
        self.used.add(name)
        entry = self._entries.get(name)
        if entry is None or entry.get("stamp") != stamp:
            digest = hash_file(path)[0]
            settled = time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED
            keep = entry if entry is not None and entry.get("sha256") == digest else {}
            entry = {**keep, "stamp": stamp if settled else None, "sha256": digest}
            self._entries[name] = entry
            self._changed = True
        return entry

    def digest(self, path: Path) -> str:
        """Return the SHA-256 of a file.

        :raises OSError: if it cannot be read
        """
        return str(self._entry(path)["sha256"])

    def imports(self, path: Path) -> list[str]:
        """Return what a Python file imports anywhere in it, as dotted names; relative ones keep their dots.

        `from a import b` gives `a` and `a.b`, since b may be a module. A file that does not parse imports nothing.
        """
        entry = self._entry(path)
        if "imports" not in entry:
            entry["imports"] = _imports(path)
            self._changed = True
        found = entry["imports"]
        return [str(name) for name in found] if isinstance(found, list) else []

    def save(self) -> None:
        """Write the entries, if there are new ones."""
        if self._path is not None and self._changed:
            write_atomic(self._path, json.dumps(self._entries).encode(), durable=False)
            self._changed = False


def _imports(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return []
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            names.add(base)
            joint = "" if base.endswith(".") else "."
            names.update(base + joint + alias.name for alias in node.names if alias.name != "*")
    return sorted(names)
