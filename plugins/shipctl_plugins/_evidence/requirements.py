"""The Python distributions that a `requirements.txt` names, as far as it can be said without an index."""

from __future__ import annotations

import re
from dataclasses import dataclass

_COMMENT = re.compile(r"(^|\s)#.*$")
_HASH = re.compile(r"\s--hash[= ]\S+")
_ELSEWHERE = re.compile(r"(-r|-c|-e|--requirement|--constraint|--editable)\b")
"""Options that bring further distributions; all others only say where to look for them."""


@dataclass(frozen=True)
class Requirement:
    """One line that names a distribution."""

    name: str
    """In its normal form (lower case, single hyphens)."""
    specifier: str
    """Such as `>=2,<3`; empty for any version."""
    version: str | None
    """The version where there is exactly one that fits (`==1.2.3`)."""
    marker: str
    """An environment marker (PEP 508), such as `python_version < "3.12"`; empty for always."""
    line: int
    """Counted from one."""


@dataclass(frozen=True)
class Requirements:
    """What stands in the file."""

    found: tuple[Requirement, ...]
    unreadable: tuple[tuple[int, str], ...]
    """Number and text of lines that bring something that they do not name: other files, paths, broken lines."""


def read_requirements(text: str) -> Requirements:
    """Parse the text of a requirements file (https://pip.pypa.io/en/stable/reference/requirements-file-format/).

    :raises ModuleNotFoundError: without the distribution `packaging`
    """
    from packaging.requirements import InvalidRequirement
    from packaging.requirements import Requirement as Parsed
    from packaging.utils import canonicalize_name

    found: list[Requirement] = []
    unreadable: list[tuple[int, str]] = []
    for number, line in _lines(text):
        if line.startswith("-") and not _ELSEWHERE.match(line):
            continue
        try:
            parsed = Parsed(_HASH.sub("", f"{line} ").strip())
        except InvalidRequirement:
            unreadable.append((number, line))
            continue
        pins = [s.version for s in parsed.specifier if s.operator in {"==", "==="} and "*" not in s.version]
        found.append(
            Requirement(
                name=str(canonicalize_name(parsed.name)),
                specifier=str(parsed.specifier),
                version=pins[0] if pins else None,
                marker=str(parsed.marker or ""),
                line=number,
            )
        )
        if parsed.url:
            unreadable.append((number, f"{parsed.name} @ (a URL)"))
    return Requirements(tuple(found), tuple(unreadable))


def _lines(text: str) -> list[tuple[int, str]]:
    """Return number and content of the logical lines: continuations joined, comments and empty ones left out."""
    lines: list[tuple[int, str]] = []
    start, joined = 0, ""
    for number, raw in enumerate(text.splitlines(), 1):
        start = start or number
        joined += _COMMENT.sub("", raw)
        if joined.endswith("\\"):
            joined = joined[:-1] + " "
            continue
        if joined.strip():
            lines.append((start, joined.strip()))
        start, joined = 0, ""
    if joined.strip():
        lines.append((start, joined.strip()))
    return lines
