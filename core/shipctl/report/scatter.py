"""Plots of variants: the front between two numbers, and accuracy over how many layers are quantised."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any, NamedTuple

from shipctl.report import text
from shipctl.report.axes import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    dashed,
    frame,
    opening,
    text_width,
)
from shipctl.report.data import Pareto

_FAR = 6.0
"""A bound further from the points than so many times the room that they take is told, not drawn."""
_GAP = 4
"""Between labels that stand side by side."""
_AROUND = (
    (0, -13), (13, 4), (-13, 4), (0, 21), (12, -10), (-12, -10), (12, 17), (-12, 17),
    (0, -25), (24, 4), (-24, 4), (0, 33), (22, -18), (-22, -18), (22, 25), (-22, 25),
)  # fmt: skip
"""Where the number of a point may stand, from its middle, the best place first."""


class Point(NamedTuple):
    """A variant in the legend of a front."""

    number: int
    name: str
    style: str
    said: str
    """Its numbers, and what is to be known of them."""


class Box(NamedTuple):
    """What a label takes of the drawing."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Whether the two overlap."""
        apart = self.right <= other.left or other.right <= self.left
        return not (apart or self.bottom <= other.top or other.bottom <= self.top)


def pareto_plot(front: Pareto) -> tuple[str, list[Point], str]:
    """Draw candidates by the objective (across) and by what it is weighed against (up).

    The front is a line, bounds are dashed, the chosen one is green; hollow ones were measured in part. Each
    has a number, which the returned legend explains. Returns the ``<svg>`` element, the legend and a sentence about
    bounds that are too far away to be drawn; empty if there is nothing to draw.
    """
    points = [item for item in front.points if math.isfinite(item.x) and math.isfinite(item.y)]
    if not points:
        return "", [], ""
    shown_x, far_x = _near(front.x_bounds, [item.x for item in points])
    shown_y, far_y = _near(front.y_bounds, [item.y for item in points])
    x = Axis.over(front.x, [*(item.x for item in points), *(value for value, _ in shown_x)])
    y = Axis.over(front.y, [*(item.y for item in points), *(value for value, _ in shown_y)], upright=True)
    parts = [
        opening(f"{front.y} against {front.x}"),
        *frame(
            x,
            y,
            x_title=f"{front.x}, {_better(front.x_direction)}",
            y_title=f"{front.y}, {_better(front.y_direction)}",
        ),
    ]
    for axis, bounds in ((x, shown_x), (y, shown_y)):
        for value, label in bounds:
            parts += dashed(axis, value, label)
    best = sorted((x.place(item.x), y.place(item.y)) for item in points if item.on_front)
    if len(best) > 1:
        parts.append(f'<polyline class="front" points="{_path(best)}"/>')
    places = [(x.place(item.x), y.place(item.y)) for item in points]
    legend = []
    for number, (item, (px, py)) in enumerate(zip(points, places, strict=True), start=1):
        style = "chosen" if item.chosen else "on-front" if item.on_front else "behind"
        numbers = f"{text.metric(front.x, item.x)}, {front.y} {text.metric(front.y, item.y)}"
        part = f", from 1/{1 / item.share:.3g} of the measurement" if 0 < item.share < 1 else ""
        name = item.node or item.name
        hollow = " hollow" if part else ""
        parts.append(
            f'<circle class="variant {style}{hollow}" cx="{px:.1f}" cy="{py:.1f}" r="{7 if item.chosen else 5.5}">'
            f"<title>{escape(f'{name}: {numbers}{part}')}</title></circle>"
        )
        legend.append(Point(number, name, style, f"{numbers}{part}"))
    parts += _numbers(places, legend)
    parts.append("</svg>")
    far = [f"{label} ({text.metric(front.x, value)})" for value, label in far_x]
    far += [f"{label} ({text.metric(front.y, value)})" for value, label in far_y]
    return "".join(parts), legend, f"not shown, far away: {', '.join(far)}" if far else ""


