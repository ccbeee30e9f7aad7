"""`status --watch`: a release as it goes, redrawn in place on a terminal, else a line for whatever has changed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from shipctl.cli.displays import colored, default_display
from shipctl.cli.output import Output
from shipctl.cli.registering import clean
from shipctl.cli.releasing import details_of

if TYPE_CHECKING:
    from rich.console import RenderableType

    from shipctl.engine.operations import TargetStatus
    from shipctl.stages.verdicts import Verdict

Look = Callable[[], "list[TargetStatus]"]

_SHORT = 40
"""Characters: one word that is longer is a digest or a path, which `status` shows."""
_STYLES = {"pass": "green", "inconclusive": "yellow", "error": "red", "fail": "red"}


def watch(look: Look, interval: float, output: Output) -> list[TargetStatus]:
    """Show what is under way every ``interval`` seconds until nothing is, and return the last look."""
    live = not output.json and not output.plain and default_display(sys.stdout) == "console"
    return _live(look, interval) if live else _lines(look, interval, output)


def _lines(look: Look, interval: float, output: Output) -> list[TargetStatus]:
    shown: dict[str, str] = {}
    while True:
        found = look()
        for item in found:
            for key, line in _facts(item, verbose=output.verbosity > 0):
                if shown.get(key) != line:
                    output.say(f"{time.strftime('%H:%M:%S')} {line}")
                    shown[key] = line
        if not any(item.under_way for item in found):
            return found
        time.sleep(interval)


def _live(look: Look, interval: float) -> list[TargetStatus]:
    from rich.console import Console, Group
    from rich.live import Live

    console = Console(no_color=not colored(sys.stdout, plain=False))
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            found = look()
            if not any(item.under_way for item in found):
                return found
            now = time.strftime("%H:%M:%S")
            live.update(Group(*(part for item in found for part in screen(item, now))), refresh=True)
            time.sleep(interval)


def screen(found: TargetStatus, now: str) -> Iterator[RenderableType]:
    """Yield what the terminal shows of one target, the most important first: what does not fit is cut at the end."""
    from rich.table import Table
    from rich.text import Text

    record = found.record
    if record is not None:
        head = Text(f"{now}  {_place(found)}: {_what(found)} ")
        head.append(str(record.phase), style="bold")
        yield head
        yield _indented(Text(clean(record.message)))
    if found.problem is not None:
        yield _indented(Text(f"cannot be asked: {clean(found.problem)}", style="red"))
    for item in found.serving:
        line = Text(f"{item.name} {item.version} ({item.revision[:12]}) ")
        line.append(*(("healthy", "green") if item.healthy else ("does not answer", "red")))
        for name, value in details_of(item, verbose=False).items():
            if len(value) <= _SHORT or " " in value:
                line.append(f"  {name}={clean(value)}")
        yield _indented(line)
    table = Table.grid(padding=(0, 1))
    for _ in range(2):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    worst_first = sorted(found.verdicts, key=lambda item: -item.outcome.badness)
    for verdict in worst_first:
        outcome = str(verdict.outcome)
        message = clean(verdict.message).removeprefix(f"{clean(verdict.gate)} ")
        table.add_row(Text(outcome, style=_STYLES[outcome]), Text(clean(verdict.gate)), Text(message))
    if worst_first:
        yield _indented(table)


def _indented(part: RenderableType) -> RenderableType:
    from rich.padding import Padding

    return Padding(part, (0, 0, 0, 2))


def _place(found: TargetStatus) -> str:
    return f"{found.stage} on {found.target}{f' in {found.environment}' if found.environment else ''}"


def _what(found: TargetStatus) -> str:
    """Name the release that was begun last."""
    record = found.record
    if record is None:
        return "nothing"
    what = "rollback to" if record.intent == "rollback" else "release of"
    return f"{what} {record.version} ({record.revision[:12]})"


def _facts(found: TargetStatus, *, verbose: bool) -> Iterator[tuple[str, str]]:
    """Yield what can change, each with a name that stays: the phase, what serves and how, what gates said."""
    place, record = _place(found), found.record
    if record is not None:
        yield f"{found.stage} phase", f"{place}: {_what(found)} {record.phase}: {clean(record.message)}"
    if found.problem is not None:
        yield f"{found.stage} problem", f"{place}: cannot be asked: {clean(found.problem)}"
    for item in found.serving:
        health = "healthy" if item.healthy else "does not answer"
        details = "".join(
            f"  {name}={clean(value)}" for name, value in details_of(item, verbose=verbose).items()
        )
        key = f"{found.stage} serving {item.name} {item.revision}"
        yield key, f"{place}: {item.name} {item.version} ({item.revision[:12]}) {health}{details}"
    for verdict in found.verdicts:
        yield f"{found.stage} gate {verdict.gate} {verdict.metric}", f"{place}: {_said(verdict)}"


def _said(verdict: Verdict) -> str:
    return f"{verdict.gate} {verdict.outcome}: {clean(verdict.message)}"
