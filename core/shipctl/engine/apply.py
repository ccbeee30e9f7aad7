"""Runs a plan: schedules its nodes, keeps the journal, and turns how they ended into an exit code."""

from __future__ import annotations

import heapq
import os
import platform
import secrets as randomness
import shutil
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from pydantic import Field

from shipctl.engine.execute import DamagedInputError, Executor
from shipctl.engine.graph import Node, Origin
from shipctl.engine.hooks import Hooks
from shipctl.engine.journal import Journal, RunRow, StageRow, StepRow
from shipctl.engine.locks import project_lock
from shipctl.engine.plan import Plan, check_targets
from shipctl.engine.releases import Release, user
from shipctl.engine.resources import Resources
from shipctl.engine.secrets import Secrets
from shipctl.engine.walk import BAD, GOOD, NodeEnd, Ready, Walk, verdict_end
from shipctl.engine.workers import WorkerPool, end_leftovers
from shipctl.errors import GateError, RunInterruptedError, ShipctlError, UnavailableError
from shipctl.records import Record
from shipctl.stages.base import Stage
from shipctl.stages.events import (
    Event, GateDecided, ReleaseStepped, RunFinished, StageFinished, StageLogged, StageStarted, Status,
)  # fmt: skip
from shipctl.stages.verdicts import Verdict

REBUILDS = 2
"""Times that a damaged artifact is made again in one run."""
_SEVERITY = (130, 3, 7, 1, 2, 4, 6)
"""Exit codes, the one that decides first."""


class RunResult(Record):
    """How a run ended."""

    run: str = Field(description="The run's id.")
    exit_code: int = Field(description="What the process should exit with.")
    message: str = Field(description="One line for a person.")
    statuses: dict[str, Status] = Field(description="Node to how it ended.")


def apply(plan: Plan, *, hooks: Hooks, jobs: int | None = None, lock_timeout: float = 0.0, retry: bool = False) -> RunResult:
    """Carry out a plan. What is already done is not done again, whoever did it.

    :raises LockedError: if another run holds the project
    :raises UnavailableError: if this machine lacks something that a stage to be run needs; nothing has run then
    :raises StalePlanError: if a plan file's target has moved
    """
    pipeline = plan.pipeline
    missing = [f"{node.node}: {node.unavailable}" for node in plan.nodes if node.unavailable]
    if missing:
        raise UnavailableError("\n".join(missing))
    pipeline.project.create()
    command = f"shipctl apply {plan.spec.path.name}"
    with project_lock(pipeline.project.state / "lock", command, lock_timeout):
        check_targets(plan)
        journal = Journal(pipeline.project.journal)
        try:
            return _Run(plan, hooks, journal, jobs or os.cpu_count() or 1, command, retry=retry).run()
        finally:
            pipeline.cache.save()
            journal.close()


