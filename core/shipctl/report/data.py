"""The data of the report page, which is also what `shipctl report --json` prints."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from shipctl.records import Record
from shipctl.stages.verdicts import Outcome, Verdict


class RunLine(Record):
    """The run itself. Times are seconds since the epoch."""

    id: str = Field(description="The run's id.")
    pipeline: str = Field(description="metadata.name.")
    version: str = Field(description="metadata.version.")
    spec: str = Field(description="The spec's file.")
    command: str = Field(description="The command that started it.")
    user: str = Field(description="Who started it.")
    host: str = Field(description="Where it ran.")
    plan: str = Field(description="Digest of the plan that it carried out.")
    started: float = Field(description="When it began.")
    finished: float | None = Field(description="When it ended; None while it runs, or after it was killed.")
    exit_code: int | None = Field(description="None while it runs, or after it was killed.")
    message: str = Field(description="One line for a person.")


class StageLine(Record):
    """One node of the run."""

    node: str = Field(description="The stage's id, with its variant in brackets.")
    uses: str = Field(description="The stage plugin's name.")
    status: str = Field(description="How it ended.")
    message: str = Field(description="Why it failed, was skipped or blocked.")
    reasons: tuple[str, ...] = Field(description="Why it ran.")
    attempt: int = Field(description="1, and more after retries.")
    started: float | None = Field(description="Seconds since the epoch.")
    seconds: float | None = Field(description="Wall time in this run.")
    made_in: float | None = Field(description="Wall time of the run that made its outputs, for a cached one.")
    peak_memory: int | None = Field(description="Highest resident memory of its worker, in bytes.")
    fingerprint: str | None = Field(description="Its fingerprint.")
    gates: int = Field(description="How many gates it has.")
    outcome: Outcome | None = Field(description="The worst of its gates' outcomes.")


class GateLine(Record):
    """The answer of one gate."""

    node: str = Field(description="The node that has the gate.")
    verdict: Verdict = Field(description="The verdict.")


class Measurement(Record):
    """A report that a stage made."""

    node: str = Field(description="The node that made it.")
    uses: str = Field(description="Its plugin.")
    title: str = Field(description="What was measured.")
    subject: str = Field(description="Digest of the artifact that was measured.")
    subject_node: str | None = Field(description="The node that made that artifact, where it is in this run.")
    digest: str = Field(description="The report's digest.")
    metrics: dict[str, float] = Field(description="Named numbers in base units.")
    details: dict[str, Any] = Field(description="Tables and series.")


class ArtifactLine(Record):
    """An artifact that a stage made."""

    node: str = Field(description="The node that made it.")
    output: str = Field(description="The output's name.")
    kind: str = Field(description="What it is.")
    digest: str = Field(description="Its digest.")
    size: int = Field(description="Bytes in all files together.")
    files: int = Field(description="How many files it has.")
    facts: dict[str, str] = Field(description="What its manifest says beside files: opset, precision, ….")


class Candidate(Record):
    """One variant that a selection looked at."""

    name: str = Field(description="What the selecting stage calls it.")
    node: str | None = Field(description="The node that made it, where it is in this run.")
    digest: str = Field(description="Its digest.")
    chosen: bool = Field(description="Whether it was taken.")
    reason: str = Field(description="Why it was taken or dropped.")
    values: dict[str, float] = Field(description="The numbers that it was compared by.")
    share: float = Field(
        default=1.0, description="The part of the full measurement that they are from; 0 if it was not tried."
    )


class ParetoPoint(Record):
    """A candidate by two numbers."""

    name: str = Field(description="What the selecting stage calls it.")
    node: str | None = Field(description="The node that made it, where it is in this run.")
    x: float = Field(description="By the objective.")
    y: float = Field(description="By what it is weighed against.")
    on_front: bool = Field(
        description="Whether no other one is better in one number and not worse in the other."
    )
    chosen: bool = Field(description="Whether it was taken.")
    share: float = Field(
        default=1.0, description="The part of the full measurement that the numbers are from."
    )


class Pareto(Record):
    """Candidates by the objective and by what it is weighed against."""

    x: str = Field(description="The objective's metric.")
    x_direction: str = Field(description="`minimize` or `maximize`.")
    x_bounds: tuple[tuple[float, str], ...] = Field(description="Its bounds, with their text.")
    y: str = Field(description="The other metric: accuracy or its drop, or size.")
    y_direction: str = Field(description="`minimize` or `maximize`.")
    y_bounds: tuple[tuple[float, str], ...] = Field(description="Its bounds, with their text.")
    points: tuple[ParetoPoint, ...] = Field(description="The candidates that have both numbers.")


class NotTried(Record):
    """A candidate that was not even made."""

    node: str = Field(description="The node that would have made it, or looked at it.")
    reason: str = Field(description="Why not.")


class Selection(Record):
    """What a `select` stage chose among, and why."""

    node: str = Field(description="The selecting node.")
    objective: str = Field(description="What was optimised, and which way.")
    subject_to: tuple[str, ...] = Field(description="What a candidate had to fulfil.")
    candidates: tuple[Candidate, ...] = Field(description="All variants, the chosen one first.")
    not_tried: tuple[NotTried, ...] = Field(default=(), description="What the budget left out.")
    pareto: Pareto | None = Field(
        default=None, description="The front between the objective and accuracy or size."
    )


class ReleaseStep(Record):
    """A step of a release."""

    node: str = Field(description="The release stage.")
    target: str = Field(description="Where it was released to.")
    revision: str = Field(description="What was released.")
    phase: str = Field(description="Where it stood then.")
    message: str = Field(description="One line for a person.")
    time: float = Field(description="Seconds since the epoch.")


class RunReport(Record):
    """Everything about one run."""

    run: RunLine = Field(description="The run.")
    stages: tuple[StageLine, ...] = Field(description="Its nodes in the order in which they were begun.")
    gates: tuple[GateLine, ...] = Field(description="All verdicts in order.")
    measurements: tuple[Measurement, ...] = Field(description="All reports of its stages.")
    selections: tuple[Selection, ...] = Field(description="What was chosen, what was dropped and why.")
    artifacts: tuple[ArtifactLine, ...] = Field(description="What its stages made, reports left out.")
    steps: tuple[ReleaseStep, ...] = Field(description="Steps of its releases in order.")
