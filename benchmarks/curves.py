"""Lines and bars as SVG files, by hand: no library is needed to look at a benchmark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 52, 48
COLOURS = ("#2563eb", "#d97706", "#059669", "#be185d", "#6d28d9", "#475569")
_STYLE = (
    "<style>text{font:12px system-ui,sans-serif;fill:#334155}.title{font-weight:600;font-size:14px;fill:#0f172a}"
    ".grid{stroke:#e2e8f0}.bound{stroke:#dc2626;stroke-dasharray:5 4}.bound-label{fill:#dc2626}</style>"
)


class Line(NamedTuple):
    """A line; with ``band`` (low, high) an area instead, for intervals."""

    label: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False
    band: Sequence[tuple[float, float, float]] = ()


class Axis(NamedTuple):
    """Ticks (value, label) in order; the first and the last are the ends."""

    label: str
    ticks: Sequence[tuple[float, str]]
    log: bool = False

    def place(self, value: float, start: float, end: float) -> float:
        """Return where a value stands between two pixels."""
        first, last = self.ticks[0][0], self.ticks[-1][0]
        value = min(max(value, first), last)
        if self.log:
            value, first, last = math.log(value), math.log(first), math.log(last)
        return start + (value - first) / (last - first) * (end - start)


def lines(
    path: Path, title: str, x: Axis, y: Axis, drawn: Sequence[Line], bounds: Sequence[tuple[float, str]] = ()
) -> None:
    """Write a plot of lines; ``bounds`` are horizontal ones with a label."""

    def at_x(value: float) -> float:
        return x.place(value, LEFT, WIDTH - RIGHT)

    def at_y(value: float) -> float:
        return y.place(value, HEIGHT - BOTTOM, TOP)

    parts = _frame(title, x, y, at_x, at_y)
    for value, label in bounds:
        height = at_y(value)
        parts.append(
            f'<line class="bound" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>'
        )
        parts.append(
            f'<text class="bound-label" x="{WIDTH - RIGHT - 4}" y="{height - 5:.1f}" text-anchor="end">'
            f"{escape(label)}</text>"
        )
    for index, line in enumerate(drawn):
        colour = COLOURS[index % len(COLOURS)]
        if line.band:
            around = [(at, high) for at, _, high in line.band] + [
                (at, low) for at, low, _ in reversed(line.band)
            ]
            corners = " ".join(f"{at_x(at):.1f},{at_y(value):.1f}" for at, value in around)
            parts.append(f'<polygon points="{corners}" fill="{colour}" opacity=".18"/>')
        path_points = " ".join(f"{at_x(at):.1f},{at_y(value):.1f}" for at, value in line.points)
        dash = ' stroke-dasharray="6 4"' if line.dashed else ""
        parts.append(
            f'<polyline points="{path_points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
        )
    parts += _legend([line.label for line in drawn])
    _write(path, parts)


def bars(
    path: Path, title: str, rows: Sequence[tuple[str, Sequence[float]]], labels: Sequence[str], bound: float
) -> None:
    """Write horizontal bars of shares, a group per row, and a vertical line at ``bound``."""
    left, tall = 230, 13
    height = TOP + 24 + len(rows) * (len(labels) * tall + 12) + 24
    largest = max(max(values) for _, values in rows)
    top = max(0.1, math.ceil(largest * 10) / 10)
    scale = (WIDTH - RIGHT - 48 - left) / top
    parts = [_head(title, height)]
    down: float = TOP + 24
    for name, values in rows:
        parts.append(
            f'<text x="{left - 8}" y="{down + len(labels) * tall / 2 + 4:.1f}" text-anchor="end">{escape(name)}</text>'
        )
        for index, value in enumerate(values):
            where = down + index * tall
            parts.append(
                f'<rect x="{left}" y="{where:.1f}" width="{max(value * scale, 1):.1f}" height="{tall - 3}" '
                f'fill="{COLOURS[index]}"/>'
            )
            parts.append(
                f'<text x="{left + value * scale + 5:.1f}" y="{where + tall - 4:.1f}">{100 * value:.1f} %</text>'
            )
        down += len(labels) * tall + 12
    at = left + bound * scale
    parts.append(f'<line class="bound" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP + 16}" y2="{down:.1f}"/>')
    parts.append(
        f'<text class="bound-label" x="{at:.1f}" y="{down + 14:.1f}" text-anchor="middle">{100 * bound:g} %</text>'
    )
    parts += _legend(labels)
    _write(path, parts)


def _frame(
    title: str, x: Axis, y: Axis, at_x: Callable[[float], float], at_y: Callable[[float], float]
) -> list[str]:
    parts = [_head(title, HEIGHT)]
    for value, label in y.ticks:
        height = at_y(value)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>'
        )
        parts.append(f'<text x="{LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{escape(label)}</text>')
    for value, label in x.ticks:
        parts.append(
            f'<text x="{at_x(value):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{escape(label)}</text>'
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x.label)}</text>'
    )
    parts.append(
        f'<text transform="translate(16 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y.label)}</text>"
    )
    return parts


def _head(title: str, height: float) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">'
        f'{_STYLE}<rect width="100%" height="100%" fill="#fff"/>'
        f'<text class="title" x="12" y="18">{escape(title)}</text>'
    )


def _legend(labels: Sequence[str]) -> list[str]:
    parts, at = [], 12.0
    for index, label in enumerate(labels):
        if not label:
            continue
        colour = COLOURS[index % len(COLOURS)]
        parts.append(f'<rect x="{at}" y="26" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{at + 14}" y="35">{escape(label)}</text>')
        at += 26 + 6.4 * len(label)
    return parts


def _write(path: Path, parts: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")
