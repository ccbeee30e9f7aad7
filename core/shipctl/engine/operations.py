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
from shipctl.engine.project import from_label
from shipctl.engine.recorder import Recorder
from shipctl.engine.releases import Drive, Release
from shipctl.engine.secrets import Secrets
from shipctl.engine.walk import GOOD, NodeEnd
from shipctl.errors import GateError, LockedError, ShipctlError, SpecError, UnavailableError
from shipctl.release.records import FileRecords, ReleaseRecord
from shipctl.stages.base import Phase, Serving
from shipctl.stages.events import Status
from shipctl.stages.registry import Registry
from shipctl.stages.verdicts import Verdict
from shipctl.store.log import Actor

_ABORT_POLL = 0.3
"""Seconds between two looks at what another process does about an abort."""


class TargetStatus(NamedTuple):
    """What one release stage's target serves."""

    stage: str
    target: str
    environment: str | None
    record: ReleaseRecord | None
    """The last release begun there, whatever became of it."""
    serving: tuple[Serving, ...]
    problem: str | None
    """Why the target could not be asked."""
    verdicts: tuple[Verdict, ...] = ()
    """What the gates of the last release said when they were asked last."""

    @property
    def under_way(self) -> bool:
        """Whether a release is not over yet."""
        return self.record is not None and not self.record.phase.is_final


class HistoryRow(NamedTuple):
    """One release in the history of a target."""

    stage: str
    target: str
    environment: str | None
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
    return looking(spec, environment=environment, overrides=overrides, registry=registry)()


def looking(
    spec: Path,
    *,
    environment: str | None = None,
    overrides: Sequence[str] = (),
    registry: Registry | None = None,
) -> Callable[[], list[TargetStatus]]:
    """Return what asks every target of a spec what it serves, as often as it is called.

    :raises SpecError: if the spec is wrong or releases nothing
    """
    pipeline = prepare(spec, environment=environment, overrides=overrides, registry=registry)
    releases = [(node, _release(pipeline, node)) for node in _releases(pipeline)]
    return lambda: [_status(pipeline, node, release) for node, release in releases]


def _status(pipeline: Pipeline, node: Node, release: Release) -> TargetStatus:
    serving: tuple[Serving, ...] = ()
    problem = None
    try:
        serving = tuple(release.status())
    except ShipctlError as exc:
        problem = str(exc)
    latest = release.records().latest
    verdicts = _verdicts(pipeline, node, latest) if latest is not None else ()
    return TargetStatus(node.id, release.target, release.environment, latest, serving, problem, verdicts)


def _verdicts(pipeline: Pipeline, node: Node, record: ReleaseRecord) -> tuple[Verdict, ...]:
    """Return what the gates said last, from the run that drove the release last."""
    if not pipeline.project.journal.exists():
        return ()
    with Journal(pipeline.project.journal) as journal:
        newest = [row.id for row in journal.runs(limit=1, pipeline=pipeline.name)]
        for run in dict.fromkeys([*newest, record.run]):
            said = [verdict for name, verdict in journal.verdicts(run) if name == node.id]
            if said:
                return _newest(said)
    return ()


