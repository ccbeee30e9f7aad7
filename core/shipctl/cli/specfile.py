"""Finds the spec where the command line leaves it out."""

from __future__ import annotations

import re
from pathlib import Path

from shipctl.errors import SpecError

_KIND = re.compile(r"^kind:[ \t]*['\"]?Pipeline['\"]?[ \t]*(?:#.*)?\r?$", re.MULTILINE)
_HEAD = 1 << 16
_FOLDERS = (Path("specs"), Path())


def find_spec(given: Path | None) -> Path:
    """Return ``given``, else the only spec in `specs` or in the current folder.

    :raises SpecError: if there is none, or a choice
    """
    if given is not None:
        return given
    found = specs_here()
    if not found:
        message = (
            "there is no spec in ./specs or here; name one, or write a starter with `shipctl init MODEL`"
        )
        raise SpecError(message)
    if len(found) > 1:
        message = f"which spec is meant: {', '.join(map(str, found))}? name one of them"
        raise SpecError(message)
    return found[0]


def specs_here() -> list[Path]:
    """Return the specs in `specs` and in the current folder."""
    return [path for folder in _FOLDERS for path in _specs_in(folder)]


def _specs_in(folder: Path) -> list[Path]:
    return [path for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]) if _is_pipeline(path)]


def _is_pipeline(path: Path) -> bool:
    """Whether the head of the file says so; whether the rest is right is the loader's to say."""
    try:
        with path.open("rb") as stream:
            return _KIND.search(stream.read(_HEAD).decode(errors="replace")) is not None
    except OSError:
        return False
