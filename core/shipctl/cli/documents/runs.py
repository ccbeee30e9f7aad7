"""Documents about specs, plans, runs and what targets serve."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shipctl.cli.documents.base import Document, named
from shipctl.records import Record
from shipctl.report.data import RunReport
from shipctl.stages.base import Serving
from shipctl.stages.events import PlannedNode, Status


class ErrorDocument(Document):
    """What is printed instead when a command fails."""

    document: Literal["shipctl.error/1"] = named("shipctl.error/1")
    exit_code: int = Field(description="What the process exits with.")
    message: str = Field(description="The same text that stands on stderr.")


class SpecCheck(Record):
    """What is wrong with one spec."""

    path: str = Field(description="The spec, as it was given.")
    valid: bool = Field(description="Whether nothing is wrong.")
    message: str = Field(
        default="", description="Every problem with its place and excerpt, as a person sees it."
    )
    problems: tuple[SpecProblem, ...] = Field(default=(), description="Every problem by itself.")


class SpecProblem(Record):
    """One thing that is wrong with a spec."""

    file: str = Field(description="The file, or the command-line option that a value came from.")
    line: int = Field(description="From 1; 0 where it is no place in a file.")
    column: int = Field(description="From 1; 0 where it is no place in a file.")
    message: str = Field(description="What is wrong, and what to do.")


class ValidateDocument(Document):
    """`shipctl validate --json`."""

    document: Literal["shipctl.validate/1"] = named("shipctl.validate/1")
    valid: bool = Field(description="Whether all specs are.")
    specs: tuple[SpecCheck, ...] = Field(description="The specs in the order in which they were given.")


class PlanDocument(Document):
    """`shipctl plan --json`."""

    document: Literal["shipctl.plan/1"] = named("shipctl.plan/1")
    pipeline: str = Field(description="metadata.name.")
    version: str = Field(description="metadata.version.")
    digest: str = Field(description="The plan's digest.")
    nodes: tuple[PlannedNode, ...] = Field(description="All nodes in the order in which they can run.")
    counts: dict[str, int] = Field(description="Number of nodes by action.")
    file: str | None = Field(default=None, description="The plan file that was written.")


class RunDocument(Document):
    """`shipctl apply --json`, `rollback --json`, `down --json`."""

    document: Literal["shipctl.run/1"] = named("shipctl.run/1")
    run: str = Field(description="The run's id, for `shipctl report`.")
    exit_code: int = Field(description="What the process exits with.")
    message: str = Field(description="One line for a person.")
    statuses: dict[str, Status] = Field(description="Node to how it ended.")
    warnings: tuple[str, ...] = Field(default=(), description="What did not keep it from going on.")


class WatchDocument(Document):
    """`shipctl watch --json`."""

    document: Literal["shipctl.watch/1"] = named("shipctl.watch/1")
    exit_code: int = Field(description="What the process exits with.")
    message: str = Field(description="One line for a person.")
    runs: tuple[str, ...] = Field(description="The ids of the runs that it was, for `shipctl report`.")


class TargetLine(Record):
    """What one release stage's target serves."""

    stage: str = Field(description="The release stage's id.")
    target: str = Field(description="The target's name.")
    environment: str | None = Field(default=None, description="The environment that is released to.")
    serving: tuple[Serving, ...] = Field(description="What it serves now.")
    problem: str | None = Field(description="Why the target could not be asked.")
    last: ReleaseLine | None = Field(description="The last release begun there, whatever became of it.")


class StatusDocument(Document):
    """`shipctl status --json`."""

    document: Literal["shipctl.status/1"] = named("shipctl.status/1")
    targets: tuple[TargetLine, ...] = Field(description="By release stage.")


class DownDocument(Document):
    """`shipctl down --json`."""

    document: Literal["shipctl.down/1"] = named("shipctl.down/1")
    stopped: tuple[str, ...] = Field(description="A line for everything that was stopped.")


class RunLine(Record):
    """One run in the history."""

    id: str = Field(description="The run's id.")
    pipeline: str = Field(description="metadata.name.")
    version: str = Field(description="metadata.version.")
    command: str = Field(description="The command that started it.")
    user: str = Field(description="Who started it.")
    started: float = Field(description="Seconds since the epoch.")
    finished: float | None = Field(description="Seconds since the epoch; None if it runs or was killed.")
    exit_code: int | None = Field(description="None if it runs or was killed.")
    message: str | None = Field(description="One line for a person.")


class ReleaseLine(Record):
    """One release in the history of a target. Times are seconds since the epoch."""

    stage: str = Field(description="The release stage's id.")
    target: str = Field(description="The target's name.")
    environment: str | None = Field(default=None, description="The environment that was released to.")
    number: int = Field(description="Counts the releases of the stage on the target.")
    version: str = Field(description="metadata.version of what was released.")
    revision: str = Field(description="Digest of what was released.")
    intent: str = Field(description="apply or rollback.")
    phase: str = Field(description="Where it stands, or how it ended.")
    serves: bool = Field(description="Whether it is the one that serves, as recorded.")
    rolled_back: bool = Field(description="Whether it was left by a rollback after it was done.")
    message: str = Field(description="What its last step said.")
    user: str = Field(description="Who began it.")
    run: str = Field(description="The run that began it.")
    started: float = Field(description="When it began.")
    updated: float = Field(description="When its last step was.")


class HistoryDocument(Document):
    """`shipctl history --json`."""

    document: Literal["shipctl.history/1"] = named("shipctl.history/1")
    runs: tuple[RunLine, ...] = Field(description="Runs, newest first.")
    releases: tuple[ReleaseLine, ...] = Field(
        description="Releases of the spec, newest first; none if it releases nothing."
    )


class ReportDocument(Document):
    """`shipctl report --json`."""

    document: Literal["shipctl.report/1"] = named("shipctl.report/1")
    report: RunReport = Field(description="Everything that the page shows.")
