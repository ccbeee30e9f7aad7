"""Plain lines, one thing that happened each: for CI logs, files and pipes."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from typing import TextIO

from shipctl.report import text
from shipctl.stages import events
from shipctl.stages.hookspecs import hookimpl
from shipctl.stages.verdicts import Outcome

_BAD = {"failed", "rejected", "blocked", "interrupted"}
_REPEATED_S = 30.0
"""Seconds after which a release that stands still is told of again."""
_NUMBERS = re.compile(r"[+-]?\d[\d.,]*( (ms|µs|s|points)\b)?")


class PlainLog:
    """Writes `12:01:02 onnx started`; every line can be found with grep."""

    def __init__(
        self, stream: TextIO, *, verbosity: int = 0, color: bool = False, now: Callable[[], float] = time.time
    ) -> None:
        """``verbosity`` below 0 leaves only what went wrong, above 0 adds what stages log; colour is never used."""
        self._stream = stream
        self._verbosity = verbosity
        self._now = now
        self._passed: Counter[str] = Counter()
        self._told: dict[str, tuple[str, float]] = {}
        """What was said last of a release or a gate, numbers aside, and when."""

    def close(self) -> None:
        """Nothing is held open."""

    def _write(self, when: float, line: str) -> None:
        first, *rest = text.printable(line).rstrip().split("\n")
        print(
            f"{text.clock(when)} {first}",
            *(f"    {more}" for more in rest),
            sep="\n",
            file=self._stream,
            flush=True,
        )

    @hookimpl
    def shipctl_stage_started(self, event: events.StageStarted) -> None:
        if self._verbosity >= 0:
            again = f" (attempt {event.attempt})" if event.attempt > 1 else ""
            self._write(event.time, f"{event.node} started{again}")

    @hookimpl
    def shipctl_stage_logged(self, event: events.StageLogged) -> None:
        if self._verbosity > 0:
            self._write(self._now(), f"{event.node or 'shipctl'} | {event.line}")

    @hookimpl
    def shipctl_stage_finished(self, event: events.StageFinished) -> None:
        if self._verbosity < 0 and event.status not in _BAD:
            return
        passed = self._passed.pop(event.node, 0)
        took = f" in {text.duration(event.seconds)}" if event.seconds else ""
        line = f"{event.node} {event.status}{took}"
        if event.message:
            line += f": {event.message}"
        elif event.metrics and event.status == "done":
            line += f"  {text.metrics(event.metrics)}"
        if passed:
            line += f"  ({passed} gate{'s' if passed > 1 else ''} passed)"
        self._write(event.time, line)

    @hookimpl
    def shipctl_gate_decided(self, event: events.GateDecided) -> None:
        verdict = event.verdict
        if verdict.outcome is Outcome.PASS:
            self._passed[event.node] += 1
        told = self._verbosity <= 0 and self._repeats(
            f"{event.node}/{verdict.gate}", str(verdict.outcome), self._now()
        )
        if (self._verbosity > 0 or verdict.outcome is not Outcome.PASS) and not told:
            self._write(self._now(), f"gate {event.node}/{verdict.gate} {verdict.outcome}: {verdict.message}")

    @hookimpl
    def shipctl_release_stepped(self, event: events.ReleaseStepped) -> None:
        if self._verbosity < 0:
            return
        said = f"{event.phase} {_NUMBERS.sub('#', event.message)}"
        if self._verbosity > 0 or not self._repeats(event.node, said, event.time):
            self._write(event.time, f"{event.node} {event.phase} on {event.target}: {event.message}")

    def _repeats(self, of: str, said: str, when: float) -> bool:
        """Whether the same was said a moment ago: a release looks every second, and a person need not read it."""
        last = self._told.get(of)
        if last is not None and last[0] == said and when - last[1] < _REPEATED_S:
            return True
        self._told[of] = (said, when)
        return False

    @hookimpl
    def shipctl_run_finished(self, event: events.RunFinished) -> None:
        if self._verbosity >= 0:
            ended = "finished" if event.exit_code == 0 else f"ended with exit code {event.exit_code}"
            self._write(
                event.time,
                f"run {event.run} {ended} in {text.duration(event.seconds)}: {text.counts(event.counts)}",
            )
