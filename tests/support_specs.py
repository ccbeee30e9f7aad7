"""Copies of `specs/` for tests that run them as a user would."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

SPECS = Path(__file__).parents[1] / "specs"

_MEASURING = re.compile(
    r"^(?P<head>\s*with: \{)(?P<options>.*\brequire_stable: false\b.*?)(?P<tail>\}.*)$", re.MULTILINE
)
_LONGER = re.compile(r"(min_runs|min_duration|max_duration): \S+?(, |$)")
_WRITTEN_BELOW = re.compile(r"^(?P<margin> +)max_duration: \S+$", re.MULTILINE)
_BRIEF = "min_runs: 5, min_duration: 150ms, max_duration: 300ms"


def copy_specs(folder: Path, *without: str) -> Path:
    """Copy all specs to ``folder``, with benchmarks of a third of a second, and return it.

    A user's benchmark takes seconds per model and batch size, in which a test would learn nothing. What a user has
    brought or made there stays behind, and so does what is named ``without``.
    """
    left = shutil.ignore_patterns(".shipctl", "__pycache__", *without)
    shutil.copytree(SPECS, folder, dirs_exist_ok=True, ignore=left)
    for path in folder.rglob("*.yaml"):
        text = path.read_text("utf-8")
        brief = _MEASURING.sub(_shortened, text)
        brief = _WRITTEN_BELOW.sub(r"\g<margin>min_duration: 150ms\n\g<margin>max_duration: 300ms", brief)
        if brief != text:
            path.write_text(brief, "utf-8")
    return folder


def _shortened(found: re.Match[str]) -> str:
    options = _LONGER.sub("", found["options"])
    return f"{found['head']}{options}, {_BRIEF}{found['tail']}"
