"""Does something to releases as a run of its own: behind the project's lock, with journal, events and an exit code."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from shipctl.engine.apply import RunResult, more_severe
from shipctl.engine.audit import Auditor
from shipctl.engine.graph import Node
from shipctl.engine.hooks import Hooks
from shipctl.engine.interrupts import interruptible
from shipctl.engine.journal import Journal
from shipctl.engine.pipeline import Pipeline
from shipctl.engine.recorder import Recorder
from shipctl.engine.releases import Drive, Release
from shipctl.engine.secrets import Secrets
from shipctl.engine.standing_by import IfRunning, StandBy, behind_lock
from shipctl.engine.walk import GOOD, NodeEnd
from shipctl.errors import GateError, RunInterruptedError, ShipctlError, SpecError, UnavailableError
from shipctl.stages.events import Status

Act = Callable[[Release, Drive], NodeEnd]


def releases_of(pipeline: Pipeline, *, everywhere: bool = False) -> list[Node]:
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


def release_of(pipeline: Pipeline, node: Node) -> Release:
    """Return the release of a stage with all its options, and nothing to be released."""
    return Release.of(pipeline, node, None, Secrets(pipeline.loaded))


def operate(
    pipeline: Pipeline,
    node: Node,
    hooks: Hooks,
    command: str,
    lock_timeout: float,
    act: Act,
    *,
    way_back: bool = True,
    if_running: IfRunning = "supersede",
    standing: Sequence[StandBy] = (),
) -> RunResult:
    """Do something to one release, after ``standing`` has waited for what another process releases there.

    ``way_back`` says that it must not be held up by a store that cannot be reached.

    :raises LockedError: if another run holds the project
    :raises UnavailableError: if this machine lacks something
    """
    with behind_lock(pipeline.project, command, lock_timeout, standing):
        return run_acts(pipeline, [node], hooks, command, act, way_back=way_back, if_running=if_running)


def run_acts(
    pipeline: Pipeline,
    nodes: Sequence[Node],
    hooks: Hooks,
    command: str,
    act: Act,
    *,
    way_back: bool = True,
    if_running: IfRunning = "supersede",
) -> RunResult:
    """Do something to several releases side by side, for who holds the project's lock.

    :raises UnavailableError: if this machine lacks something
    """
    lacking = [pipeline.unavailable[node.id] for node in nodes if node.id in pipeline.unavailable]
    if lacking:
        raise UnavailableError("\n".join(lacking))
    with Journal(pipeline.project.journal) as journal:
        recorder = Recorder(pipeline, journal, hooks, Secrets(pipeline.loaded))
        stop = threading.Event()
        works = [_Work(pipeline, node, recorder, stop, act, way_back, if_running) for node in nodes]
        recorder.begin_run(command)
        try:
            ends = _side_by_side(works, stop)
        finally:
            shutil.rmtree(pipeline.project.work / recorder.run, ignore_errors=True)
        for work in works:
            recorder.end(work.node, ends[work.node.id])
        name, end = more_severe(ends)
        code = 0 if end.status in GOOD else end.exit_code or 1
        message = end.message if len(ends) == 1 else f"{name}: {end.message}"
        recorder.end_run(code, message, ends)
        return RunResult(
            run=recorder.run,
            exit_code=code,
            message=message,
            statuses={name: end.status for name, end in ends.items()},
            warnings=tuple(problem for work in works for problem in work.auditor.problems),
        )


class _Work:
    """What is to be done to one release."""

    def __init__(
        self,
        pipeline: Pipeline,
        node: Node,
        recorder: Recorder,
        stop: threading.Event,
        act: Act,
        way_back: bool,  # noqa: FBT001
        if_running: IfRunning,
    ) -> None:
        secrets = Secrets(pipeline.loaded)
        self.node = node
        self.auditor = Auditor(pipeline, way_back=way_back)
        self._release = Release.of(pipeline, node, None, secrets)
        self._recorder = recorder
        self._act = act
        self._drive = Drive(
            run=recorder.run,
            watch=recorder.watcher(node),
            log=recorder.speaker(node.id),
            workdir=pipeline.project.work / recorder.run / node.folder,
            stop=stop,
            redact=secrets.redact,
            auditor=self.auditor,
            if_running=if_running,
        )

    def do(self) -> NodeEnd:
        """Do it."""
        self._recorder.begin(self.node)
        began = time.monotonic()
        try:
            end = self._act(self._release, self._drive)
        except ShipctlError as exc:
            status: Status = "rejected" if isinstance(exc, GateError) else "failed"
            if isinstance(exc, RunInterruptedError):
                status = "interrupted"
            end = NodeEnd(status, str(exc), exit_code=exc.exit_code)
        end.seconds = time.monotonic() - began
        return end


def _side_by_side(works: Sequence[_Work], stop: threading.Event) -> dict[str, NodeEnd]:
    """Do all of it, each in a thread; an interruption is told to all of them, and their ends are waited for."""
    with ThreadPoolExecutor(len(works), thread_name_prefix="release") as threads, interruptible():
        running: list[tuple[_Work, Future[NodeEnd]]] = [(work, threads.submit(work.do)) for work in works]
        try:
            for _, future in running:
                future.exception()
        except KeyboardInterrupt:
            stop.set()
        return {work.node.id: future.result() for work, future in running}