def _newest(said: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """Return what was said together last: a gate that is heard of no more has no newest answer.

    A gate may have several metrics, one after the other; what comes up again was said before.
    """
    found: list[Verdict] = []
    for verdict in reversed(said):
        known = [item.metric for item in found if item.gate == verdict.gate]
        if known and (found[-1].gate != verdict.gate or verdict.metric in known):
            break
        found.append(verdict)
    return tuple(reversed(found))


def history(
    spec: Path,
    *,
    environment: str | None = None,
    overrides: Sequence[str] = (),
    registry: Registry | None = None,
) -> list[HistoryRow]:
    """Return all releases of a spec, newest first: of the environment that was chosen, else of all.

    :raises SpecError: if the spec is wrong or releases nothing
    """
    pipeline = prepare(spec, environment=environment, overrides=overrides, registry=registry)
    rows = []
    for stage in dict.fromkeys(node.spec.id for node in _releases(pipeline, everywhere=True)):
        for path in sorted(pipeline.project.targets.glob(f"*/releases/{pipeline.name}/{stage}.json")):
            target, where = from_label(path.parents[2].name)
            if environment not in {None, where}:
                continue
            records = FileRecords(path.parents[2], pipeline.name, stage).load()[0]
            serving = records.stable.number if records.stable is not None else None
            rows += [
                HistoryRow(stage, target, where, item, item.number == serving) for item in records.records
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
    return operate(
        pipeline,
        only(_releases(pipeline), stage, "roll back"),
        hooks,
        f"shipctl rollback {spec.name}",
        lock_timeout,
        lambda release, drive: release.rollback(drive, to),
    )


class Aborted(NamedTuple):
    """How an abort went."""

    stage: str
    target: str
    environment: str | None
    record: ReleaseRecord
    """As the release ended."""
    run: str | None
    """The run that took the steps, None if the process that drives it did."""
    exit_code: int
    message: str


def abort(
    spec: Path,
    *,
    hooks: Hooks,
    say: Callable[[str], None],
    reason: str = "",
    stage: str | None = None,
    environment: str | None = None,
    overrides: Sequence[str] = (),
    registry: Registry | None = None,
) -> Aborted:
    """Abort the release that is under way, and return when it is over.

    While another process drives it, that one is asked to; if it goes away before it is done, or there is none, the
    steps are taken here. ``say`` is told what the other process does.

    :raises SpecError: if nothing is under way
    """
    pipeline = prepare(spec, environment=environment, overrides=overrides, registry=registry)
    nodes = [node for node in _releases(pipeline) if _under_way(_release(pipeline, node)) is not None]
    if not nodes:
        where = f" in {environment}" if environment else ""
        message = f"no release of {pipeline.name} is under way{where}, so there is nothing to abort"
        raise SpecError(message)
    node = only(nodes, stage, "abort")
    release = _release(pipeline, node)
    record = _under_way(release)
    assert record is not None  # noqa: S101  (looked at above)
    number, wish = record.number, f"by {Actor.current()}{f': {reason}' if reason else ''}"
    told = run = None
    while not record.phase.is_final and run is None:
        command = f"shipctl abort {spec.name}"
        try:
            with project_lock(pipeline.project.state / "lock", command, 0.0):
                latest = _under_way(release)
                if latest is not None and latest.number == number:  # not ended by who let go of the lock
                    run = _run(pipeline, node, hooks, command, lambda it, drive: it.abort(drive, wish)).run
        except LockedError as exc:
            if told is None:
                say(f"{str(exc).partition(';')[0]}; asking that process to abort release {number}")
                release.ask_abort(number, wish)
                told = ""
        record = next((item for item in release.records().records if item.number == number), record)
        line = (
            f"{record.version} ({record.revision[:12]}) {record.phase} on {release.label}: {record.message}"
        )
        if run is None and line != told:
            say(line)
            told = line
        if run is None and not record.phase.is_final:
            time.sleep(_ABORT_POLL)
    release.forget_abort()
    went_back = record.phase in {Phase.ROLLED_BACK, Phase.REJECTED}
    message = record.message
    if record.phase is Phase.DONE:
        message = (
            f"{record.version} was done before it could be aborted ({message}); `shipctl rollback` goes back"
        )
    return Aborted(node.id, release.target, release.environment, record, run, 0 if went_back else 1, message)


def _under_way(release: Release) -> ReleaseRecord | None:
    latest = release.records().latest
    return latest if latest is not None and not latest.phase.is_final else None


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
            auditor.forget(node.spec.id, release.label)
            stopped += lines
        for problem in auditor.problems:
            say(f"warning: {problem}")
        return stopped


def _releases(pipeline: Pipeline, *, everywhere: bool = False) -> list[Node]:
    """Return the release stages of the environment that was chosen, or all of them.

    :raises SpecError: if there are none
    """
    nodes = [node for node in pipeline.nodes.values() if node.is_release]
    if not nodes:
        message = f"{pipeline.loaded.path.name} has no release stage, so nothing of it serves anywhere"
        raise SpecError(message)
    chosen = pipeline.loaded.environment
    here = [node for node in nodes if everywhere or node.spec.environment in {None, chosen}]
    if not here:
        wanted = " or ".join(sorted({f"-e {node.spec.environment}" for node in nodes}))
        where = f"to {chosen}" if chosen else "without an environment"
        message = f"{pipeline.loaded.path.name} releases nothing {where}; choose one with {wanted}"
        raise SpecError(message)
    return here


def only(nodes: Sequence[Node], stage: str | None, doing: str) -> Node:
    """Return the one release stage that is meant.

    :raises SpecError: if there are several, or none of that name
    """
    found = [node for node in nodes if stage in {None, node.id, node.spec.id}]
    if len(found) != 1:
        names = ", ".join(node.id for node in nodes)
        message = f"say which release to {doing} with `--stage`: {names}"
        raise SpecError(message)
    return found[0]


def _release(pipeline: Pipeline, node: Node) -> Release:
    return Release.of(pipeline, node, None, Secrets(pipeline.loaded))


def operate(
    pipeline: Pipeline,
    node: Node,
    hooks: Hooks,
    command: str,
    lock_timeout: float,
    act: Callable[[Release, Drive], NodeEnd],
    *,
    way_back: bool = True,
) -> RunResult:
    """Do something to one release as a run of its own, with journal and events.

    ``way_back`` says that it must not be held up by a store that cannot be reached.

    :raises LockedError: if another run holds the project
    :raises UnavailableError: if this machine lacks something
    """
    with project_lock(pipeline.project.state / "lock", command, lock_timeout):
        return _run(pipeline, node, hooks, command, act, way_back=way_back)


def _run(
    pipeline: Pipeline,
    node: Node,
    hooks: Hooks,
    command: str,
    act: Callable[[Release, Drive], NodeEnd],
    *,
    way_back: bool = True,
) -> RunResult:
    """Do what :func:`operate` does, for who holds the project's lock."""
    lacking = pipeline.unavailable.get(node.id)
    if lacking:
        raise UnavailableError(lacking)
    with Journal(pipeline.project.journal) as journal:
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
            auditor=Auditor(pipeline, way_back=way_back),
        )
        recorder.begin_run(command)
        recorder.begin(node)
        began = time.monotonic()
        try:
            end = act(release, drive)
        except KeyboardInterrupt:
            end = NodeEnd("interrupted", "interrupted; the same command goes on from there", exit_code=130)
        except ShipctlError as exc:
            status: Status = "rejected" if isinstance(exc, GateError) else "failed"
            end = NodeEnd(status, str(exc), exit_code=exc.exit_code)
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
