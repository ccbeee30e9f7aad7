"""What a stage may know of the run around it: at plan time, while it runs, when its results are judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from shipctl.records import Record
from shipctl.spec.models import StoreSpec
from shipctl.stages.verdicts import Verdict

if TYPE_CHECKING:
    from jinja2 import Environment

    from shipctl.release.surge import Surge
    from shipctl.release.traffic import Traffic
    from shipctl.stages.artifacts import Artifact


class LineageNode(Record):
    """One stage above another, as it went: what it took, what it made, what its gates said."""

    node: str = Field(description="The stage's id with its matrix variant.")
    uses: str = Field(description="The stage plugin's name.")
    plugin: str = Field(
        description="Distribution and version that brought the plugin, such as `shipctl 0.1.0`."
    )
    fingerprint: str = Field(description="Its fingerprint: everything that its outputs depend on.")
    options: dict[str, Any] = Field(
        default_factory=dict, description="Its options; secrets as their expressions."
    )
    tools: dict[str, str | None] = Field(
        default_factory=dict,
        description="Distributions whose version matters to its result, with the version.",
    )
    inputs: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="Input name to artifact digests."
    )
    outputs: dict[str, str] = Field(default_factory=dict, description="Output name to artifact digest.")
    verdicts: tuple[Verdict, ...] = Field(default=(), description="What its gates said.")


class LineageSource(Record):
    """Something that the spec brought into the pipeline."""

    name: str = Field(description="`model` or `data.<name>`.")
    uri: str = Field(description="As the spec says it.")
    digest: str = Field(description="Digest of the artifact.")
    files: dict[str, str] = Field(default_factory=dict, description="Path in the artifact to SHA-256 (hex).")


class Lineage(Record):
    """Where the inputs of a stage come from: every stage and source above it, and the spec itself."""

    spec: str = Field(default="", description="SHA-256 (hex) of the canonical JSON of the resolved spec.")
    nodes: tuple[LineageNode, ...] = Field(
        default=(), description="Stages, in an order in which they can run."
    )
    sources: tuple[LineageSource, ...] = Field(default=(), description="What the spec brought.")
    python: str = Field(default="", description="Version of the interpreter, such as 3.11.7.")
    platform: str = Field(default="", description="Such as linux-x86_64.")
    revision: str = Field(
        default="", description="The commit of the project, `+dirty` after it where files differ."
    )
    shipctl: str = Field(default="", description="Version of shipctl.")


@dataclass(frozen=True)
class Objectives:
    """What the spec says about the model as a whole; numbers are in base units (seconds, fractions, per second).

    ``slo`` and ``budget`` are flat: ``{"latency.p95": 0.1, "error_rate": 0.01}``. ``data`` holds, per name
    below ``data:``, what the spec says about it beside the file: ``{"evaluation": {"metric": "accuracy",
    "min": 0.97}}``.
    """

    pipeline: Mapping[str, str] = field(default_factory=dict)
    """``{"name": metadata.name}``: what the model is called where it is served."""
    slo: Mapping[str, float] = field(default_factory=dict)
    budget: Mapping[str, float] = field(default_factory=dict)
    data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """All of `metadata`: name, version, owner, description, labels."""


@dataclass(frozen=True)
class Upstream:
    """Where an input comes from, known before anything has run."""

    node: str
    """The stage's id with its matrix variant, or `model` / `data.<name>` for what the spec itself brings."""
    uses: str
    """The stage's name, empty for what the spec brings."""
    metrics: tuple[str, ...] = ()
    """Names (`latency.*`) of the metrics that its reports will carry."""
    artifact: Artifact | None = None
    """What the spec brings, without its files; None for what a stage makes, which is not there yet."""


@dataclass(frozen=True)
class CheckContext:
    """Given to ``check()`` at plan time. Nothing has run; nothing may be changed."""

    project: Path
    pipeline: str
    inputs: Mapping[str, tuple[Upstream, ...]] = field(default_factory=dict)
    objectives: Objectives = field(default_factory=Objectives)
    store: StoreSpec | None = None
    """The spec's `store`, None for the project's own."""
    base: Path = Path()
    """The folder that relative paths of the spec (and of its `store`) are relative to."""
    environment: str | None = None
    """The environment that is planned for (`-e`), None for none."""
    surge: Surge | None = None
    """For targets: how few replicas may be added at a time; None where a candidate has all of its own."""
    traffic: tuple[Traffic, ...] = ()
    """For targets: how requests are to be distributed one after the other, between `stable` and `candidate`."""


@dataclass(frozen=True)
class StageContext:
    """Given to ``run()``, mostly in a worker process."""

    workdir: Path
    """An empty folder of this stage's own; files that it returns have to be below it."""
    seed: int = 0
    threads: int = 1
    """How many CPU threads the stage may keep busy (`resources.cpu`)."""
    objectives: Objectives = field(default_factory=Objectives)
    """Filled only for what the stage declares in ``reads``, since it then counts in the fingerprint."""
    lineage: Lineage = field(default_factory=Lineage)
    """Filled only for a stage whose ``reads`` has `lineage`."""
    log: Callable[[str], None] = print
    """Write one line to the run's log, under the stage's name, with secrets taken out."""

    def templates(self, owner: str) -> Environment:
        """Return a strict Jinja2 environment over the template folder ``owner``; stages declare it in ``templates``."""
        from shipctl.templates import environment

        return environment(owner)


@dataclass(frozen=True)
class JudgeContext:
    """Given to ``judge()`` after every run and for every cached result: bounds may have moved meanwhile."""

    objectives: Objectives = field(default_factory=Objectives)
    subject: str | None = None
    """Digest of the subject, for a check."""


@dataclass(frozen=True)
class ReleaseContext:
    """Given to a release stage, which runs in shipctl's own process and must not load a framework."""

    project: Path
    """The folder with `.shipctl`."""
    target_dir: Path
    """`.shipctl/targets/<target>`: what belongs to a target on this machine lives here."""
    pipeline: str
    """`metadata.name`."""
    version: str
    """`metadata.version`, a semantic version."""
    stage: str
    """The stage's id."""
    revision: str
    """SHA-256 of inputs and options: what is being released. Empty where nothing is (status, down)."""
    run: str
    """The run's id, for records."""
    intent: Literal["apply", "rollback"] = "apply"
    """A rollback releases an earlier revision again: what was proven then needs no second preflight."""
    objectives: Objectives = field(default_factory=Objectives)
    store: StoreSpec | None = None
    """The spec's `store`, None for the project's own; see :func:`shipctl.store.depot.open_depot`."""
    base: Path = Path()
    """The folder that relative paths of the spec (and of its `store`) are relative to."""
    environment: str | None = None
    """The environment that is released to (`-e`), None for none."""
    approved: Callable[[], frozenset[str]] = frozenset
    """What people have approved of this release so far: `promote`, or `step 2` for the pause of that index."""
    aborted: Callable[[], str | None] = field(default=lambda: None)
    """Why somebody wants it aborted (`shipctl abort`), None if nobody does."""
    log: Callable[[str], None] = print
    now: Callable[[], float] = field(default=lambda: __import__("time").time())
    """The time in seconds since the epoch; tests replace it."""
