"""Releases to one environment what serves in another: the same artifacts, with the options of where they go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from shipctl.engine.apply import RunResult
from shipctl.engine.graph import Node
from shipctl.engine.hooks import Hooks
from shipctl.engine.operating import only, operate, release_of
from shipctl.engine.pipeline import Pipeline, prepare
from shipctl.engine.releases import Drive, Release
from shipctl.engine.secrets import Secrets
from shipctl.engine.standing_by import IfRunning, StandBy
from shipctl.engine.superseding import superseding
from shipctl.engine.walk import GOOD, NodeEnd
from shipctl.errors import GateError, SpecError
from shipctl.records import digest_of
from shipctl.release.records import ReleaseRecord
from shipctl.stages.registry import Registry


class Promoted(NamedTuple):
    """How a promotion went."""

    result: RunResult
    stage: str
    version: str | None
    """Semantic version of what was promoted; None if there was nothing to promote."""
    source_revision: str | None
    revision: str | None
    artifacts: tuple[str, ...]
    """Digests of what was promoted."""


class _Moved(NamedTuple):
    record: ReleaseRecord
    revision: str


def promote(
    spec: Path,
    source: str,
    target: str,
    *,
    hooks: Hooks,
    stage: str | None = None,
    overrides: Sequence[str] = (),
    context: str | None = None,
    lock_timeout: float = 0.0,
    retry: bool = False,
    if_running: IfRunning = "supersede",
    say: Callable[[str], None] = lambda _line: None,
    registry: Registry | None = None,
) -> Promoted:
    """Release to environment ``target`` what serves in ``source``. Nothing is built; the version stays the same.

    Policy and approval are those of ``target``. What does not serve, whole and healthy, is not promoted.
    ``if_running`` and ``say`` are as for :func:`shipctl.engine.apply.apply`.

    :raises SpecError: if no release stage, or more than one, releases to both
    :raises LockedError: if another run holds the project
    """
    if source == target:
        message = f"{source} cannot be promoted to itself; name two environments"
        raise SpecError(message)
    registry = registry or Registry()
    before = prepare(spec, environment=source, overrides=overrides, context=context, registry=registry)
    after = prepare(spec, environment=target, overrides=overrides, context=context, registry=registry)
    node = _in_both(before, after, stage)
    moved: list[_Moved] = []

    def act(empty: Release, drive: Drive) -> NodeEnd:
        record = _served(before, before.nodes[node.id])
        release = empty.moved(record)
        moved.append(_Moved(record, release.revision))
        drive.log(f"{record.version} ({record.revision[:12]}), which serves in {source}, goes to {target}")
        if release.in_place():
            return NodeEnd("in-place", f"{record.version} serves on {release.label}")
        end = release.apply(drive, retry=retry)
        if end.status in GOOD:
            details = {
                "from": source,
                "to": target,
                "stage": node.spec.id,
                "target": release.label,
                "revision": release.revision,
                "artifacts": _digests(record),
            }
            drive.auditor.record("promoted", f"{after.name}@{record.version}", details)
        return end

    def newer() -> Release:
        return empty.moved(_served(before, before.nodes[node.id]))

    command = f"shipctl promote {source} {target} {spec.name}"
    empty = release_of(after, node)
    wants = superseding(newer, say, retry=retry)
    standing = [] if if_running == "refuse" else [StandBy(empty, wants, say, if_running=if_running)]
    result = operate(
        after,
        node,
        hooks,
        command,
        lock_timeout,
        act,
        way_back=False,
        if_running=if_running,
        standing=standing,
    )
    record = moved[0].record if moved else None
    return Promoted(
        result=result,
        stage=node.id,
        version=record.version if record is not None else None,
        source_revision=record.revision if record is not None else None,
        revision=moved[0].revision if moved else None,
        artifacts=tuple(_digests(record)) if record is not None else (),
    )


def _digests(record: ReleaseRecord) -> list[str]:
    return [digest_of(manifest) for manifest in record.manifests]


def _in_both(before: Pipeline, after: Pipeline, stage: str | None) -> Node:
    """Return the release stage that both environments have.

    :raises SpecError: if there is none, or more than one
    """
    here, there = _names(before), _names(after)
    both = [after.nodes[name] for name in there if name in here]
    if not both or (stage is not None and not any(stage in {node.id, node.spec.id} for node in both)):
        what = f"stage {stage!r}" if stage is not None else "no release stage"
        verb = "does not release" if stage is not None else "releases"
        have = "; ".join(
            f"to {pipeline.loaded.environment}: {', '.join(names) or 'none'}"
            for pipeline, names in ((before, here), (after, there))
        )
        message = f"{what} {verb} to both {before.loaded.environment} and {after.loaded.environment} ({have})"
        raise SpecError(message)
    return only(both, stage, "promote")


def _names(pipeline: Pipeline) -> list[str]:
    chosen = pipeline.loaded.environment
    nodes = pipeline.nodes.values()
    return [node.id for node in nodes if node.is_release and node.spec.environment in {None, chosen}]


def _served(pipeline: Pipeline, node: Node) -> ReleaseRecord:
    """Return the record of what serves.

    :raises GateError: if nothing does, something is under way, or it is not whole
    """
    release = Release.of(pipeline, node, None, Secrets(pipeline.loaded))
    records = release.records()
    latest, stable = records.latest, records.stable
    if latest is not None and not latest.phase.is_final:
        message = (
            f"release {latest.number} of {latest.version} on {release.label} stands at {latest.phase}; promote when "
            "it is over"
        )
        raise GateError(message)
    if stable is None:
        message = (
            f"nothing was released on {release.label}; `shipctl apply -e {pipeline.loaded.environment}` first"
        )
        raise GateError(message)
    if not release.holds(stable):
        message = (
            f"{stable.version} ({stable.revision[:12]}) does not serve on {release.label}, whole and healthy; apply it "
            "there again, or see `shipctl status`"
        )
        raise GateError(message)
    return stable
