"""Carries out a plan: behind the project's lock, with a journal, and an exit code at the end."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping
from typing import NamedTuple

from pydantic import Field

from shipctl.engine.hooks import Hooks
from shipctl.engine.interrupts import interruptible
from shipctl.engine.journal import Journal
from shipctl.engine.plan import Plan, check_targets
from shipctl.engine.recorder import Recorder
from shipctl.engine.releases import Release
from shipctl.engine.runstate import remember_run
from shipctl.engine.schedule import Schedule
from shipctl.engine.secrets import Secrets
from shipctl.engine.standing_by import IfRunning, StandBy, behind_lock
from shipctl.engine.superseding import superseding
from shipctl.engine.uptodate import remember
from shipctl.engine.walk import BAD, GOOD, NodeEnd
from shipctl.engine.workers import end_leftovers
from shipctl.errors import RunInterruptedError, UnavailableError
from shipctl.records import Record
from shipctl.stages.base import Stage
from shipctl.stages.events import Status

EXIT_BUG = 70
"""`EX_SOFTWARE` of BSD's sysexits.h, for a run that shipctl itself broke off."""
_SEVERITY = (130, 3, 7, 1, 2, 4, 6)
"""Exit codes, the one that decides first."""


class RunResult(Record):
    """How a run ended."""

    run: str = Field(description="The run's id.")
    exit_code: int = Field(description="What the process should exit with.")
    message: str = Field(description="One line for a person.")
    statuses: dict[str, Status] = Field(description="Node to how it ended.")
    warnings: tuple[str, ...] = Field(default=(), description="What did not keep it from going on.")


def apply(
    plan: Plan,
    *,
    hooks: Hooks,
    jobs: int | None = None,
    lock_timeout: float = 0.0,
    retry: bool = False,
    arguments: list[str] | None = None,
    if_running: IfRunning = "supersede",
    hand_over: bool = False,
    say: Callable[[str], None] = lambda _line: None,
) -> RunResult:
    """Carry out a plan. What is already done is not done again, whoever did it.

    ``jobs`` is how many CPUs stages may take together, ``lock_timeout`` the seconds to wait for another run,
    and ``retry`` releases again what was rolled back. ``arguments`` is the command line that this answers, if
    the same one may be answered without looking again (see :mod:`shipctl.engine.uptodate`).

    ``if_running`` says what becomes of a release that another process drives on the same target: something newer has
    it aborted, and what is the same waits for it; ``say`` is told of that. ``hand_over`` ends the run once what is
    released is stable; see :func:`shipctl.engine.watch.watch` for the rest.

    :raises LockedError: if another run holds the project, or the target
    :raises WaitingError: if another process releases there, and this release waits for an approval
    :raises UnavailableError: if this machine lacks something that a stage to be run needs; nothing has run then
    :raises StalePlanError: if a plan file's target has moved
    """
    pipeline = plan.pipeline
    missing = [f"{node.node}: {node.unavailable}" for node in plan.nodes if node.unavailable]
    if missing:
        raise UnavailableError("\n".join(missing))
    pipeline.project.create()
    command = f"shipctl apply {plan.spec.path.name}"
    standing = [
        _standing(item, if_running, say, retry=retry) for item in plan.releases if if_running != "refuse"
    ]
    with behind_lock(pipeline.project, command, lock_timeout, standing):
        check_targets(plan)
        with Journal(pipeline.project.journal) as journal:
            options = _Options(jobs or os.cpu_count() or 1, retry, if_running, hand_over)
            result, ends = _run(plan, hooks, journal, command, options)
        pipeline.cache.save()
        if arguments is not None and result.exit_code == 0 and not hooks.others:
            _remember(plan, arguments, ends)
        return result


def _standing(release: Release, if_running: IfRunning, say: Callable[[str], None], *, retry: bool) -> StandBy:
    """Return what waits for another process that releases where ``release`` goes to, or has that aborted."""
    return StandBy(release, superseding(lambda: release, say, retry=retry), say, if_running=if_running)


class _Options(NamedTuple):
    jobs: int
    retry: bool
    if_running: IfRunning
    hand_over: bool


