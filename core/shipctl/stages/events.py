"""What happens in a run, as records: hooks get them, the event log writes them as JSON, one a line."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shipctl.records import Record
from shipctl.stages.base import Phase
from shipctl.stages.verdicts import Verdict

Action = Literal["run", "cached", "skipped", "blocked", "release", "in-place"]
Status = Literal[
    "done", "cached", "skipped", "blocked", "failed", "rejected", "in-place", "waiting", "interrupted"
]


class PlannedNode(Record):
    """One stage, or one variant of a matrix, in a plan."""

    node: str = Field(description="The stage's id, with its variant in brackets.")
    stage: str = Field(description="The stage's id in the spec.")
    uses: str = Field(description="The stage plugin's name.")
    kind: Literal["transform", "check", "release"] = Field(description="What kind of stage it is.")
    needs: tuple[str, ...] = Field(default=(), description="The nodes that it waits for.")
    action: Action = Field(description="What apply will do.")
    reasons: tuple[str, ...] = Field(
        default=(), description="Why: which input, option, source or tool changed."
    )
    changes: tuple[str, ...] = Field(default=(), description="What would change on the target (releases).")
    unavailable: str | None = Field(default=None, description="What this machine lacks for it.")
    environment: str | None = Field(
        default=None, description="Which environment of its own it runs in, for a stage with requirements."
    )
    fingerprint: str | None = Field(default=None, description="Its fingerprint, once its inputs are known.")


class PlanReady(Record):
    """A plan was made."""

    event: Literal["plan_ready"] = "plan_ready"
    run: str | None = Field(description="The run that will carry it out; None for `shipctl plan`.")
    pipeline: str = Field(description="metadata.name.")
    version: str = Field(description="metadata.version.")
    digest: str = Field(description="The plan's digest.")
    nodes: tuple[PlannedNode, ...] = Field(description="All nodes in the order in which they can run.")


class StageStarted(Record):
    """A stage begins to run (cached and skipped ones never start)."""

    event: Literal["stage_started"] = "stage_started"
    run: str = Field(description="The run's id.")
    node: str = Field(description="The node.")
    uses: str = Field(description="The stage plugin's name.")
    attempt: int = Field(default=1, description="1, and more after a retry.")
    time: float = Field(description="Seconds since the epoch.")


class StageLogged(Record):
    """A stage said something, or printed it. Secrets are already taken out."""

    event: Literal["stage_logged"] = "stage_logged"
    run: str = Field(description="The run's id.")
    node: str = Field(description="The node.")
    line: str = Field(description="One line of text.")


class StageFinished(Record):
    """A stage is over, in whatever way."""

    event: Literal["stage_finished"] = "stage_finished"
    run: str = Field(description="The run's id.")
    node: str = Field(description="The node.")
    uses: str = Field(description="The stage plugin's name.")
    status: Status = Field(description="How it ended.")
    message: str = Field(default="", description="Why it failed, was skipped or blocked.")
    seconds: float = Field(default=0.0, description="Wall time.")
    peak_memory: int | None = Field(
        default=None, description="Highest resident memory of its worker, in bytes."
    )
    fingerprint: str | None = Field(default=None, description="The stage's fingerprint.")
    outputs: dict[str, str] = Field(default_factory=dict, description="Output name to artifact digest.")
    metrics: dict[str, float] = Field(default_factory=dict, description="The metrics of its reports.")
    time: float = Field(description="Seconds since the epoch.")


class GateDecided(Record):
    """A gate gave its verdict."""

    event: Literal["gate_decided"] = "gate_decided"
    run: str = Field(description="The run's id.")
    node: str = Field(description="The node.")
    verdict: Verdict = Field(description="The verdict.")


class ReleaseStepped(Record):
    """A release took a step."""

    event: Literal["release_stepped"] = "release_stepped"
    run: str = Field(description="The run's id.")
    node: str = Field(description="The node.")
    target: str = Field(description="The target's name.")
    revision: str = Field(description="The revision that is being released.")
    phase: Phase = Field(description="Where it stands.")
    message: str = Field(description="One line for a person.")
    requeue: float = Field(description="Seconds until the next step.")
    time: float = Field(description="Seconds since the epoch.")


class RunFinished(Record):
    """A run is over."""

    event: Literal["run_finished"] = "run_finished"
    run: str = Field(description="The run's id.")
    pipeline: str = Field(description="metadata.name.")
    exit_code: int = Field(description="What the process will exit with.")
    message: str = Field(description="One line for a person.")
    seconds: float = Field(description="Wall time.")
    counts: dict[str, int] = Field(description="Number of nodes by status.")
    time: float = Field(description="Seconds since the epoch.")


Event = PlanReady | StageStarted | StageLogged | StageFinished | GateDecided | ReleaseStepped | RunFinished
