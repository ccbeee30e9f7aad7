"""What is done to releases outside of an apply: look, look back, go back, stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from shipctl.engine.apply import RunResult
from shipctl.engine.audit import Auditor
from shipctl.engine.graph import Node
from shipctl.engine.hooks import Hooks
from shipctl.engine.journal import Journal
from shipctl.engine.locks import project_lock
from shipctl.engine.operating import only, operate, release_of, releases_of, run_acts
from shipctl.engine.past import HistoryRow, history
from shipctl.engine.pipeline import Pipeline, prepare
from shipctl.engine.releases import Release, went_back
from shipctl.engine.standing_by import POLL, IfRunning, StandBy
from shipctl.errors import LockedError, ShipctlError, SpecError
from shipctl.release.records import AbortWish, ReleaseRecord
from shipctl.stages.base import Phase, Serving
from shipctl.stages.registry import Registry
from shipctl.stages.verdicts import Verdict
from shipctl.store.log import Actor

__all__ = [
    "Aborted",
    "HistoryRow",
    "TargetStatus",
    "abort",
    "down",
    "history",
    "looking",
    "rollback",
    "status",
]


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


def status(
    spec: Path,
    *,
    environment: str | None = None,
    overrides: Sequence[str] = (),
    context: str | None = None,
    registry: Registry | None = None,
) -> list[TargetStatus]:
    """Ask every target of a spec what it serves.

    :raises SpecError: if the spec is wrong or releases nothing
    """
    return looking(spec, environment=environment, overrides=overrides, context=context, registry=registry)()


def looking(
    spec: Path,
    *,
    environment: str | None = None,
    overrides: Sequence[str] = (),
    context: str | None = None,
    registry: Registry | None = None,
) -> Callable[[], list[TargetStatus]]:
    """Return what asks every target of a spec what it serves, as often as it is called.

    :raises SpecError: if the spec is wrong or releases nothing
    """
    pipeline = prepare(spec, environment=environment, overrides=overrides, context=context, registry=registry)
    releases = [(node, release_of(pipeline, node)) for node in releases_of(pipeline)]
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


def rollback(
    spec: Path,
    *,
    hooks: Hooks,
    to: str | None = None,
    stage: str | None = None,
    environment: str | None = None,
    overrides: Sequence[str] = (),
    context: str | None = None,
    lock_timeout: float = 0.0,
    if_running: IfRunning = "supersede",
    say: Callable[[str], None] = lambda _line: None,
    registry: Registry | None = None,
) -> RunResult:
    """Go back to an earlier release: the one before, or the one that ``to`` names by version or digest.

    ``stage`` says which release stage is meant where the spec has several. What another process releases there is
    aborted by it (``if_running``), and ``say`` is told of that.

    :raises SpecError: if there is nothing to go back to
    :raises LockedError: if another run holds the project
    """
    pipeline = prepare(spec, environment=environment, overrides=overrides, context=context, registry=registry)
    node = only(releases_of(pipeline), stage, "roll back")
    release = release_of(pipeline, node)
    standing = StandBy(release, release.by_hand, say, if_running=if_running)
    return operate(
        pipeline,
        node,
        hooks,
        f"shipctl rollback {spec.name}",
        lock_timeout,
        lambda release, drive: release.rollback(drive, to, standing.followed),
        if_running=if_running,
        standing=[] if if_running == "refuse" else [standing],
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
    context: str | None = None,
    registry: Registry | None = None,
) -> Aborted:
    """Abort the release that is under way, and return when it is over.

    While another process drives it, that one is asked to; if it goes away before it is done, or there is none, the
    steps are taken here. ``say`` is told what the other process does.

    :raises SpecError: if nothing is under way
    """
    pipeline = prepare(spec, environment=environment, overrides=overrides, context=context, registry=registry)
    nodes = [node for node in releases_of(pipeline) if release_of(pipeline, node).under_way() is not None]
    if not nodes:
        where = f" in {environment}" if environment else ""
        message = f"no release of {pipeline.name} is under way{where}, so there is nothing to abort"
        raise SpecError(message)
    node = only(nodes, stage, "abort")
    release = release_of(pipeline, node)
    record = release.under_way()
    assert record is not None  # noqa: S101  (looked at above)
    run = _aborted(pipeline, node, release, hooks, say, record.number, reason, f"shipctl abort {spec.name}")
    record = next((item for item in release.records().records if item.number == record.number), record)
    message = record.message
    if record.phase is Phase.DONE:
        message = (
            f"{record.version} was done before it could be aborted ({message}); `shipctl rollback` goes back"
        )
    code = 0 if went_back(record) else 1
    return Aborted(node.id, release.target, release.environment, record, run, code, message)


def _aborted(
    pipeline: Pipeline,
    node: Node,
    release: Release,
    hooks: Hooks,
    say: Callable[[str], None],
    number: int,
    reason: str,
    command: str,
) -> str | None:
    """Have a release aborted, by who drives it or here; return the run that did it here."""
    why = f"by {Actor.current()}{f': {reason}' if reason else ''}"
    standing = StandBy(release, lambda item: AbortWish(number=item.number, reason=why), say)
    told = False
    while _is_under_way(release, number):
        with ExitStack() as stack:
            try:
                stack.enter_context(project_lock(pipeline.project.state / "lock", command, 0.0))
                held = ""
            except LockedError as exc:
                held = str(exc).partition(";")[0]
            driven = standing.look(held)
            if not driven and not held and _is_under_way(release, number):
                return run_acts(pipeline, [node], hooks, command, lambda it, drive: it.abort(drive, why)).run
            if held and not driven and not told:
                say(f"{held}; waiting for that to end")
                told = True
        time.sleep(POLL)
    standing.look()  # tells how it ended
    return None


def _is_under_way(release: Release, number: int) -> bool:
    latest = release.under_way()
    return latest is not None and latest.number == number


def down(
    spec: Path,
    *,
    say: Callable[[str], None],
    environment: str | None = None,
    overrides: Sequence[str] = (),
    context: str | None = None,
    lock_timeout: float = 0.0,
    registry: Registry | None = None,
) -> list[str]:
    """Stop what a spec runs on its targets and return, a line each, what was stopped. Artifacts and records stay.

    :raises SpecError: if the spec is wrong or releases nothing
    :raises LockedError: if another run holds the project
    """
    pipeline = prepare(spec, environment=environment, overrides=overrides, context=context, registry=registry)
    nodes = releases_of(pipeline)
    with project_lock(pipeline.project.state / "lock", f"shipctl down {spec.name}", lock_timeout):
        stopped: list[str] = []
        auditor = Auditor(pipeline, way_back=True)
        for node in nodes:
            release = release_of(pipeline, node)
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
