"""Chooses how a run is shown. Displays are hook implementations, found by name in an entry-point group.

A display is made by calling its entry point with a text stream and the keywords ``verbosity`` and ``color``,
implements hooks of :mod:`shipctl.stages.hookspecs`, and has ``close()``. Exactly one shows a run.
"""

from __future__ import annotations

import difflib
import os
import sys
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol, TextIO, cast

from shipctl.errors import PluginError, SpecError

DISPLAY_GROUP = "shipctl.displays"


class Display(Protocol):
    """What the command line needs of a display beside its hooks."""

    def close(self) -> None:
        """Leave the terminal as it was found; also called when the run was broken off."""


class DisplayFactory(Protocol):
    """What an entry point of the group names."""

    def __call__(self, stream: TextIO, *, verbosity: int, color: bool) -> Display:
        """Return a display that writes to ``stream``."""


def default_display(stream: TextIO) -> str:
    """Return `console` for a terminal that can move its cursor, else `log`."""
    return "console" if stream.isatty() and os.environ.get("TERM", "") != "dumb" else "log"


def make_display(name: str, stream: TextIO, *, verbosity: int = 0, color: bool = True) -> Display:
    """Import the display ``name`` and make it.

    :raises SpecError: if none of that name is installed
    :raises PluginError: if it does not import, or not take these arguments
    """
    factory = _load(name)
    try:
        return factory(stream, verbosity=verbosity, color=color)
    except Exception as exc:  # a plugin may fail in any way, and is named then
        message = f"display {name!r} does not start: {type(exc).__name__}: {exc}"
        raise PluginError(message) from exc


def _load(name: str) -> DisplayFactory:
    found: dict[str, EntryPoint] = {point.name: point for point in entry_points(group=DISPLAY_GROUP)}
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(found)) or 'none'}"
        message = f"no display named {name!r} is installed; {hint}"
        raise SpecError(message)
    try:
        return cast("DisplayFactory", found[name].load())
    except Exception as exc:  # as above
        message = f"display {name!r} ({found[name].value}) does not import: {type(exc).__name__}: {exc}"
        raise PluginError(message) from exc


def colored(stream: TextIO, *, plain: bool) -> bool:
    """Return whether colours are wanted on ``stream``."""
    return not plain and (stream is sys.stdout or stream is sys.stderr) and stream.isatty()
