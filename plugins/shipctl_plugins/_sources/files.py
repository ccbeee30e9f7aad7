"""The file of a source model that the model itself is in."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path, PurePosixPath

from shipctl.errors import StageError
from shipctl.stages.artifacts import SourceModel


def main_file(model: SourceModel, suffixes: Collection[str]) -> Path:
    """Return the one file of ``model`` that has one of ``suffixes``; `files` of the spec may lie beside it.

    :raises StageError: if there is none, or more than one
    """
    base = model.root.parent if model.root.is_file() else model.root
    found = [entry.path for entry in model.files if PurePosixPath(entry.path).suffix.lower() in suffixes]
    if len(found) != 1:
        asked, there = " or ".join(sorted(suffixes)), ", ".join(found) or "none"
        message = f"the model should be one {asked} file, found: {there}; take others out of `model.files`"
        raise StageError(message)
    return base / found[0]
