"""The scheduler: starts every node as soon as its inputs are there and the machine has room for it."""

from __future__ import annotations

import heapq
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from shipctl.engine.audit import Auditor
from shipctl.engine.execute import DamagedInputError, Executor, runs_inline
from shipctl.engine.fingerprint import Components, fingerprint
from shipctl.engine.graph import Node, Origin
from shipctl.engine.journal import Journal
from shipctl.engine.pipeline import Pipeline
from shipctl.engine.recorder import Recorder
from shipctl.engine.releases import Drive, Release
from shipctl.engine.resources import Resources
from shipctl.engine.secrets import Secrets
from shipctl.engine.standing_by import IfRunning
from shipctl.engine.walk import (
    NodeEnd,
    Ready,
    Walk,
    expiry,
    reads_lineage,
    to_be_measured_again,
    verdict_end,
)
from shipctl.engine.workers import WorkerPool
from shipctl.errors import GateError, RunInterruptedError, ShipctlError
from shipctl.stages.base import Stage
from shipctl.stages.events import Status

REBUILDS = 2
"""Times that a damaged artifact is made again in one run."""
_MORE_THREADS = 8
"""Threads beside those that keep a CPU busy, for releases, which mostly wait."""


class Schedule:
    """One walk over a pipeline. The main thread decides and runs what is inline; the rest runs in threads."""

    def __init__(
        self,
        pipeline: Pipeline,
        journal: Journal,
        recorder: Recorder,
        secrets: Secrets,
        jobs: int,
        *,
        retry: bool,
        if_running: IfRunning = "supersede",
        hand_over: bool = False,
    ) -> None:
        self._pipeline = pipeline
        self._nodes = pipeline.nodes
        self._recorder = recorder
        self._retry = retry
        self._if_running = if_running
        self._hand_over = hand_over
        self._walk = Walk(pipeline)
        self._stop = threading.Event()
        self._free = Resources(cpu=float(jobs))
        self._threads = ThreadPoolExecutor(max_workers=jobs + _MORE_THREADS, thread_name_prefix="stage")
        self._pool = WorkerPool(journal, recorder.run, self._stop)
        self._workdir = pipeline.project.work / recorder.run
        self._executor = Executor(pipeline, self._pool, secrets, self._workdir)
        self._order = {name: index for index, name in enumerate(self._nodes)}
        self._dependents: dict[str, list[str]] = defaultdict(list)
        self._waiting: dict[str, int] = {}
        self._ready: list[int] = []
        self._running: dict[Future[NodeEnd], Node] = {}
        self.warnings: list[str] = []
        """What did not keep the run from going on."""
        self._rebuilds: dict[str, int] = defaultdict(int)

    @property
    def walk(self) -> Walk:
        """How far the nodes have come."""
        return self._walk

    def dependents(self, node: str) -> list[str]:
        """Return the nodes that wait for this one."""
        return self._dependents[node]

    def run(self) -> dict[str, NodeEnd]:
        """Bring every node to an end and return the ends in the order of the plan."""
        try:
            self._schedule_all()
            self._loop()
        except KeyboardInterrupt:
            self._interrupt()
        finally:
            self._stop.set()
            self._threads.shutdown(wait=True)
            self._pool.close()
            self._pipeline.store.sync()
            self._note(self._pipeline.store.settle())
        return {name: self._walk.ends[name] for name in self._nodes}

    def _note(self, problem: str | None) -> None:
        if problem is not None and problem not in self.warnings:
            self.warnings.append(problem)

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
        if self._waiting[node.id] > 0:
            return True  # one of its needs is being made again and will bring it back
        try:
            if self._walk.condition(node) is False:
                self._end(node, NodeEnd("skipped", "its `when` says no"))
                return True
            ready = self._walk.ready(node)
        except ShipctlError as exc:
            self._end(node, NodeEnd("failed", str(exc), exit_code=exc.exit_code))
            return True
        assert ready is not None  # noqa: S101  (it waits for nothing any more)
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
            end = NodeEnd(
                "cached",
                outputs=outputs,
                fingerprint=result.fingerprint,
                components=parts,
                peak_memory=result.peak_memory,
                expires=expiry(node, result),
            )
            end = self._judged(node, ready, end)
            if not to_be_measured_again(node, end.verdicts):
                self._end(node, end)
                return True
        # A result that is too old, or has lost its files, must not win over the one that is now made
        self._pipeline.store.drop_result(fingerprint(parts))
        inline = runs_inline(node.cls, node.spec)
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

    def _transform(self, node: Node, ready: Ready, parts: Components) -> NodeEnd:
        started = time.monotonic()
        end = self._attempts(node, ready, parts)
        end.seconds = time.monotonic() - started
        return end

    def _attempts(self, node: Node, ready: Ready, parts: Components) -> NodeEnd:
        retry = node.spec.retry
        end = NodeEnd("failed")
        delay = float(retry.delay)
        for attempt in range(1, retry.attempts + 1):
            self._recorder.begin(node, attempt)
            try:
                options = self._executor.options(node, self._walk)
                lineage = self._walk.history(node) if reads_lineage(node) else None
                speaker = self._recorder.speaker(node.id)
                end = self._executor.run(node, ready, parts, options, lineage, speaker)
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
            self._recorder.say(
                node.id,
                f"attempt {attempt} of {retry.attempts} failed: {end.message}; trying again in {delay:g}s",
            )
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
        started = time.monotonic()
        try:
            end = self._release_step_by_step(node, ready)
        except ShipctlError as exc:
            status: Status = "failed"
            if isinstance(exc, RunInterruptedError):
                status = "interrupted"
            elif isinstance(exc, GateError):
                status = "rejected"
            end = NodeEnd(status, str(exc), exit_code=exc.exit_code)
        except DamagedInputError:
            raise
        except Exception as exc:  # noqa: BLE001  (a release plugin may raise anything; its record is on the target)
            end = NodeEnd("failed", f"{type(exc).__name__}: {exc}", exit_code=1)
        end.seconds = time.monotonic() - started
        return end

    def _release_step_by_step(self, node: Node, ready: Ready) -> NodeEnd:
        stages = self._walk.stages_scope() if self._pipeline.options[node.id].later else {}
        release = Release.of(self._pipeline, node, ready, self._executor.secrets, stages)
        if release.in_place():
            self._note(release.doubt())
            return release.there()
        drive = Drive(
            run=self._recorder.run,
            watch=self._recorder.watcher(node),
            log=self._recorder.speaker(node.id),
            workdir=self._workdir / node.folder / "release",
            stop=self._stop,
            redact=self._executor.secrets.redact,
            auditor=Auditor(self._pipeline),
            if_running=self._if_running,
            hand_over=self._hand_over,
        )
        try:
            waits = release.waits(drive, retry=self._retry)
            if waits is not None:
                return waits
            self._recorder.begin(node)
            self._pipeline.store.sync()
            self._note(self._pipeline.store.settle())
            self._executor.open_inputs(ready, self._workdir / node.folder / "verify")
            return release.apply(drive, retry=self._retry)
        finally:
            for problem in drive.auditor.problems:
                self._note(problem)

    def _end(self, node: Node, end: NodeEnd) -> None:
        self._walk.ends[node.id] = end
        self._recorder.end(node, end)
        for name in self._dependents[node.id]:
            self._waiting[name] -= 1
            if self._waiting[name] == 0:
                heapq.heappush(self._ready, self._order[name])

    # -- when things go wrong --------------------------------------------------------------------------------

    def _rebuild(self, node: Node, damage: DamagedInputError) -> None:
        """Make the stage run again whose output is damaged, and then what came of it as far as it moved."""
        maker = self._maker(damage.origin)
        self._rebuilds[str(maker)] += 1
        if self._rebuilds[str(maker)] > REBUILDS:
            self._end(
                node,
                NodeEnd("failed", f"{damage}; made again {REBUILDS} times, and still damaged", exit_code=1),
            )
            return
        self._pipeline.store.blob(damage.error.digest).unlink(missing_ok=True)
        if not maker.node:
            self._recorder.say(node.id, f"{damage}; taking it from the project again")
            heapq.heappush(self._ready, self._order[node.id])
            return
        self._recorder.say(node.id, f"{damage}; running {maker.node} again")
        end = self._walk.ends[maker.node]
        if end.fingerprint is not None:
            self._pipeline.store.drop_result(end.fingerprint)
        busy = {item.id for item in self._running.values()}
        ended = self._walk.ends
        below = [
            name
            for name in self._below(maker.node)
            if name not in busy and not (self._nodes[name].is_release and name in ended)
        ]
        again = [name for name in below if name == node.id or name in ended]
        for name in again:
            ended.pop(name, None)
        for name in below:  # those too that have not begun: some of what they waited for is gone
            self._waiting[name] = sum(need not in ended for need in self._nodes[name].needs)
        for name in again:
            if self._waiting[name] == 0:
                heapq.heappush(self._ready, self._order[name])

    def _maker(self, origin: Origin) -> Origin:
        """Return where the damaged bytes were really made, behind stages that pass an input on."""
        artifact = self._walk.artifact(origin)
        lineage = self._walk.lineage([origin])
        same = [
            item
            for item in lineage
            if artifact is not None
            and (other := self._walk.artifact(item)) is not None
            and other.digest == artifact.digest
        ]
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


def _alone(node: Node) -> bool:
    return issubclass(node.cls, Stage) and node.cls.measurement
