"""Prometheus' text format, as far as counters need it. Source: "Exposition formats", version 0.0.4."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping

Series = tuple[str, tuple[tuple[str, str], ...]]
"""A metric's name and its labels, sorted."""

_LINE = re.compile(
    r"(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)\s*(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)(?:\s+-?\d+)?\s*"
)
_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*(?:,|$)')
_ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


def read_counters(text: str, names: Collection[str], labels: Mapping[str, str]) -> dict[Series, float]:
    """Return the counters called ``names`` that have these ``labels`` (and maybe more).

    :raises ValueError: if the text is in another format, or one of these counters is no number from 0 on
    """
    found: dict[Series, float] = {}
    lines = 0
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        lines += 1
        match = _LINE.fullmatch(line.strip())
        if match is None:
            message = f"line {number} is not in Prometheus' text format"
            raise ValueError(message)
        if match["name"] not in names:
            continue
        pairs = _labels(match["labels"] or "", number)
        if any(pairs.get(name) != value for name, value in labels.items()):
            continue
        found[match["name"], tuple(sorted(pairs.items()))] = _count(match["value"], number)
    if not lines and "# TYPE" not in text:
        raise ValueError("there is no metric in it")
    return found


def _labels(text: str, number: int) -> dict[str, str]:
    pairs = {}
    position = 0
    while position < len(text):
        match = _LABEL.match(text, position)
        if match is None:
            message = f"the labels of line {number} cannot be read"
            raise ValueError(message)
        pairs[match[1]] = re.sub(
            r"\\.", lambda found: _ESCAPES.get(found[0], found[0]), match[2], flags=re.DOTALL
        )
        position = match.end()
    return pairs


def _count(text: str, number: int) -> float:
    value = float(text)
    if not math.isfinite(value) or value < 0:
        message = f"line {number} has a counter of {text}"
        raise ValueError(message)
    return value


def grown(before: Mapping[Series, float], after: Mapping[Series, float]) -> tuple[dict[Series, float], bool]:
    """Return by how much each counter grew, and whether one began anew: then it is at least what it has reached since.

    A counter that was not there before began at 0. One that is not there any more, of those that were, began anew too.
    """
    growth = {}
    anew = any(series not in after for series in before)
    for series, value in after.items():
        last = before.get(series, 0.0)
        anew = anew or value < last
        growth[series] = value - last if value >= last else value
    if anew:  # one process, one life: what one counter lost, all have lost
        growth = dict(after)
    return growth, anew
