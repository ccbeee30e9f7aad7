"""What was released before: the records of all targets of a spec, wherever they are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from shipctl.engine.operating import release_of, releases_of
from shipctl.engine.pipeline import Pipeline, prepare
from shipctl.engine.project import from_label
from shipctl.errors import ShipctlError
from shipctl.release.records import FileRecords, Records, ReleaseRecord
from shipctl.stages.registry import Registry

Place = tuple[str, str, str | None]
"""Stage, target and environment."""


class HistoryRow(NamedTuple):
    """One release in the history of a target."""

    stage: str
    target: str
    environment: str | None
    record: ReleaseRecord
    serves: bool
    """Whether it is the one that serves, as recorded."""


def history(
    spec: Path,
    *,
    environment: str | None = None,
    overrides: Sequence[str] = (),
    context: str | None = None,
    registry: Registry | None = None,
    complain: Callable[[str], None] = lambda _problem: None,
) -> list[HistoryRow]:
    """Return all releases of a spec's stages, newest first: of the environment that was chosen, else of all.

    Records that a target keeps itself are asked of it; ``complain`` is told of one that cannot be asked.

    :raises SpecError: if the spec is wrong or releases nothing
    """
    registry = registry or Registry()
    pipeline = prepare(spec, environment=environment, overrides=overrides, context=context, registry=registry)
    found: dict[Place, Records] = {}
    for stage in dict.fromkeys(node.spec.id for node in releases_of(pipeline, everywhere=True)):
        for path in sorted(pipeline.project.targets.glob(f"*/releases/{pipeline.name}/{stage}.json")):
            target, where = from_label(path.parents[2].name)
            if environment in {None, where}:
                found[stage, target, where] = FileRecords(path.parents[2], pipeline.name, stage).load()[0]
    for one in _each(pipeline, spec, overrides, registry, complain):
        found |= _kept(one, complain)
    rows = [
        HistoryRow(*place, item, records.stable is not None and item.number == records.stable.number)
        for place, records in found.items()
        for item in records.records
    ]
    return sorted(rows, key=lambda row: row.record.started, reverse=True)


def _each(
    pipeline: Pipeline,
    spec: Path,
    overrides: Sequence[str],
    registry: Registry,
    complain: Callable[[str], None],
) -> Iterator[Pipeline]:
    """Yield the pipeline as each of its environments has it, if none was chosen."""
    yield pipeline
    if pipeline.loaded.environment is not None:
        return
    for name in pipeline.loaded.spec.environments:
        try:
            yield prepare(
                spec, environment=name, overrides=overrides, context=pipeline.context, registry=registry
            )
        except ShipctlError as exc:
            complain(f"what was released to {name} is not shown: {exc}")


def _kept(pipeline: Pipeline, complain: Callable[[str], None]) -> dict[Place, Records]:
    """Return the records that targets keep themselves, by place."""
    found: dict[Place, Records] = {}
    for node in pipeline.nodes.values():
        environment = pipeline.loaded.environment
        if not node.is_release or node.spec.environment not in {None, environment}:
            continue
        try:
            release = release_of(pipeline, node)
            if release.keeps_records:
                found[node.spec.id, release.target, environment] = release.records()
        except ShipctlError as exc:
            where = f" in {environment}" if environment else ""
            complain(f"the records of {node.id}{where} cannot be read: {exc}")
    return found
