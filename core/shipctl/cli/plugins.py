"""What is installed: every stage plugin with what is wrong with it, one broken one hiding no other."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from shipctl.cli.documents.stages import StageDocument, StageSummary
from shipctl.engine.ports import input_ports, output_ports
from shipctl.errors import PluginError, ShipctlError
from shipctl.stages.base import ReleaseStage, Stage
from shipctl.stages.registry import Registry, StageClass
from shipctl.testing.checks import frameworks_imported_by_each, frameworks_loaded, static_problems


@dataclass
class Survey:
    """The installed stages: those that load, and a sentence for each of the others."""

    classes: dict[str, StageClass] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    @property
    def problems(self) -> list[str]:
        """What is wrong with the broken ones."""
        return list(self.broken.values())


def load_all(registry: Registry, names: Iterable[str] | None = None) -> Survey:
    """Import the stages ``names``, or all that are installed."""
    survey = Survey()
    for name in registry.names() if names is None else names:
        try:
            survey.classes[name] = registry.load(name)
        except PluginError as exc:
            survey.broken[name] = str(exc)
    return survey


def summaries(registry: Registry, survey: Survey, *, check: bool = False) -> tuple[StageSummary, ...]:
    """Return a line per stage of the survey; with ``check`` also what the conformance kit finds without running it."""
    lines = [_broken(registry, name, problem) for name, problem in survey.broken.items()]
    imported: dict[str, list[str]] = {}
    if check and frameworks_loaded():  # only then can it be one of them that has imported a framework
        modules = sorted({stage.__module__ for stage in survey.classes.values()})
        imported = frameworks_imported_by_each(modules)
    for name, stage in survey.classes.items():
        problems = _problems(stage, imported.get(stage.__module__, [])) if check else ()
        lines.append(summary(registry, name, stage, problems))
    return tuple(sorted(lines, key=lambda line: line.name))


def summary(registry: Registry, name: str, stage: StageClass, problems: tuple[str, ...] = ()) -> StageSummary:
    """Return the line of a stage that loads."""
    return StageSummary(
        name=name,
        summary=stage.summary(),
        kind=_kind(stage),
        distribution=_distribution(registry, name),
        module=stage.__module__,
        problems=problems,
    )


def describe(registry: Registry, name: str) -> StageDocument:
    """Return everything that a stage says about itself.

    :raises SpecError: if there is no such stage
    :raises PluginError: if it does not load
    """
    stage = registry.load(name)
    schema: dict[str, Any] = stage.options_model.model_json_schema()
    return StageDocument(
        stage=summary(registry, name, stage),
        description=inspect.cleandoc(stage.__doc__ or ""),
        inputs={
            port.name: f"{'list of ' if port.many else ''}{port}{', optional' if port.optional else ''}"
            for port in input_ports(stage).values()
        },
        outputs={port.name: str(port) for port in output_ports(stage).values()},
        options=schema,
        metrics=stage.metrics if issubclass(stage, Stage) else (),
        requires=dict(stage.requires),
    )


def _kind(stage: StageClass) -> str:
    if issubclass(stage, ReleaseStage):
        return "release"
    return "check" if stage.subject is not None else "transform"


def _distribution(registry: Registry, name: str) -> str:
    try:
        distribution = registry.find(name).dist
    except ShipctlError:  # declared twice, which its problem says
        return ""
    return f"{distribution.name} {distribution.version}" if distribution else ""


def _broken(registry: Registry, name: str, problem: str) -> StageSummary:
    return StageSummary(
        name=name,
        summary="",
        kind="broken",
        distribution=_distribution(registry, name),
        module="",
        problems=(problem,),
    )


def _problems(stage: StageClass, imported: list[str]) -> tuple[str, ...]:
    problems = static_problems(stage)
    if imported:
        problems.append(f"importing it imports {', '.join(imported)}; import frameworks inside functions")
    return tuple(problems)
