"""What is done to releases outside of an apply: look, look back, go back, stop."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from shipctl.engine.apply import RunResult
from shipctl.engine.audit import Auditor
from shipctl.engine.graph import Node
from shipctl.engine.hooks import Hooks
from shipctl.engine.journal import Journal
from shipctl.engine.locks import project_lock
from shipctl.engine.pipeline import Pipeline, prepare
from shipctl.engine.recorder import Recorder
from shipctl.engine.releases import Drive, Release
from shipctl.engine.secrets import Secrets
from shipctl.engine.walk import GOOD, NodeEnd
from shipctl.errors import ShipctlError, SpecError, UnavailableError
from shipctl.release.records import ReleaseRecord
from shipctl.stages.base import Serving
from shipctl.stages.registry import Registry


class TargetStatus(NamedTuple):
    """What one release stage's target serves."""

    stage: str
    target: str
    record: ReleaseRecord | None
    """The last release begun there, whatever became of it."""
    serving: tuple[Serving, ...]
    problem: str | None
    """Why the target could not be asked."""


class HistoryRow(NamedTuple):
    """One release in the history of a target."""

    stage: str
    target: str
    record: ReleaseRecord
    serves: bool
    """Whether it is the one that serves, as recorded."""


def status(
    spec: Path,
    *,
    environment: str | None = None,
    overrides: Sequence[str] = (),
    registry: Registry | None = None,
) -> list[TargetStatus]:
    """Ask every target of a spec what it serves.

    :raises SpecError: if the spec is wrong or releases nothing
    """
    pipeline = prepare(spec, environment=environment, overrides=overrides, registry=registry)
    found = []
    for node in _releases(pipeline):
        release = _release(pipeline, node)
        serving: tuple[Serving, ...] = ()
        problem = None
        try:
            serving = tuple(release.status())
        except ShipctlError as exc:
            problem = str(exc)
        found.append(TargetStatus(node.id, release.target, release.records().latest, serving, problem))
    return found


def history(
    spec: Path,
    *,
    environment: str | None = None,
    overrides: Sequence[str] = (),
    registry: Registry | None = None,
) -> list[HistoryRow]:
    """Return all releases of a spec on its targets, newest first.

    :raises SpecError: if the spec is wrong or releases nothing
    """
    pipeline = prepare(spec, environment=environment, overrides=overrides, registry=registry)
    rows = []
    for node in _releases(pipeline):
        release = _release(pipeline, node)
        records = release.records()
        stable = records.stable
        rows += [
            HistoryRow(node.id, release.target, item, stable is not None and item.number == stable.number)
            for item in records.records
        ]
    return sorted(rows, key=lambda row: row.record.started, reverse=True)


def rollback(
    spec: Path,
    *,
    hooks: Hooks,
    to: str | None = None,
    stage: str | None = None,
    environment: str | None = None,
    overrides: Sequence[str] = (),
    lock_timeout: float = 0.0,
    registry: Registry | None = None,
) -> RunResult:
    """Go back to an earlier release: the one before, or the one that ``to`` names by version or digest.

    ``stage`` says which release stage is meant where the spec has several.

    :raises SpecError: if there is nothing to go back to
    :raises LockedError: if another run holds the project
    """
    pipeline = prepare(spec, environment=environment, overrides=overrides, registry=registry)
    nodes = [node for node in _releases(pipeline) if stage in {None, node.id, node.spec.id}]
    if len(nodes) != 1:
        names = ", ".join(node.id for node in _releases(pipeline))
        message = f"say which release to roll back with `--stage`: {names}"
        raise SpecError(message)
    return _operate(
        pipeline,
        nodes[0],
        hooks,
        f"shipctl rollback {spec.name}",
        lock_timeout,
        lambda release, drive: release.rollback(drive, to),
    )


def down(
    spec: Path,
    *,
    say: Callable[[str], None],
    environment: str | None = None,
    overrides: Sequence[str] = (),
    lock_timeout: float = 0.0,
    registry: Registry | None = None,
) -> list[str]:
    """Stop what a spec runs on its targets and return, a line each, what was stopped. Artifacts and records stay.

    :raises SpecError: if the spec is wrong or releases nothing
    :raises LockedError: if another run holds the project
    """
    pipeline = prepare(spec, environment=environment, overrides=overrides, registry=registry)
    nodes = _releases(pipeline)
    with project_lock(pipeline.project.state / "lock", f"shipctl down {spec.name}", lock_timeout):
        stopped: list[str] = []
        auditor = Auditor(pipeline, way_back=True)
        for node in nodes:
            release = _release(pipeline, node)
            lines = release.down(say)
            if lines:
                auditor.record(
                    "down", f"{pipeline.name}@{pipeline.version}", {"stage": node.spec.id, "stopped": lines}
                )
            auditor.forget(node.spec.id, release.target)
            stopped += lines
        for problem in auditor.problems:
            say(f"warning: {problem}")
        return stopped


def _releases(pipeline: Pipeline) -> list[Node]:
    nodes = [node for node in pipeline.nodes.values() if node.is_release]
    if not nodes:
        message = f"{pipeline.loaded.path.name} has no release stage, so nothing of it serves anywhere"
        raise SpecError(message)
    return nodes


def _release(pipeline: Pipeline, node: Node) -> Release:
    return Release.of(pipeline, node, None, Secrets(pipeline.loaded))


def _operate(
    pipeline: Pipeline,
    node: Node,
    hooks: Hooks,
    command: str,
    lock_timeout: float,
    act: Callable[[Release, Drive], NodeEnd],
) -> RunResult:
    """Do something to one release as a run of its own, with journal and events."""
    lacking = pipeline.unavailable.get(node.id)
    if lacking:
        raise UnavailableError(lacking)
    with (
        project_lock(pipeline.project.state / "lock", command, lock_timeout),
        Journal(pipeline.project.journal) as journal,
    ):
        secrets = Secrets(pipeline.loaded)
        recorder = Recorder(pipeline, journal, hooks, secrets)
        workdir = pipeline.project.work / recorder.run
        release = Release.of(pipeline, node, None, secrets)
        drive = Drive(
            run=recorder.run,
            watch=recorder.watcher(node),
            log=recorder.speaker(node.id),
            workdir=workdir,
            stop=threading.Event(),
            redact=secrets.redact,
            auditor=Auditor(pipeline, way_back=True),
        )
        recorder.begin_run(command)
        recorder.begin(node)
        began = time.monotonic()
        try:
            end = act(release, drive)
        except KeyboardInterrupt:
            end = NodeEnd("interrupted", "interrupted; the same command goes on from there", exit_code=130)
        except ShipctlError as exc:
            end = NodeEnd("failed", str(exc), exit_code=exc.exit_code)
        finally:
            shutil.rmtree(workdir, ignore_errors=True)
        end.seconds = time.monotonic() - began
        recorder.end(node, end)
        code = 0 if end.status in GOOD else end.exit_code or 1
        recorder.end_run(code, end.message, {node.id: end})
        return RunResult(
            run=recorder.run,
            exit_code=code,
            message=end.message,
            statuses={node.id: end.status},
            warnings=tuple(drive.auditor.problems),
        )
