"""Collects the data of a run's page from the journal and the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from shipctl.engine.journal import Journal, RunRow, StageRow
from shipctl.engine.project import Project
from shipctl.engine.trials import NOT_TRIED
from shipctl.errors import SpecError
from shipctl.records import digest_of
from shipctl.report.data import (
    ArtifactLine,
    Candidate,
    GateLine,
    Measurement,
    NotTried,
    Pareto,
    ReleaseStep,
    RunLine,
    RunReport,
    Selection,
    StageLine,
)  # fmt: skip
from shipctl.stages.artifacts import Report
from shipctl.stages.verdicts import Verdict, worst
from shipctl.store.local import LocalStore, Result

_NOT_FACTS = {"kind", "files", "signature", "derived_from", "source"}
"""Fields of a manifest that the page shows elsewhere, or that are digests."""


def build_report(project: Project, run: str | None = None) -> RunReport:
    """Return everything that is known about a run: the latest one, or the one whose id begins with ``run``.

    :raises SpecError: if there is no such run, or several
    """
    if not project.journal.exists():
        message = f"nothing has run in {project.root} yet; begin with `shipctl apply SPEC`"
        raise SpecError(message)
    with Journal(project.journal) as journal:
        row = _find(journal, run)
        rows = journal.stages(row.id)
        verdicts = journal.verdicts(row.id)
        steps = journal.steps(row.id)
    store = LocalStore(project.store)
    results = {item.node: found for item in rows if (found := _result(store, item)) is not None}
    makers = {digest: node for node, _, manifest in _manifests(results) if (digest := digest_of(manifest))}
    measurements = tuple(_measurements(rows, results, makers))
    return RunReport(
        run=RunLine(**{**row._asdict(), "message": row.message or ""}),
        stages=tuple(_stage(item, results.get(item.node), verdicts) for item in rows),
        gates=tuple(GateLine(node=node, verdict=verdict) for node, verdict in verdicts),
        measurements=measurements,
        selections=tuple(_selections(measurements, makers, rows)),
        artifacts=tuple(_artifacts(results)),
        steps=tuple(
            ReleaseStep(**{name: getattr(step, name) for name in ReleaseStep.model_fields}) for step in steps
        ),
    )


def _find(journal: Journal, run: str | None) -> RunRow:
    rows = journal.runs(limit=1 if run is None else 10_000)
    found = [row for row in rows if run is None or row.id == run] or [
        row for row in rows if row.id.startswith(run or "")
    ]
    if len(found) == 1:
        return found[0]
    if not found:
        message = f"no run {run!r} is in the journal" if run else "no run is in the journal"
        raise SpecError(f"{message}; `shipctl history` lists them")
    message = (
        f"{len(found)} runs begin with {run!r}: {', '.join(row.id for row in found[:5])}; write more of it"
    )
    raise SpecError(message)


def _result(store: LocalStore, row: StageRow) -> Result | None:
    return store.load_result(row.fingerprint) if row.fingerprint else None


def _stage(row: StageRow, result: Result | None, verdicts: list[tuple[str, Verdict]]) -> StageLine:
    outcomes = [verdict.outcome for node, verdict in verdicts if node == row.node]
    return StageLine(
        node=row.node,
        uses=row.uses,
        status=row.status,
        message=row.message or "",
        reasons=tuple(row.reasons or ()),
        attempt=row.attempt or 1,
        started=row.started,
        seconds=row.seconds,
        made_in=result.seconds if result is not None and row.status == "cached" else None,
        peak_memory=row.peak_memory
        if row.peak_memory is not None
        else result.peak_memory
        if result
        else None,
        fingerprint=row.fingerprint,
        gates=len(outcomes),
        outcome=worst(outcomes) if outcomes else None,
    )


def _manifests(results: Mapping[str, Result]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for node, result in results.items():
        for name, manifest in result.outputs.items():
            if name not in result.passed:
                yield node, name, manifest


def _measurements(
    rows: list[StageRow], results: Mapping[str, Result], makers: Mapping[str, str]
) -> Iterator[Measurement]:
    uses = {row.node: row.uses for row in rows}
    for node, _, manifest in _manifests(results):
        if manifest.get("kind") != Report.kind:
            continue
        report = Report.model_validate({key: value for key, value in manifest.items() if key != "kind"})
        yield Measurement(
            node=node,
            uses=uses[node],
            title=report.title,
            subject=report.subject,
            subject_node=makers.get(report.subject),
            digest=report.digest,
            metrics=report.metrics,
            details=report.details,
        )


def _artifacts(results: Mapping[str, Result]) -> Iterator[ArtifactLine]:
    for node, name, manifest in _manifests(results):
        if manifest.get("kind") == Report.kind:
            continue
        files = manifest.get("files", ())
        yield ArtifactLine(
            node=node,
            output=name,
            kind=str(manifest.get("kind")),
            digest=digest_of(manifest),
            size=sum(entry["size"] for entry in files),
            files=len(files),
            facts={
                key: str(value)
                for key, value in manifest.items()
                if key not in _NOT_FACTS and isinstance(value, str | int | float)
            },
        )


def _selections(
    measurements: tuple[Measurement, ...], makers: Mapping[str, str], rows: list[StageRow]
) -> Iterator[Selection]:
    """Read the reports that have `candidates` in their details, as `select` and `search` write them."""
    for item in measurements:
        candidates = item.details.get("candidates")
        if not isinstance(candidates, list):
            continue
        found = [_candidate(entry, makers) for entry in candidates if isinstance(entry, dict)]
        yield Selection(
            node=item.node,
            objective=f"{item.details.get('direction', '')} {item.details.get('objective', '')}".strip(),
            subject_to=tuple(map(str, item.details.get("subject_to", ()))),
            candidates=tuple(sorted(found, key=lambda entry: not entry.chosen)),
            not_tried=tuple(
                NotTried(node=row.node, reason=(row.message or "").removeprefix(NOT_TRIED))
                for row in rows
                if row.status == "skipped" and (row.message or "").startswith(f"{NOT_TRIED}{item.node} ")
            ),
            pareto=_pareto(item.details, makers),
        )


def _pareto(details: Mapping[str, Any], makers: Mapping[str, str]) -> Pareto | None:
    """Read the front of a choice; None where there is none, or another plugin means something else by the word."""
    try:
        axes, rows = details["pareto_axes"], details["pareto"]
        values: dict[str, Any] = {
            "points": [
                {"node": makers.get(row["digest"]), **{key: row[key] for key in row if key != "digest"}}
                for row in rows
            ]
        }
        for name in ("x", "y"):
            values |= {
                name: axes[name]["metric"],
                f"{name}_direction": axes[name]["direction"],
                f"{name}_bounds": [(bound["value"], bound["text"]) for bound in axes[name]["bounds"]],
            }
        return Pareto.model_validate(values)
    except (KeyError, TypeError, AttributeError, ValidationError):
        return None


def _candidate(entry: Mapping[str, Any], makers: Mapping[str, str]) -> Candidate:
    digest = str(entry.get("digest", ""))
    return Candidate(
        name=str(entry.get("name", "")),
        node=makers.get(digest),
        digest=digest,
        chosen=entry.get("chosen") is True,
        reason=str(entry.get("reason", "")),
        values={str(key): float(value) for key, value in dict(entry.get("values") or {}).items()},
        share=float(entry.get("share", 1.0)),
    )
