"""Numbers of an analysis as people read them."""

from __future__ import annotations

import math

_TEN = 10


def percent(share: float) -> str:
    """Return a share such as `4.1 %`."""
    return f"{_short(100 * share)} %"


def points(difference: float) -> str:
    """Return a difference of shares such as `+1.2 points`."""
    written = _short(100 * difference, sign=True)
    return f"{written} point" if written in {"+1", "-1"} else f"{written} points"


def milliseconds(seconds: float) -> str:
    """Return a latency such as `41.3 ms`."""
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def requests(count: float) -> str:
    """Return a number of requests, rounded to two digits: it is an estimate."""
    if math.isinf(count):
        return "endlessly many"
    digits = len(str(int(count)))
    return f"{round(count, 2 - digits):,.0f}" if digits > 2 else f"{count:.0f}"  # noqa: PLR2004  (two digits)


def duration(seconds: float) -> str:
    """Return a length of time such as `45 s`, `12 min` or `3.5 h`."""
    if math.isinf(seconds):
        return "for ever"
    for unit, size in (("h", 3600.0), ("min", 120.0)):
        if seconds >= size:
            return f"{seconds / (3600 if unit == 'h' else 60):.2g} {unit}"
    return f"{seconds:.0f} s"


def _short(number: float, *, sign: bool = False) -> str:
    digits = 2 if abs(number) < _TEN else 1
    written = f"{number:+.{digits}f}" if sign else f"{number:.{digits}f}"
    return written.rstrip("0").rstrip(".")
