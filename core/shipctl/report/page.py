"""Renders a run's data as one HTML page that needs nothing else: no script, no font, no network."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from shipctl.report import text
from shipctl.report.data import RunReport, Selection
from shipctl.report.plot import COLOURS, Curve, is_near, latency_plot
from shipctl.report.scatter import Point, curve_plot, pareto_plot
from shipctl.templates import environment

_BOUND_PREFIX = "latency.p"
_SCALARS = (str, int, float, bool)


@dataclass(frozen=True)
class Figure:
    """A plot with its caption and legend."""

    title: str
    svg: str
    legend: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Front:
    """The plot of a selection."""

    svg: str
    legend: tuple[Point, ...]
    note: str


@dataclass(frozen=True)
class Table:
    """Rows of a report's details."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass
class Details:
    """A report's details, sorted by how they are shown."""

    facts: dict[str, str] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    matrices: dict[str, list[list[float]]] = field(default_factory=dict)
    curve: str = ""
    """A plot of accuracy over quantised layers, as SVG."""


def render_page(report: RunReport, version: str) -> str:
    """Return the HTML of a run's page; ``version`` is shipctl's."""
    template = environment("report", html=True).get_template("run.html.j2")
    measured = [(item, details_of(item.details)) for item in report.measurements]
    return template.render(
        report=report,
        figures=latency_figures(report),
        fronts=[_front(selection) for selection in report.selections],
        measured=measured,
        statuses=Counter(stage.status for stage in report.stages),
        outcomes=Counter(str(line.verdict.outcome) for line in report.gates),
        gates=sorted(report.gates, key=lambda line: -line.verdict.outcome.badness),
        bars=timeline(report),
        peak=max((stage.peak_memory or 0 for stage in report.stages), default=0),
        say=partial(_with_nodes, report),
        state=_state(report),
        text=text,
        version=version,
    )


def _front(selection: Selection) -> Front | None:
    if selection.pareto is None:
        return None
    svg, legend, note = pareto_plot(selection.pareto)
    return Front(svg, tuple(legend), note) if svg else None


def latency_figures(report: RunReport) -> list[Figure]:
    """Return a plot per configuration that several models were measured in, else one plot of all configurations.

    Bounds hold for the headline configuration of a benchmark, so they are drawn in its plot only.
    """
    by_setting: dict[str, list[Curve]] = defaultdict(list)
    headlines: set[str] = set()
    subjects: set[str] = set()
    for item in report.measurements:
        headlines.add(_setting(item.details.get("headline") or {}))
        for row in item.details.get("configurations", ()):
            points = _points(row.get("curve"))
            if points:
                subjects.add(item.subject)
                by_setting[_setting(row)].append(Curve(item.subject_node or text.short(item.subject), points))
    if len(subjects) == 1:
        title = f"latency of {next(iter(by_setting.values()))[0].label}"
        curves = [Curve(setting, found[0].points) for setting, found in by_setting.items()]
        return _figure(report, title, curves, bounded=True)
    return [
        figure
        for setting, curves in by_setting.items()
        for figure in _figure(report, setting, curves, bounded=setting in headlines)
    ]


def _setting(row: Mapping[str, Any]) -> str:
    return f"batch {row.get('batch')}, {text.plural(int(row.get('threads', 1)), 'thread')}"


def _figure(report: RunReport, title: str, curves: Sequence[Curve], *, bounded: bool) -> list[Figure]:
    bounds, note = _bounds(report, curves) if bounded else ([], "")
    svg = latency_plot(curves, bounds)
    return [Figure(title, svg, tuple(curve.label for curve in curves[:COLOURS]), note)] if svg else []


def _points(curve: Any) -> tuple[tuple[float, float], ...]:
    if not isinstance(curve, list):
        return ()
    found = [(float(percent), float(seconds)) for percent, seconds in curve]
    return tuple((percent, seconds) for percent, seconds in found if 0 < percent < 100 and seconds > 0)  # noqa: PLR2004


