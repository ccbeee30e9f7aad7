"""The delivery checklist: what a release should have, line by line, each decided by evidence in the package.

A line without evidence is failed. One does not apply only where a fact says so (a model that computes in floating
point was not calibrated). A person may waive a failed line under their name and with a reason; it then says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from shipctl.records import Record
from shipctl.stages.artifacts import Report
from shipctl.stages.verdicts import Outcome, Verdict, compare
from shipctl_plugins.package._checks import CHECKS
from shipctl_plugins.package._facts import TITLES, CheckId, Facts, Status

METRICS = ("checklist.*",)
_STATUSES: tuple[Status, ...] = ("passed", "failed", "not-applicable", "waived")


class Evidence(Record):
    """A file of the package that a line was decided on."""

    path: str = Field(description="Its path in the package.")
    sha256: str | None = Field(
        default=None, description="Its digest; none for a file that is written after the checklist."
    )


class Line(Record):
    """One line of the checklist."""

    id: CheckId = Field(description="Its name in `require` and `waive`.")
    title: str = Field(description="What was asked.")
    status: Status = Field(description="What came of it.")
    evidence: tuple[Evidence, ...] = Field(default=(), description="What it was decided on.")
    reason: str = Field(description="Why, in one line.")
    by: str | None = Field(default=None, description="Who waived it.")


class Waiver(Record):
    """A line that a person lets pass without its evidence."""

    check: CheckId = Field(description="The line.")
    by: str = Field(min_length=1, description="Who takes the responsibility.")
    reason: str = Field(min_length=1, description="Why the line need not hold.")


def checklist(facts: Facts, waivers: Sequence[Waiver]) -> tuple[Line, ...]:
    """Decide every line."""
    waived = {item.check: item for item in waivers}
    lines = []
    for name, title in TITLES.items():
        found = CHECKS[name](facts)
        evidence = tuple(Evidence(path=path, sha256=facts.files.get(path)) for path in found.evidence)
        line = Line(id=name, title=title, status=found.status, evidence=evidence, reason=found.reason)
        waiver = waived.get(name)
        if waiver is not None and line.status == "failed":
            reason = f"{waiver.reason} (found: {found.reason})"
            line = line.model_copy(update={"status": "waived", "by": waiver.by, "reason": reason})
        lines.append(line)
    return tuple(lines)


def counts(lines: Sequence[Line]) -> dict[str, int]:
    """Return status to number of lines."""
    counted = Counter(line.status for line in lines)
    return {status: counted[status] for status in _STATUSES}


def metrics(lines: Sequence[Line]) -> dict[str, float]:
    """Return 1 for every line with which nothing is left to do and 0 for every failed one, and the counts."""
    found = {f"checklist.{line.id}": float(line.status != "failed") for line in lines}
    return found | {f"checklist.count.{status}": float(count) for status, count in counts(lines).items()}


def as_json(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Return the lines as JSON."""
    return [line.model_dump(mode="json") for line in lines]


def judge(report: Report, required: Sequence[CheckId]) -> Sequence[Verdict]:
    """Give a verdict for every line that has to be settled."""
    listed = report.details.get("lines")
    rows = (
        {row.get("id"): row for row in listed if isinstance(row, Mapping)} if isinstance(listed, list) else {}
    )
    return [_verdict(name, rows.get(name), report) for name in dict.fromkeys(required)]


def _verdict(name: CheckId, row: Mapping[str, Any] | None, report: Report) -> Verdict:
    metric = f"checklist.{name}"
    verdict = compare(
        metric, report.metrics.get(metric), "==", 1.0, subject=report.subject, source=report.digest
    )
    status, reason = (row.get("status"), row.get("reason")) if row is not None else (None, None)
    if verdict.outcome is Outcome.PASS and status in {"passed", "not-applicable", "waived"}:
        by = f" by {row['by']}" if row is not None and row.get("by") else ""
        return verdict.model_copy(update={"message": f"{TITLES[name]}: {status}{by}: {reason}"})
    if verdict.outcome is Outcome.PASS or status == "failed":
        waive = f"`waive: [{{check: {name}, by: NAME, reason: WHY}}]`"
        message = f"{TITLES[name]}: {reason or 'the report does not say'}; or let a person answer for it with {waive}"
        outcome = verdict.outcome if verdict.outcome is Outcome.ERROR else Outcome.FAIL
        return verdict.model_copy(update={"outcome": outcome, "message": message})
    return verdict
