"""Writes what happens in a run to the journal and tells the hooks, with secrets taken out of both."""

from __future__ import annotations

import platform
import secrets as randomness
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from shipctl.engine.journal import Journal, RunRow, StageRow, StepRow
from shipctl.engine.walk import GOOD, NodeEnd
from shipctl.stages.events import (
    Event,
    GateDecided,
    ReleaseStepped,
    RunFinished,
    StageFinished,
    StageLogged,
    StageStarted,
)
from shipctl.stages.verdicts import Verdict
from shipctl.store.log import Actor

if TYPE_CHECKING:
    from shipctl.engine.graph import Node
    from shipctl.engine.hooks import Hooks
    from shipctl.engine.pipeline import Pipeline
    from shipctl.engine.secrets import Secrets


def new_run_id() -> str:
    """Return an id that sorts by time."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{randomness.token_hex(3)}"


class Recorder:
    """The record of one run. Its methods may be called from any thread."""

    def __init__(self, pipeline: Pipeline, journal: Journal, hooks: Hooks, secrets: Secrets) -> None:
        self.run = new_run_id()
        self._pipeline = pipeline
        self._journal = journal
        self._hooks = hooks
        self._secrets = secrets
        self._lock = threading.Lock()
        self._began = time.time()
        self._reasons: Mapping[str, Sequence[str]] = {}
        self._started: dict[str, tuple[float, int]] = {}

    def fire(self, event: Event) -> None:
        """Tell the hooks, one event at a time."""
        with self._lock:
            self._hooks.fire(event)

    # -- the run -------------------------------------------------------------------------------------------

    def begin_run(
        self, command: str, plan: str = "", reasons: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        """Record that the run begins; ``reasons`` say, per node, why it is to run."""
        self._reasons = reasons or {}
        self._journal.begin_run(
            RunRow(
                id=self.run,
                pipeline=self._pipeline.name,
                version=self._pipeline.version,
                spec=str(self._pipeline.loaded.path),
                command=command,
                user=Actor.current().user,
                host=platform.node(),
                plan=plan,
                started=self._began,
                finished=None,
                exit_code=None,
                message=None,
            )
        )

    def end_run(self, exit_code: int, message: str, ends: Mapping[str, NodeEnd]) -> None:
        """Record how the run ended."""
        message = self._secrets.redact(message)
        now = time.time()
        self._journal.end_run(self.run, now, exit_code, message)
        self.fire(
            RunFinished(
                run=self.run,
                pipeline=self._pipeline.name,
                exit_code=exit_code,
                message=message,
                seconds=now - self._began,
                counts=dict(Counter(end.status for end in ends.values())),
                time=now,
            )
        )

    # -- a node --------------------------------------------------------------------------------------------

    def begin(self, node: Node, attempt: int = 1) -> None:
        """Record that a node begins to run."""
        now = time.time()
        self._started[node.id] = (now, attempt)
        self._journal.record_stage(self._row(node, "running", ""))
        self.fire(StageStarted(run=self.run, node=node.id, uses=node.spec.uses, attempt=attempt, time=now))

    def end(self, node: Node, end: NodeEnd) -> None:
        """Record how a node ended, and what its gates said."""
        end.message = self._secrets.redact(end.message)
        with self._journal.transaction():
            self._journal.record_stage(self._row(node, end.status, end.message, end))
            if end.components is not None and end.status in GOOD | {"rejected"} and end.status != "cached":
                self._journal.remember_components(self._pipeline.name, node.id, end.components)
        for verdict in end.verdicts:
            self.gate(node, verdict)
        self.fire(
            StageFinished(
                run=self.run,
                node=node.id,
                uses=node.spec.uses,
                status=end.status,
                message=end.message,
                seconds=end.seconds,
                peak_memory=end.peak_memory,
                fingerprint=end.fingerprint,
                outputs={name: item.digest for name, item in end.outputs.items()},
                metrics=end.metrics,
                time=time.time(),
            )
        )

    def _row(self, node: Node, status: str, message: str, end: NodeEnd | None = None) -> StageRow:
        started, attempt = self._started.get(node.id, (time.time(), 1))
        return StageRow(
            run=self.run,
            node=node.id,
            stage=node.spec.id,
            uses=node.spec.uses,
            attempt=attempt,
            status=status,
            message=message,
            reasons=list(self._reasons.get(node.id, ())),
            fingerprint=end.fingerprint if end is not None else None,
            started=started,
            seconds=end.seconds if end is not None else None,
            peak_memory=end.peak_memory if end is not None else None,
        )

    def say(self, node: str, line: str) -> None:
        """Pass on a line that a stage logged or printed."""
        self.fire(StageLogged(run=self.run, node=node, line=self._secrets.redact(line)))

    def speaker(self, node: str) -> Callable[[str], None]:
        """Return :meth:`say` for one node."""
        return lambda line: self.say(node, line)

    def gate(self, node: Node, verdict: Verdict) -> None:
        """Record the answer of a gate."""
        verdict = verdict.model_copy(update={"message": self._secrets.redact(verdict.message)})
        self._journal.record_verdict(self.run, node.id, verdict, time.time())
        self.fire(GateDecided(run=self.run, node=node.id, verdict=verdict))

    def watcher(self, node: Node) -> Callable[[ReleaseStepped, Sequence[Verdict]], None]:
        """Return what records the steps of one release."""

        def watch(step: ReleaseStepped, verdicts: Sequence[Verdict]) -> None:
            step = step.model_copy(update={"run": self.run, "message": self._secrets.redact(step.message)})
            self._journal.record_step(
                StepRow(
                    run=self.run,
                    node=node.id,
                    target=step.target,
                    revision=step.revision,
                    phase=step.phase,
                    message=step.message,
                    time=step.time,
                )
            )
            for verdict in verdicts:
                self.gate(node, verdict)
            self.fire(step)

        return watch
