"""Where something stands in a spec, and how everything that is wrong with a spec is told at once.

A :class:`Location` is a place that a person can go to (``file:line:column``, or the command-line option
that a value came from). A :class:`Problems` collects what is wrong and raises it as one
:class:`~shipctl.errors.SpecError`, sorted by position, each with its source line and a caret.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from shipctl.errors import SpecError

Keys: TypeAlias = tuple[str | int, ...]
"""A path into a document: ``("stages", 3, "with", "opset")``."""

Part: TypeAlias = Literal["key", "value"]
"""Which end of ``key: value`` is meant: the key for an unknown name, the value for a wrong value."""

MAX_SHOWN = 100
"""Problems that are collected; a file with more is fixed in several rounds."""
_MAX_NAME = 100
_MAX_CANDIDATES = 500
_MAX_LISTED = 10
_EXCERPT_WIDTH = 120


def near(name: str, candidates: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the candidate that resembles ``name`` most, or ``""``."""
    if len(name) > _MAX_NAME:  # comparing is quadratic, and no name is as long
        return ""
    short = (candidate for candidate in candidates if len(candidate) <= _MAX_NAME)
    found = difflib.get_close_matches(name, list(islice(short, _MAX_CANDIDATES)), n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""


def listed(names: Iterable[str], none: str = "none") -> str:
    """Write names in one line, the first ten of many, or ``none``."""
    known = list(names)
    shown = known if len(known) <= _MAX_LISTED else [*known[:_MAX_LISTED], f"{len(known) - _MAX_LISTED} more"]
    return ", ".join(map(str, shown)) or none


def shorten(text: str, width: int = 60) -> str:
    """Return the repr of ``text``, cut to about ``width`` characters, for a message."""
    return repr(text if len(text) <= width else f"{text[:width]}…")


def dotted(keys: Keys) -> str:
    """Write a path as a person does: ``("stages", 3, "with")`` is ``stages[3].with``."""
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


@dataclass(frozen=True, slots=True)
class Location:
    """A place in a file (``line`` and ``column`` count from 1), or a command-line option (``line`` is 0)."""

    path: str
    line: int = 0
    column: int = 0
    source: str = field(default="", compare=False, repr=False)
    """The text of that line, for the excerpt."""

    def __str__(self) -> str:
        shown = self.path
        with suppress(
            ValueError, OSError
        ):  # elsewhere, or the current folder is gone: the full path is right
            shown = str(Path(self.path).relative_to(Path.cwd()))
        return f"{shown}:{self.line}:{self.column}" if self.line else shown

    def excerpt(self) -> str:
        """Return the source line and, below it, a caret under the column; ``""`` if there is no source."""
        if not self.line or not self.source.strip():
            return ""
        source, column = self.source, self.column - 1
        if len(source) > _EXCERPT_WIDTH:
            start = max(0, min(column - _EXCERPT_WIDTH // 2, len(source) - _EXCERPT_WIDTH))
            source, column = source[start : start + _EXCERPT_WIDTH], column - start
        # a tab stays a tab and a wide character counts twice, so that the caret stands under its column
        pad = "".join(
            "\t" if char == "\t" else "  " if unicodedata.east_asian_width(char) in "WF" else " "
            for char in source[:column]
        )
        return f"    {source}\n    {pad}^"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a spec."""

    location: Location
    message: str

    @property
    def excerpt(self) -> str:
        """The source line with a caret below it, or ``""``."""
        return self.location.excerpt()

    def __str__(self) -> str:
        text = f"{self.location}: {self.message}"
        return f"{text}\n{self.excerpt}" if self.excerpt else text


class Locator(Protocol):
    """Anything that knows where a path of keys was written."""

    def locate(self, keys: Keys, part: Part = "value") -> Location:
        """Return the place of ``keys``, or of the nearest parent that exists."""


class Problems:
    """Collects problems, so that the user sees all of them at once.

    ``locator`` turns key paths into places; without one, only :class:`Location` objects can be added.
    """

    def __init__(self, locator: Locator | None = None) -> None:
        self._locator = locator
        self._found: dict[tuple[Location, str], Problem] = {}

    def __bool__(self) -> bool:
        return bool(self._found)

    def __len__(self) -> int:
        return len(self._found)

    @property
    def full(self) -> bool:
        """Whether so much is wrong that nobody needs to look for more."""
        return len(self._found) >= MAX_SHOWN

    def __iter__(self) -> Iterator[Problem]:
        return iter(self.sorted())

    def add(self, where: Location | Keys, message: str, part: Part = "value") -> None:
        """Record a problem at a place or at a path of keys; the same one twice counts once."""
        if self.full:
            return
        if not isinstance(where, Location):
            if self._locator is None:
                raise TypeError("a path of keys needs a locator")
            where = self._locator.locate(where, part)
        self._found.setdefault((where, message), Problem(where, message))

    def sorted(self) -> list[Problem]:
        """Return the problems by file, line and column; those of command-line options come first."""
        return sorted(
            self._found.values(),
            key=lambda p: (p.location.line > 0, p.location.path, p.location.line, p.location.column),
        )

    def raise_if_any(self) -> None:
        """Raise one SpecError that holds every problem, or return if there is none."""
        if not self._found:
            return
        lines = [str(problem) for problem in self.sorted()]
        if self.full:
            lines.append("and there may be more problems; fix these first")
        error = SpecError("\n".join(lines))
        error.problems = tuple(self.sorted())
        raise error
