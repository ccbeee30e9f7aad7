"""A word from one process to another: that the release which it drives is to be aborted.

A small file in the target's folder, written while another process holds the project's lock, read by that one before
each step and while it waits, and taken away when the release ends. It names the release's number, so that one that
was left behind aborts nothing later.
"""

from __future__ import annotations

import json
from pathlib import Path

from shipctl.records import canonical_json
from shipctl.store.files import write_atomic

ABORTED = "aborted: "
"""Begins the message of a release that a person has aborted."""


class AbortFile:
    """The wish to abort the release of one stage on one target."""

    def __init__(self, folder: Path, pipeline: str, stage: str) -> None:
        """``folder`` is the target's."""
        self._path = folder / "releases" / pipeline / f"{stage}.abort"

    def ask(self, number: int, reason: str) -> None:
        """Ask whoever drives release ``number`` to abort it."""
        write_atomic(self._path, canonical_json({"number": number, "reason": reason}))

    def reason(self, number: int) -> str | None:
        """Return why release ``number`` is to be aborted; None if nobody wants that."""
        try:
            body = json.loads(self._path.read_bytes())
            return str(body["reason"]) if body["number"] == number else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def clear(self) -> None:
        """Take the wish away."""
        self._path.unlink(missing_ok=True)
