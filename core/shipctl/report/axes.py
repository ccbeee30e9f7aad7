"""Axes of plots of one number over another: a linear or logarithmic scale, round ticks, and what stands beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from shipctl.report import text

WIDTH, HEIGHT = 560, 330
LEFT, RIGHT, TOP, BOTTOM = 74, 22, 34, 52
_TICKS = 6
_DECADE = 10
_SPANNING = {"latency", "memory", "size", "throughput"}
"""Metrics, by their part before the first dot, of which factors count; of an accuracy it is differences."""
_ROOM = 0.07
"""Part of an axis that stays free at both ends, so that no point lies on the frame."""
_LONGEST = 9
"""Characters of a tick's label that have room beside each other."""


@dataclass(frozen=True)
class Axis:
    """One axis: what it shows, from where to where."""

    metric: str
    low: float
    high: float
    log: bool
    upright: bool
    whole: bool = False
    """Whether it counts, so that only whole numbers get a tick."""

    @classmethod
    def over(
        cls, metric: str, values: Sequence[float], *, upright: bool = False, whole: bool = False
    ) -> Axis:
        """Return an axis with room for the values; logarithmic where times or sizes span more than a decade."""
        low, high = min(values), max(values)
        if metric.partition(".")[0] in _SPANNING and low > 0 and high > _DECADE * low:
            room = (high / low) ** _ROOM
            return cls(metric, low / room, high * room, log=True, upright=upright)
        room = (high - low) * _ROOM or abs(high) * 0.1 or (1.0 if whole else 1e-3)
        return cls(metric, low - room, high + room, log=False, upright=upright, whole=whole)

    def place(self, value: float) -> float:
        """Return where a value lies, in the units of the drawing."""
        if self.log:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM) if self.upright else LEFT + part * _across()

    def ticks(self) -> list[float]:
        """Return the round values that get a grid line."""
        if self.log:
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = [step * 10.0**exponent for exponent in exponents for step in (1, 2, 5)]
            inside = [value for value in found if self.low <= value <= self.high]
            return inside if len(inside) <= _TICKS + 2 else [v for v in inside if _leading(v) == 1]
        least = (self.high - self.low) / _TICKS
        step = _round_step(max(1.0, least), (1, 2, 5, 10)) if self.whole else _round_step(least)
        first = math.ceil(self.low / step - 1e-9)
        return [step * index for index in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def label(self, value: float) -> str:
        """Write a tick: in the metric's unit, without the digits that round steps do not have."""
        if self.whole:
            return str(round(value))
        said = text.metric(self.metric, value)
        if "." in said and said.replace(".", "").replace("-", "").isdigit():
            said = f"{value:.{_LONGEST - 3}f}".rstrip("0").rstrip(".")
            said = "0" if said in {"-0", ""} else said
        return said


def frame(x: Axis, y: Axis, *, x_title: str, y_title: str) -> list[str]:
    """Return the grid, the ticks' labels and the titles of both axes."""
    parts = []
    for value in y.ticks():
        at = y.place(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(_text(LEFT - 8, at + 4, y.label(value), "tick", "end"))
    for value in x.ticks():
        at = x.place(value)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(_text(at, HEIGHT - BOTTOM + 18, x.label(value), "tick", "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x_title, "axis", "middle"))
    parts.append(_text(8, 16, y_title, "axis", "start"))
    return parts


def dashed(axis: Axis, value: float, label: str) -> list[str]:
    """Return a dashed line across the plot at a bound, with its label inside of the frame."""
    at = axis.place(value)
    if axis.upright:
        line = f'<line class="bound" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        above = at - 6 if at - 6 > TOP + 8 else at + 14
        return [line, _text(WIDTH - RIGHT - 4, above, label, "bound-label", "end")]
    line = f'<line class="bound" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
    # along the line, where it is in nobody's way
    place = f'transform="translate({at - 5:.1f} {HEIGHT - BOTTOM - 8}) rotate(-90)"'
    return [line, f'<text class="bound-label" {place}>{escape(label)}</text>']


def text_width(label: str) -> float:
    """Return about how wide a label of 11 pixels is."""
    return 6.1 * len(label)


def opening(label: str) -> str:
    """Return the opening tag of a plot."""
    return f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'


def _text(x: float, y: float, said: str, style: str, anchor: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(said)}</text>'


def _across() -> float:
    return WIDTH - LEFT - RIGHT


def _leading(value: float) -> int:
    return round(value / 10.0 ** math.floor(math.log10(value) + 1e-9))


def _round_step(least: float, steps: Sequence[float] = (1, 2, 2.5, 5, 10)) -> float:
    """Return the smallest of ``steps`` times a power of ten that is not below ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in steps if step * power >= least * (1 - 1e-9))