def _run(
    plan: Plan, hooks: Hooks, journal: Journal, command: str, options: _Options
) -> tuple[RunResult, dict[str, NodeEnd]]:
    pipeline = plan.pipeline
    secrets = Secrets(pipeline.loaded)
    recorder = Recorder(pipeline, journal, hooks, secrets)
    recorder.begin_run(command, plan.digest, {node.node: node.reasons for node in plan.nodes})
    end_leftovers(journal, recorder.speaker(""))
    shutil.rmtree(plan.project.work, ignore_errors=True)
    pipeline.store.tidy()
    recorder.fire(plan.ready(recorder.run))
    schedule = Schedule(
        pipeline, journal, recorder, secrets, options.jobs, retry=options.retry, if_running=options.if_running,
        hand_over=options.hand_over,
    )  # fmt: skip
    try:
        with interruptible():
            ends = schedule.run()
    except KeyboardInterrupt:
        recorder.end_run(RunInterruptedError.exit_code, "interrupted", {})
        raise
    except BaseException as exc:  # also of SystemExit: no run may be left without an end in the journal
        recorder.end_run(EXIT_BUG, f"{type(exc).__name__}: {exc}", {})
        raise
    finally:
        shutil.rmtree(plan.project.work, ignore_errors=True)
    code, message = _verdict(schedule, ends)
    remember_run(pipeline, schedule.walk, recorder.run, code)
    recorder.end_run(code, message, ends)
    statuses = {name: end.status for name, end in ends.items()}
    result = RunResult(
        run=recorder.run,
        exit_code=code,
        message=message,
        statuses=statuses,
        warnings=tuple(schedule.warnings),
    )
    return result, ends


def _remember(plan: Plan, arguments: list[str], ends: dict[str, NodeEnd]) -> None:
    """Let the next apply of an unchanged project be answered at once, where nothing outside has a say in it."""
    pipeline = plan.pipeline
    nodes = pipeline.nodes.values()
    model = pipeline.loaded.spec.model
    globs = [text for text in (model.files if model is not None else ()) if "*" in text]
    if plan.pinned or globs or any(node.is_release for node in nodes):
        return
    store = pipeline.store
    stored: set[str] = set()
    for end in ends.values():
        if end.fingerprint is not None:
            stored.add(str(store.result_path(end.fingerprint)))
        stored.update(str(store.blob(entry.sha256)) for item in end.outputs.values() for entry in item.files)
    environ = {name for node in nodes if issubclass(node.cls, Stage) for name in node.cls.environ}
    remember(
        str(pipeline.project.state),
        arguments,
        sources=sorted(pipeline.cache.used | {str(path) for path, _ in pipeline.loaded.files}),
        stored=sorted(stored),
        names=sorted(environ | set(pipeline.loaded.spec.env)),
        expires=min((end.expires for end in ends.values()), default=math.inf),
        began=pipeline.began,
    )


def _verdict(schedule: Schedule, ends: dict[str, NodeEnd]) -> tuple[int, str]:
    """Return the exit code and a sentence; what a selection did without does not count."""
    absorbed: dict[str, bool] = {}
    for name in reversed(list(ends)):
        below = schedule.dependents(name)
        absorbed[name] = bool(below) and all(ends[item].status in GOOD or absorbed[item] for item in below)
    counts = [
        (name, end)
        for name, end in ends.items()
        if end.status in BAD and not absorbed[name] and (end.exit_code or end.status != "blocked")
    ]
    if not counts:
        done = sum(end.status == "done" for end in ends.values())
        rest = len(ends) - done
        if not done:
            return 0, "nothing to do"
        return 0, f"{done} done, {rest} with nothing to do" if rest else f"{done} done"
    name, end = more_severe(dict(counts))
    return end.exit_code or 1, f"{name}: {end.message}"


def more_severe(ends: Mapping[str, NodeEnd]) -> tuple[str, NodeEnd]:
    """Return the node, and how it ended, whose exit code decides."""
    rank = {code: index for index, code in enumerate(_SEVERITY)}

    def severity(item: tuple[str, NodeEnd]) -> int:
        end = item[1]
        return len(rank) + 1 if end.status in GOOD else rank.get(end.exit_code or 1, len(rank))

    return min(ends.items(), key=severity)