def curve_plot(rows: Sequence[Mapping[str, Any]], search: Mapping[str, Any]) -> str:
    """Draw a metric over the number of quantised layers; empty text if there is nothing to draw.

    ``rows`` have `quantized`, `accuracy` and `drop`; the line joins the best of each number. ``search`` may say which
    `metric` it is, what it was `before`, and the `budget` of its drop: a fraction of that for `rmse` and `mae`.
    """
    points = [
        (float(row["quantized"]), float(row["accuracy"]))
        for row in rows
        if _is_number(row.get("quantized")) and _is_number(row.get("accuracy"))
    ]
    if len(points) < 2:  # noqa: PLR2004  (a line has two ends)
        return ""
    metric = str(search.get("metric") or "accuracy")
    low_is_good = metric in {"rmse", "mae"}
    bounds: list[tuple[float, str]] = []
    before, budget = (search.get(name) for name in ("before", "budget"))
    if before is not None and budget is not None and _is_number(before) and _is_number(budget):
        limit = float(before) * (1 + float(budget)) if low_is_good else float(before) - float(budget)
        bounds = [(limit, f"budget {text.number(limit)}")]
    x = Axis.over("layers", [place for place, _ in points], whole=True)
    y = Axis.over(metric, [*(value for _, value in points), *(value for value, _ in bounds)], upright=True)
    best: dict[float, float] = {}
    for count, value in points:
        kept = best.setdefault(count, value)
        best[count] = min(kept, value) if low_is_good else max(kept, value)
    line = [(x.place(count), y.place(value)) for count, value in sorted(best.items())]
    parts = [
        opening(f"{metric} by number of quantised layers"),
        *frame(x, y, x_title="quantised layers", y_title=metric),
    ]
    for value, label in bounds:
        parts += dashed(y, value, label)
    parts.append(f'<polyline class="line c0" points="{_path(line)}"/>')
    for count, value in sorted(set(points)):
        said = f"{count:g} layers quantised: {metric} {text.metric(metric, value)}"
        parts.append(
            f'<circle class="dot c0" cx="{x.place(count):.1f}" cy="{y.place(value):.1f}" r="4">'
            f"<title>{escape(said)}</title></circle>"
        )
    return "".join([*parts, "</svg>"])


def _numbers(places: Sequence[tuple[float, float]], legend: Sequence[Point]) -> list[str]:
    """Write the number of each point where it covers neither points nor other numbers, as far as there is room."""
    taken = [Box(px - 7, py - 7, px + 7, py + 7) for px, py in places]
    parts = []
    for point, (px, py) in zip(legend, places, strict=True):
        said = str(point.number)
        box, anchor = _free(px, py, said, taken)
        if box is None:
            continue  # in a crowd; the title of its circle says which it is
        taken.append(Box(box.left - _GAP, box.top, box.right + _GAP, box.bottom))
        at = {"start": box.left, "end": box.right}.get(anchor, (box.left + box.right) / 2)
        style = "point-label chosen" if point.style == "chosen" else "point-label"
        parts.append(
            f'<text class="{style}" x="{at:.1f}" y="{box.bottom - 3:.1f}" text-anchor="{anchor}">{escape(said)}</text>'
        )
    return parts


def _free(px: float, py: float, said: str, taken: Sequence[Box]) -> tuple[Box | None, str]:
    """Return the first free place for a label around a point, and how it is anchored."""
    width = text_width(said)
    for right, down in _AROUND:
        anchor = "middle" if right == 0 else "start" if right > 0 else "end"
        left = px + right - (width / 2 if right == 0 else 0 if right > 0 else width)
        box = Box(left, py + down - 10, left + width, py + down + 3)
        inside = box.left >= LEFT and box.right <= WIDTH - RIGHT
        if inside and box.top >= TOP and box.bottom <= HEIGHT - BOTTOM and not any(map(box.meets, taken)):
            return box, anchor
    return None, "middle"


def _near(
    bounds: Iterable[tuple[float, str]], values: Sequence[float]
) -> tuple[list[tuple[float, str]], list[tuple[float, str]]]:
    """Return the bounds that can be drawn without pressing the points together, and the others."""
    low, high = min(values), max(values)
    room = _FAR * max(high - low, abs(high) * 0.2)
    bounds = list(bounds)
    # with all points at one number any bound near zero is close enough to see
    near = [item for item in bounds if low - room <= item[0] <= high + room or low == high == 0]
    return near, [item for item in bounds if item not in near]


def _path(points: Sequence[tuple[float, float]]) -> str:
    """Return the points of a line, each once."""
    kept = [points[0], *(after for before, after in pairwise(points) if after != before)]
    return " ".join(f"{px:.1f},{py:.1f}" for px, py in kept)


def _better(direction: str) -> str:
    return "more is better" if direction == "maximize" else "less is better"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
