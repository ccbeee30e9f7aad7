"""The live display of a run on a terminal.

What is over scrolls up as ordinary lines; below them stands, redrawn in place, what is running now. So the
height of the moving part is the number of stages at work, however many the plan has.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from shipctl.report import text
from shipctl.stages import events
from shipctl.stages.hookspecs import hookimpl
from shipctl.stages.verdicts import Outcome

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import RenderableType
    from rich.live import Live

_REFRESH_PER_SECOND = 8
_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_ASCII_FRAMES = "-\\|/"
_STYLES = {
    "done": ("✓", "green"),
    "cached": ("•", "dim"),
    "in-place": ("•", "dim"),
    "skipped": ("-", "dim"),
    "blocked": ("-", "yellow"),
    "waiting": ("…", "yellow"),
    "rejected": ("✗", "red"),
    "failed": ("✗", "red"),
    "interrupted": ("✗", "yellow"),
}
_OUTCOMES = {
    Outcome.PASS: "green",
    Outcome.INCONCLUSIVE: "yellow",
    Outcome.ERROR: "red",
    Outcome.FAIL: "red",
}
_ASCII = str.maketrans({"✓": "+", "•": ".", "…": "~", "✗": "x", "·": "-"})


@dataclass
class _Running:
    uses: str
    since: float
    """On the monotonic clock: the wall clock may jump."""
    line: str = ""


class Console:
    """Shows a line per stage with a spinner, the time it takes and what its gates said; then a summary."""

    def __init__(self, stream: TextIO, *, verbosity: int = 0, color: bool = True) -> None:
        """``verbosity`` below 0 leaves only what went wrong, above 0 adds what stages log."""
        from rich.console import Console as RichConsole

        self._verbosity = verbosity
        self._console: RichConsole = RichConsole(
            file=stream, no_color=not color, highlight=False, markup=False, emoji=False, soft_wrap=True
        )
        self._unicode = self._console.encoding.lower().startswith("utf")
        self._running: dict[str, _Running] = {}
        self._verdicts: defaultdict[str, list[events.GateDecided]] = defaultdict(list)
        self._width = 0
        self._total = 0
        self._over = 0
        self._live: Live | None = None

    def close(self) -> None:
        """Take the moving part away; the run is over or was broken off."""
        if self._live is not None:
            self._running.clear()
            self._live.stop()
            self._live = None

    @hookimpl
    def shipctl_plan_ready(self, event: events.PlanReady) -> None:
        self._width = max((len(node.node) for node in event.nodes), default=0)
        self._total = len(event.nodes)
        self._print((f"{event.pipeline} {event.version}", "bold"), (f"  run {event.run}", "dim"))

    @hookimpl
    def shipctl_stage_started(self, event: events.StageStarted) -> None:
        self._running[event.node] = _Running(event.uses, time.monotonic())
        self._show()

    @hookimpl
    def shipctl_stage_logged(self, event: events.StageLogged) -> None:
        line = text.printable(event.line)
        if event.node in self._running:
            self._running[event.node].line = line.strip()
        if self._verbosity > 0:
            self._print(("  ", ""), (f"{event.node or 'shipctl'} | ", "dim"), (line, ""))

    @hookimpl
    def shipctl_gate_decided(self, event: events.GateDecided) -> None:
        self._verdicts[event.node].append(event)  # shown below the stage's own line

    @hookimpl
    def shipctl_release_stepped(self, event: events.ReleaseStepped) -> None:
        if event.node in self._running:
            self._running[event.node].line = text.printable(event.message)
        symbol = ("  ↳ " if self._unicode else "  > ", "dim")
        self._print(
            symbol,
            (event.node.ljust(self._width), ""),
            (f"  {event.phase}", "cyan"),
            (f"  {event.message}", ""),
        )

    @hookimpl
    def shipctl_stage_finished(self, event: events.StageFinished) -> None:
        self._running.pop(event.node, None)
        self._over += 1
        symbol, style = _STYLES[event.status]
        good = event.status not in {"failed", "rejected", "blocked", "interrupted"}
        verdicts = self._verdicts.pop(event.node, [])
        passed = sum(decided.verdict.outcome is Outcome.PASS for decided in verdicts)
        notes = [event.message or (text.metrics(event.metrics) if event.status == "done" else "")]
        if passed and event.status == "done":
            notes.append(f"{text.plural(passed, 'gate')} {'passes' if passed == 1 else 'pass'}")
        note = "  ".join(filter(None, notes))
        self._print(
            (f"{symbol} ", style),
            (event.node.ljust(self._width), "" if event.status == "done" or not good else style),
            (f"  {event.status:<8}", style),
            (f" {text.duration(event.seconds) if event.seconds else '':>7}", "dim"),
            (f"  {note}", "dim" if good else ""),
            always=not good,
        )
        for decided in verdicts:
            # what went well is told as a number; what a cached stage passed before is no news at all
            news = self._verbosity > 0 and event.status != "cached"
            if news or decided.verdict.outcome is not Outcome.PASS:
                self._print_verdict(decided)
        self._show()

    @hookimpl
    def shipctl_run_finished(self, event: events.RunFinished) -> None:
        self.close()
        good = event.exit_code == 0
        self._print(
            ("✓ " if good else "✗ ", "green" if good else "red"),
            (f"{event.pipeline}: {text.counts(event.counts)}", "bold"),
            (f" in {text.duration(event.seconds)}", "dim"),
        )

    def _print_verdict(self, event: events.GateDecided) -> None:
        verdict = event.verdict
        self._print(
            (" " * (self._width + 4), ""),
            (f"gate {verdict.gate} ", "dim"),
            (str(verdict.outcome), _OUTCOMES[verdict.outcome]),
            (f"  {verdict.message}", "dim" if verdict.outcome is Outcome.PASS else ""),
            always=verdict.outcome is not Outcome.PASS,
        )

    def _print(self, *parts: tuple[str, str], always: bool = False) -> None:
        from rich.text import Text

        if self._verbosity < 0 and not always:
            return
        line = Text.assemble(*((self._fit(text.printable(part)), style) for part, style in parts))
        self._console.print(line)

    def _fit(self, part: str) -> str:
        return part if self._unicode else part.translate(_ASCII)

    def _show(self) -> None:
        """Start the moving part when a stage starts; rich then redraws it by itself."""
        if self._verbosity < 0 or not self._console.is_terminal:
            return
        if self._live is None:
            from rich.live import Live

            self._live = Live(
                console=self._console,
                get_renderable=self._draw,
                refresh_per_second=_REFRESH_PER_SECOND,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()

    def _draw(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        now = time.monotonic()
        # the drawing thread of rich and the run share this dict: look at a copy
        running = list(self._running.items())
        room = max(1, self._console.height - 2)
        lines = []
        for node, stage in running[:room]:
            # the frame follows the clock, not the number of redraws
            frames = _FRAMES if self._unicode else _ASCII_FRAMES
            parts = (
                (f"{frames[int(now * _REFRESH_PER_SECOND) % len(frames)]} ", "cyan"),
                (node.ljust(self._width), ""),
                (f"  {'running':<8} {now - stage.since:6.1f}s", "cyan"),
                (f"  {self._fit(stage.line or stage.uses)}", "dim"),
            )
            lines.append(Text.assemble(*parts, no_wrap=True, overflow="ellipsis"))
        if running:
            hidden = f", {len(running) - room} not shown" if len(running) > room else ""
            lines.append(
                Text(f"  {self._over}/{self._total} over, {len(running)} running{hidden}", style="dim")
            )
        return Group(*lines)
