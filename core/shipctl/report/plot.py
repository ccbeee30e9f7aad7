"""Plots as inline SVG, drawn by hand: no library, no script, and colours from the page's style."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

from shipctl.report import text

WIDTH, HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 16, 40
_TICKS = 5
_FROM = 50.0
"""The percentile at which the plot begins."""
_LABELLED = (50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9)
_DECADE = 10
COLOURS = 8
"""Series have the classes `c0` to `c7`, which the page's style colours."""

_Scale = Callable[[float], float]


class Curve(NamedTuple):
    """Latency by percentile."""

    label: str
    points: tuple[tuple[float, float], ...]
    """(percentile from 0 to below 100, seconds), ascending."""


def latency_plot(curves: Sequence[Curve], bounds: Sequence[tuple[float, float, str]] = ()) -> str:
    """Draw latency percentiles from the median on, a line per curve, and a dashed line for each bound.

    The horizontal axis is ``-log10(1 - p)``, so that the tail has as much room as the middle: 90, 99 and
    99.9 % stand equally far apart. The vertical one is logarithmic where the latencies span more than a
    decade. ``bounds`` are (percentile, seconds, label). Returns an ``<svg>`` element; empty text if there is
    nothing to draw.
    """
    drawn = [
        Curve(curve.label, tuple(point for point in curve.points if point[0] >= _FROM)) for curve in curves
    ]
    drawn = [curve for curve in drawn if len(curve.points) > 1][:COLOURS]
    if not drawn:
        return ""
    values = [value for curve in drawn for _, value in curve.points]
    shown = [bound for bound in bounds if is_near(bound[1], drawn)]
    x = _percentile_axis([percentile for curve in drawn for percentile, _ in curve.points])
    y, ticks = _latency_axis(min(values), max([*values, *(value for _, value, _ in shown)]))
    last = max(percentile for curve in drawn for percentile, _ in curve.points)
    parts = [
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="latency by percentile">',
        *_grid(x, y, ticks, last),
    ]
    for index, curve in enumerate(drawn):
        path = " ".join(f"{x(percentile):.1f},{y(value):.1f}" for percentile, value in curve.points)
        parts.append(f'<polyline class="line c{index}" points="{path}"/>')
        for percentile, value in curve.points:
            title = f"{curve.label}: p{percentile:g} {text.duration(value)}"
            parts.append(
                f'<circle class="dot c{index}" cx="{x(percentile):.1f}" cy="{y(value):.1f}" r="3.2">'
                f"<title>{escape(title)}</title></circle>"
            )
    for percentile, value, label in shown:
        px, py = x(percentile), y(value)
        parts.append(f'<line class="bound" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{py:.1f}" y2="{py:.1f}"/>')
        parts.append(f'<path class="cross" d="M{px - 5:.1f} {py - 5:.1f}l10 10m0 -10l-10 10"/>')
        parts.append(f'<text class="bound-label" x="{_LEFT + 6}" y="{py - 5:.1f}">{escape(label)}</text>')
    parts.append("</svg>")
    return "".join(parts)


def is_near(bound: float, curves: Sequence[Curve]) -> bool:
    """Whether a bound can be drawn without pressing the curves flat."""
    return bound <= 4 * max(value for curve in curves for _, value in curve.points)


def _percentile_axis(percentiles: Sequence[float]) -> _Scale:
    left, right = _tail(min(percentiles)), _tail(max(percentiles))

    def place(percentile: float) -> float:
        return _LEFT + (_tail(percentile) - left) / ((right - left) or 1.0) * (WIDTH - _LEFT - _RIGHT)

    return place


def _latency_axis(lowest: float, highest: float) -> tuple[_Scale, list[float]]:
    """Return the function from seconds to a height, and the values that get a grid line."""
    room = HEIGHT - _TOP - _BOTTOM
    if highest > _DECADE * lowest:
        bottom, top = _step(lowest, up=False), _step(highest, up=True)
        span = math.log10(top / bottom)
        exponents = range(math.floor(math.log10(bottom)), math.ceil(math.log10(top)) + 1)
        steps = (1, 2, 5) if span < 2.5 else (1,)  # noqa: PLR2004  (more labels than fit)
        ticks = [step * 10.0**exponent for exponent in exponents for step in steps]
        inside = [bottom, *(tick for tick in ticks if bottom * 1.001 < tick <= top * 1.001)]
        return lambda value: HEIGHT - _BOTTOM - math.log10(value / bottom) / span * room, inside
    top = _step(highest, up=True)
    return lambda value: HEIGHT - _BOTTOM - value / top * room, [
        top * index / _TICKS for index in range(_TICKS + 1)
    ]


def _grid(x: _Scale, y: _Scale, ticks: Sequence[float], last: float) -> list[str]:
    parts = []
    for value in ticks:
        height = y(value)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>'
        )
        parts.append(
            f'<text class="tick" x="{_LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{text.duration(value)}</text>'
        )
    for percentile in _LABELLED:
        if percentile > last:
            break
        place = x(percentile)
        anchor = "start" if percentile == _FROM else "end" if place > WIDTH - _RIGHT - 16 else "middle"
        parts.append(
            f'<line class="grid" x1="{place:.1f}" x2="{place:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>'
        )
        label = f'x="{place:.1f}" y="{HEIGHT - _BOTTOM + 18}" text-anchor="{anchor}">p{percentile:g}'
        parts.append(f'<text class="tick" {label}</text>')
    return parts


def _tail(percentile: float) -> float:
    return -math.log10(1 - min(percentile, 99.999) / 100)


def _step(value: float, *, up: bool) -> float:
    """Return the next round number above or below: 1, 2, 2.5 or 5 (and some between) times a power of ten."""
    if value <= 0 or not math.isfinite(value):
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    steps = (1, 1.5, 2, 2.5, 3, 4, 5, 7.5, 10)
    if up:
        return next(step * power for step in steps if value <= step * power * (1 + 1e-9))
    return next(step * power for step in reversed((1, 2, 5)) if value >= step * power * (1 - 1e-9))
