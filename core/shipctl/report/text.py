"""Numbers as a person reads them. Used by the commands, the displays and the report page alike."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping

_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SMALL = 1e-3
_LARGE = 1e5


def duration(seconds: float) -> str:
    """Write seconds with the unit that fits: `310us`, `4.2ms`, `3.2s`, `2m05s`, `1h02m`."""
    if not math.isfinite(seconds):
        return str(seconds)
    sign, seconds = ("-" if seconds < 0 else ""), abs(seconds)
    if seconds == 0:
        return "0s"
    if seconds < 0.9995e-3:  # noqa: PLR2004  (what would round to 1000us)
        return f"{sign}{seconds * 1e6:.3g}us"
    if seconds < 0.9995:  # noqa: PLR2004
        return f"{sign}{seconds * 1e3:.3g}ms"
    if seconds < 59.95:  # noqa: PLR2004
        return f"{sign}{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:  # noqa: PLR2004
        return f"{sign}{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:  # noqa: PLR2004
        return f"{sign}{hours}h{minutes:02d}m"
    return f"{sign}{hours // 24}d{hours % 24}h"


def size(count: float) -> str:
    """Write a number of bytes: `0 B`, `97.1 KiB`, `1.2 GiB`."""
    if not math.isfinite(count):
        return str(count)
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(amount) < 1023.95:  # noqa: PLR2004  (what would round to 1024.0)
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def number(value: float) -> str:
    """Write a number with about four digits that matter."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < _LARGE:
        return str(int(value))
    if _SMALL <= abs(value) < _LARGE:
        return f"{value:.4f}" if abs(value) < 10 else f"{value:.5g}"  # noqa: PLR2004
    return f"{value:.3g}"


def metric(name: str, value: float) -> str:
    """Write a metric's value in the unit that its name stands for; metrics are stored in base units."""
    words = set(re.split(r"[\s._\-/\[\]]", name.lower()))
    if words & {"runs", "samples", "count"}:
        return number(value)
    if words & {"latency", "seconds", "duration"}:
        return duration(value)
    if words & {"bytes", "memory", "size"}:
        return size(value)
    if words & {"throughput", "rate"} and "error" not in words:
        return f"{number(value)}/s"
    return number(value)


def clock(when: float) -> str:
    """Write a time (seconds since the epoch) as local `12:01:02`."""
    return time.strftime("%H:%M:%S", time.localtime(when))


def moment(when: float | None) -> str:
    """Write a time (seconds since the epoch) as local `2026-03-01 12:01:02`, nothing for None."""
    return "" if when is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))


def printable(text: str) -> str:
    """Take out what would move a terminal's cursor or colour its text; newlines and tabs stay."""
    return _CONTROL.sub("", text)


def plural(count: int, noun: str, many: str | None = None) -> str:
    """Write `1 stage`, `2 stages`."""
    return f"{count} {noun if count == 1 else many or noun + 's'}"


def short(digest: str) -> str:
    """Return the first 12 digits of a digest, which is what a person compares."""
    return digest[:12]


_FIRST = (
    "accuracy",
    "accuracy_drop",
    "rmse",
    "spearman",
    "latency.p95",
    "latency.p99",
    "throughput",
    "parity.cosine",
    "parity.top1",
)


def headline(values: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that a person asks for first, without interval ends and values per configuration."""
    main = {
        name: value
        for name, value in values.items()
        if "@" not in name and not name.endswith((".low", ".high"))
    }
    first = {name: main[name] for name in _FIRST if name in main}
    return first | main


def metrics(values: Mapping[str, float], limit: int = 3) -> str:
    """Write the first few metrics of a stage on one line: `accuracy=0.9967  accuracy_drop=0`."""
    return "  ".join(
        f"{name}={metric(name, value)}" for name, value in list(headline(values).items())[:limit]
    )


def counts(by_status: Mapping[str, int]) -> str:
    """Write how many of each: `3 done, 1 failed`; what there is none of is left out."""
    return ", ".join(f"{count} {status}" for status, count in by_status.items() if count) or "nothing"