def new_run_id() -> str:
    """Return an id that sorts by time."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{randomness.token_hex(3)}"


class _Run:
    """One run, from its first row in the journal to its last."""

    def __init__(self, plan: Plan, hooks: Hooks, journal: Journal, jobs: int, command: str, *, retry: bool) -> None:
        self._plan = plan
        self._pipeline = plan.pipeline
        self._nodes = plan.pipeline.nodes
        self._hooks = hooks
        self._journal = journal
        self._command = command
        self._retry = retry
        self.id = new_run_id()
        self._walk = Walk(plan.pipeline)
        self._secrets = Secrets(plan.pipeline.loaded)
        self._stop = threading.Event()
        self._fire_lock = threading.Lock()
        self._free = Resources(cpu=float(jobs))
        self._threads = ThreadPoolExecutor(max_workers=jobs + 8, thread_name_prefix="stage")
        self._pool = WorkerPool(journal, self.id)
        self._pool.stop = self._stop
        self._workdir = plan.project.work / self.id
        self._executor = Executor(plan.pipeline, self._pool, self._secrets, self._workdir)
        self._order = {name: index for index, name in enumerate(self._nodes)}
        self._dependents: dict[str, list[str]] = defaultdict(list)
        self._waiting: dict[str, int] = {}
        self._ready: list[int] = []
        self._running: dict[Future[NodeEnd], Node] = {}
        self._rebuilds: dict[str, int] = defaultdict(int)
        self._reasons = {node.node: list(node.reasons) for node in plan.nodes}
        self._started: dict[str, float] = {}

    # -- the run -------------------------------------------------------------------------------------------

    def run(self) -> RunResult:
        began = time.time()
        self._journal.begin_run(
            RunRow(
                self.id, self._pipeline.name, self._pipeline.version, str(self._plan.spec.path), self._command,
                user(), platform.node(), self._plan.digest, began, None, None, None,
            )
        )  # fmt: skip
        end_leftovers(self._journal, lambda line: self._say("", line))
        shutil.rmtree(self._plan.project.work, ignore_errors=True)
        self._fire(self._plan.ready(self.id))
        previous = _terminate_as_interrupt()
        try:
            self._schedule_all()
            self._loop()
        except KeyboardInterrupt:
            self._interrupt()
        finally:
            self._stop.set()
            self._threads.shutdown(wait=True)
            self._pool.close()
            shutil.rmtree(self._plan.project.work, ignore_errors=True)
            if previous is not None:
                signal.signal(signal.SIGTERM, previous)
        code, message = self._verdict()
        self._journal.end_run(self.id, time.time(), code, message)
        counts: dict[str, int] = defaultdict(int)
        for end in self._walk.ends.values():
            counts[end.status] += 1
        self._fire(
            RunFinished(
                run=self.id, pipeline=self._pipeline.name, exit_code=code, message=message,
                seconds=time.time() - began, counts=dict(counts), time=time.time(),
            )
        )  # fmt: skip
        return RunResult(run=self.id, exit_code=code, message=message, statuses={n: e.status for n, e in self._walk.ends.items()})

    def _schedule_all(self) -> None:
        for name, node in self._nodes.items():
            self._waiting[name] = len(node.needs)
            for need in node.needs:
                self._dependents[need].append(name)
            if not node.needs:
                heapq.heappush(self._ready, self._order[name])

    def _loop(self) -> None:
        names = list(self._nodes)
        while self._ready or self._running:
            held: list[int] = []
            exclusive_waits = False
            while self._ready:
                index = heapq.heappop(self._ready)
                node = self._nodes[names[index]]
                if node.id in self._walk.ends:
                    continue
                if exclusive_waits or not self._consider(node):
                    held.append(index)
                    exclusive_waits = exclusive_waits or _alone(node)
            for index in held:
                heapq.heappush(self._ready, index)
            if self._running:
                done, _ = wait(self._running, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    self._collect(future)

    def _consider(self, node: Node) -> bool:
        """End a node, or start it; False if there is no room for it now."""
        try:
            if self._walk.condition(node) is False:
                self._end(node, NodeEnd("skipped", "its `when` says no"))
                return True
            ready = self._walk.ready(node)
        except ShipctlError as exc:
            self._end(node, NodeEnd("failed", str(exc), exit_code=exc.exit_code))
            return True
        if ready is None:
            return True  # one of its needs is being made again and will bring it back
        if isinstance(ready, NodeEnd):
            self._end(node, ready)
            return True
        if node.is_release:
            return self._start(node, lambda: self._release(node, ready), alone=False)
        return self._consider_transform(node, ready)

    def _consider_transform(self, node: Node, ready: Ready) -> bool:
        assert issubclass(node.cls, Stage)  # noqa: S101  (releases went another way)
        try:
            parts = self._walk.components(node, ready)
            hit = self._walk.cached(node, parts)
        except ShipctlError as exc:
            self._end(node, NodeEnd("failed", str(exc), exit_code=exc.exit_code))
            return True
        if hit is not None:
            result, outputs = hit
            end = NodeEnd("cached", outputs=outputs, fingerprint=result.fingerprint, components=parts, peak_memory=result.peak_memory)
            self._end(node, self._judged(node, ready, end))
            return True
        inline = node.cls.isolation == "inline" and node.spec.timeout is None and not node.cls.requirements
        alone = _alone(node)
        if not inline or alone:
            return self._start(node, lambda: self._transform(node, ready, parts), alone=alone)
        if self._free.exclusive:
            return False
        future: Future[NodeEnd] = Future()
        try:
            future.set_result(self._transform(node, ready, parts))
        except DamagedInputError as exc:
            future.set_exception(exc)
        self._running[future] = node
        self._collect(future, took=False)
        return True

    def _start(self, node: Node, work: Callable[[], NodeEnd], *, alone: bool) -> bool:
        if not self._free.take(node, alone=alone):
            return False
        self._running[self._threads.submit(work)] = node
        return True

    def _collect(self, future: Future[NodeEnd], *, took: bool = True) -> None:
        node = self._running.pop(future)
        if took:
            self._free.give_back(node)
        try:
            self._end(node, future.result())
        except DamagedInputError as exc:
            self._rebuild(node, exc)

    # -- in a thread of its own ----------------------------------------------------------------------------

    def _transform(self, node: Node, ready: Ready, parts: Any) -> NodeEnd:
        started = time.monotonic()
        end = self._attempts(node, ready, parts)
        end.seconds = time.monotonic() - started
        return end

    def _attempts(self, node: Node, ready: Ready, parts: Any) -> NodeEnd:
        retry = node.spec.retry
        delay = float(retry.delay)
        for attempt in range(1, retry.attempts + 1):
            self._begin(node, attempt)
            try:
                options = self._executor.options(node, self._walk)
                end = self._executor.run(node, ready, parts, options, lambda line: self._say(node.id, line))
                return self._judged(node, ready, end)
            except GateError as exc:
                return NodeEnd("rejected", str(exc), components=parts, exit_code=exc.exit_code)
            except RunInterruptedError as exc:
                return NodeEnd("interrupted", str(exc), exit_code=exc.exit_code)
            except ShipctlError as exc:
                end = NodeEnd("failed", str(exc), exit_code=exc.exit_code)
            except OSError as exc:
                end = NodeEnd("failed", f"{type(exc).__name__}: {exc}", exit_code=1)
            if attempt == retry.attempts or end.exit_code != 1:
                break
            self._say(node.id, f"attempt {attempt} of {retry.attempts} failed: {end.message}; trying again in {delay:g}s")
            if self._stop.wait(delay):
                return NodeEnd("interrupted", "interrupted; finished stages are kept", exit_code=130)
            delay *= retry.backoff
        return end

    def _judged(self, node: Node, ready: Ready, end: NodeEnd) -> NodeEnd:
        try:
            options = self._executor.options(node, self._walk)
        except ShipctlError as exc:
            return NodeEnd("failed", str(exc), exit_code=exc.exit_code)
        end.verdicts = self._walk.judge(node, options, end.outputs, ready)
        against = verdict_end(end.verdicts)
        if against is not None:
            end.status, end.message, end.exit_code = "rejected", against, 4
        return end

    def _release(self, node: Node, ready: Ready) -> NodeEnd:
        approval = node.spec.approval
        if approval is not None and approval.required:
            roles = " or ".join(approval.roles) or "anybody whom the policy names"
            return NodeEnd("waiting", f"waits for an approval by {roles}; this version of shipctl cannot record one yet", exit_code=6)
        self._begin(node, 1)
        started = time.monotonic()

        def watch(step: ReleaseStepped, verdicts: Iterable[Verdict]) -> None:
            self._journal.record_step(
                StepRow(self.id, node.id, step.target, step.revision, step.phase, self._secrets.redact(step.message), step.time)
            )
            for verdict in verdicts:
                self._gate(node, verdict)
            self._fire(step.model_copy(update={"run": self.id, "message": self._secrets.redact(step.message)}))

        def log(line: str) -> None:
            self._say(node.id, line)

        try:
            release = Release.of(self._pipeline, node, ready, self._executor.scope(node, self._walk.stages_scope()))
            self._executor.open_inputs(ready, self._workdir / "verify")
            end = release.apply(self.id, watch, log, self._workdir / "release", self._stop, retry=self._retry)
        except RunInterruptedError as exc:
            end = NodeEnd("interrupted", str(exc), exit_code=exc.exit_code)
        except ShipctlError as exc:
            end = NodeEnd("failed", str(exc), exit_code=exc.exit_code)
        except DamagedInputError:
            raise
        except Exception as exc:  # a release plugin may raise anything; its record stands on the target
            end = NodeEnd("failed", f"{type(exc).__name__}: {exc}", exit_code=1)
        end.seconds = time.monotonic() - started
        return end

    # -- what happened -------------------------------------------------------------------------------------

    def _begin(self, node: Node, attempt: int) -> None:
        now = time.time()
        self._started[node.id] = now
        self._record(node, "running", "", attempt=attempt)
        self._fire(StageStarted(run=self.id, node=node.id, uses=node.spec.uses, attempt=attempt, time=now))

    def _end(self, node: Node, end: NodeEnd) -> None:
        end.message = self._secrets.redact(end.message)
        self._walk.ends[node.id] = end
        with self._journal.transaction():
            self._record(node, end.status, end.message, end=end)
            if end.components is not None and end.status in GOOD | {"rejected"} and end.status != "cached":
                self._journal.remember_components(self._pipeline.name, node.id, end.components)
        for verdict in end.verdicts:
            self._gate(node, verdict)
        self._fire(
            StageFinished(
                run=self.id, node=node.id, uses=node.spec.uses, status=end.status, message=end.message,
                seconds=end.seconds, peak_memory=end.peak_memory, fingerprint=end.fingerprint,
                outputs={name: item.digest for name, item in end.outputs.items()}, metrics=end.metrics, time=time.time(),
            )
        )  # fmt: skip
        for name in self._dependents[node.id]:
            self._waiting[name] -= 1
            if self._waiting[name] == 0:
                heapq.heappush(self._ready, self._order[name])

    def _record(self, node: Node, status: str, message: str, *, end: NodeEnd | None = None, attempt: int = 1) -> None:
        self._journal.record_stage(
            StageRow(
                self.id, node.id, node.spec.id, node.spec.uses, attempt, status, message, self._reasons.get(node.id, []),
                end.fingerprint if end is not None else None, self._started.get(node.id, time.time()),
                end.seconds if end is not None else None, end.peak_memory if end is not None else None,
            )
        )  # fmt: skip

    def _gate(self, node: Node, verdict: Verdict) -> None:
        verdict = verdict.model_copy(update={"message": self._secrets.redact(verdict.message)})
        self._journal.record_verdict(self.id, node.id, verdict, time.time())
        self._fire(GateDecided(run=self.id, node=node.id, verdict=verdict))

    def _say(self, node: str, line: str) -> None:
        self._fire(StageLogged(run=self.id, node=node, line=self._secrets.redact(line)))

    def _fire(self, event: Event) -> None:
        with self._fire_lock:
            self._hooks.fire(event)

    # -- when things go wrong --------------------------------------------------------------------------------

    def _rebuild(self, node: Node, damage: DamagedInputError) -> None:
        """Make the stage run again whose output is damaged, and then what came of it as far as it moved."""
        maker = self._maker(damage.origin)
        self._rebuilds[maker.node] += 1
        if self._rebuilds[maker.node] > REBUILDS:
            self._end(node, NodeEnd("failed", f"{damage}; made again {REBUILDS} times, and still damaged", exit_code=1))
            return
        self._pipeline.store.blob(damage.error.digest).unlink(missing_ok=True)
        if not maker.node:
            self._say(node.id, f"{damage}; taking it from the project again")
            heapq.heappush(self._ready, self._order[node.id])
            return
        self._say(node.id, f"{damage}; running {maker.node} again")
        end = self._walk.ends[maker.node]
        if end.fingerprint is not None:
            self._pipeline.store.drop_result(end.fingerprint)
        busy = {item.id for item in self._running.values()}
        again = [
            name for name in self._below(maker.node)
            if name not in busy and (name == node.id or name in self._walk.ends) and not (self._nodes[name].is_release and name != node.id)
        ]  # fmt: skip
        for name in again:
            self._walk.ends.pop(name, None)
        for name in again:
            self._waiting[name] = sum(need not in self._walk.ends for need in self._nodes[name].needs)
            if self._waiting[name] == 0:
                heapq.heappush(self._ready, self._order[name])

    def _maker(self, origin: Origin) -> Origin:
        """Return where the damaged bytes were really made, behind stages that pass an input on."""
        artifact = self._walk.artifact(origin)
        lineage = self._walk.lineage([origin])
        same = [item for item in lineage if artifact is not None and (other := self._walk.artifact(item)) is not None and other.digest == artifact.digest]
        return min(same, key=lambda item: self._order.get(item.node, -1), default=origin)

    def _below(self, name: str) -> list[str]:
        found = {name}
        waiting = [name]
        while waiting:
            for dependent in self._dependents[waiting.pop()]:
                if dependent not in found:
                    found.add(dependent)
                    waiting.append(dependent)
        return sorted(found, key=self._order.__getitem__)

    def _interrupt(self) -> None:
        self._stop.set()
        for future, node in list(self._running.items()):
            try:
                self._end(node, future.result())
            except (DamagedInputError, ShipctlError):
                self._end(node, NodeEnd("interrupted", "interrupted", exit_code=130))
        for name, node in self._nodes.items():
            if name not in self._walk.ends:
                self._end(node, NodeEnd("interrupted", "interrupted before it began", exit_code=130))

    # -- the end ---------------------------------------------------------------------------------------------

    def _verdict(self) -> tuple[int, str]:
        """Return the exit code and a sentence; what a selection went without does not count."""
        bad = {name: end for name, end in self._walk.ends.items() if end.status in BAD}
        absorbed: dict[str, bool] = {}
        for name in reversed(list(self._nodes)):
            below = self._dependents[name]
            absorbed[name] = bool(below) and all(self._walk.ends[item].status in GOOD or absorbed[item] for item in below)
        counts = [(name, end) for name, end in bad.items() if not absorbed[name] and (end.exit_code or end.status != "blocked")]
        if not counts:
            done = sum(end.status == "done" for end in self._walk.ends.values())
            rest = len(self._walk.ends) - done
            return 0, f"{done} done, {rest} nothing to do" if done else "nothing to do"
        by_code = {code: index for index, code in enumerate(_SEVERITY)}
        name, end = min(counts, key=lambda item: by_code.get(item[1].exit_code or 1, len(by_code)))
        return end.exit_code or 1, f"{name}: {end.message}"


def _alone(node: Node) -> bool:
    return issubclass(node.cls, Stage) and node.cls.measurement


def _terminate_as_interrupt() -> Any:
    """Let SIGTERM do what Ctrl-C does; return what it did before, or None outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return None

    def handle(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    return signal.signal(signal.SIGTERM, handle)