def _bounds(report: RunReport, curves: Sequence[Curve]) -> tuple[list[tuple[float, float, str]], str]:
    """Return the latency bounds of the gates, and a sentence about those that lie far above the plot."""
    asked = {
        (line.verdict.metric, line.verdict.bound)
        for line in report.gates
        if line.verdict.metric
        and line.verdict.metric.startswith(_BOUND_PREFIX)
        and line.verdict.bound is not None
    }
    bounds: list[tuple[float, float, str]] = []
    for metric, bound in sorted(asked, key=str):
        percent = (metric or "").removeprefix(_BOUND_PREFIX)
        if percent.replace(".", "").isdigit() and bound is not None:
            bounds.append((float(percent), bound, f"p{percent} bound {text.duration(bound)}"))
    far = [label for _, bound, label in bounds if not is_near(bound, curves)]
    return bounds, f"not shown, far above: {', '.join(far)}" if far else ""


def details_of(details: Mapping[str, Any]) -> Details:
    """Sort a report's details: lists of records become tables, lists of rows of numbers matrices, the rest facts."""
    shown = Details()
    for key, value in details.items():
        title = key.replace("_", " ")
        if isinstance(value, Mapping):
            shown.facts |= {
                f"{title}: {name}": _cell(name, item)
                for name, item in value.items()
                if isinstance(item, _SCALARS)
            }
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            shown.tables.append(_table(title, [_flat(row) for row in value]))
            if key == "curve":
                search = details.get("search")
                shown.curve = curve_plot(value, search if isinstance(search, Mapping) else {})
        elif isinstance(value, list) and value and all(isinstance(row, list) and row for row in value):
            if all(isinstance(number, int | float) for row in value for number in row):
                shown.matrices[title] = value
        elif isinstance(value, list):
            shown.facts[title] = ", ".join(map(str, value))
        elif value is not None:
            shown.facts[title] = _cell(key, value)
    return shown


def _flat(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Spread the latencies of a benchmark's configuration over columns whose names say their unit."""
    percentiles = row.get("percentiles")
    if not isinstance(percentiles, list):
        return row
    spread = {f"latency p{item['percent']:g}": item["seconds"] for item in percentiles}
    return {
        **{key: value for key, value in row.items() if key != "mean"},
        **({"latency mean": row["mean"]} if "mean" in row else {}),
        **spread,
    }


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = list(
        dict.fromkeys(key for row in rows for key, value in row.items() if isinstance(value, _SCALARS))
    )
    cells = tuple(tuple(_cell(key, row.get(key)) for key in columns) for row in rows)
    return Table(title, tuple(column.replace("_", " ") for column in columns), cells)


def _cell(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return text.metric(name, value)
    if isinstance(value, list | dict) or value is None:
        return ""
    shown = str(value)
    return text.short(shown) if len(shown) == 64 and shown.isalnum() else shown  # noqa: PLR2004  (a digest)


def timeline(report: RunReport) -> dict[str, tuple[float, float]]:
    """Return, per node that ran, where its bar begins and how long it is, in percent of the run."""
    begun = report.run.started
    ends = [stage.started + stage.seconds for stage in report.stages if stage.started and stage.seconds]
    whole = max([report.run.finished or begun, *ends]) - begun
    if whole <= 0:
        return {}
    return {
        stage.node: (max(0.0, (stage.started - begun) / whole * 100), max(0.4, stage.seconds / whole * 100))
        for stage in report.stages
        if stage.started and stage.seconds
    }


def _state(report: RunReport) -> tuple[str, str]:
    """Return the badge of the run: a style and a word."""
    if report.run.exit_code is None:
        return ("warn", "unfinished")
    if report.run.exit_code == 0:
        return ("good", "succeeded")
    words = {4: "stopped by a gate", 6: "waiting", 7: "rolled back", 130: "interrupted"}
    return ("warn" if report.run.exit_code in {6, 130} else "bad", words.get(report.run.exit_code, "failed"))


def _with_nodes(report: RunReport, sentence: str) -> str:
    """Put the nodes' names where a selection calls its candidates by digest."""
    for selection in report.selections:
        for candidate in selection.candidates:
            if candidate.node:
                sentence = sentence.replace(candidate.name, candidate.node)
    return sentence
