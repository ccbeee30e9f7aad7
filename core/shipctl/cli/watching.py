"""`status --watch`: a release as it goes, redrawn in place on a terminal, else a line for whatever has changed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from shipctl.cli.displays import colored, default_display
from shipctl.cli.output import Output
from shipctl.cli.registering import clean

if TYPE_CHECKING:
    from shipctl.engine.operations import TargetStatus

Look = Callable[[], "list[TargetStatus]"]


def watch(look: Look, interval: float, output: Output) -> list[TargetStatus]:
    """Show what is under way every ``interval`` seconds until nothing is, and return the last look."""
    live = not output.json and not output.plain and default_display(sys.stdout) == "console"
    return _live(look, interval) if live else _lines(look, interval, output)


def _lines(look: Look, interval: float, output: Output) -> list[TargetStatus]:
    shown: dict[str, str] = {}
    while True:
        found = look()
        for item in found:
            for key, line in _facts(item):
                if shown.get(key) != line:
                    output.say(f"{time.strftime('%H:%M:%S')} {line}")
                    shown[key] = line
        if not any(item.under_way for item in found):
            return found
        time.sleep(interval)


def _live(look: Look, interval: float) -> list[TargetStatus]:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(no_color=not colored(sys.stdout, plain=False))
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            found = look()
            if not any(item.under_way for item in found):
                return found
            lines = [line for item in found for _, line in _facts(item)]
            live.update(Text("\n".join([time.strftime("%H:%M:%S"), *lines]), no_wrap=True), refresh=True)
            time.sleep(interval)


def _facts(found: TargetStatus) -> Iterator[tuple[str, str]]:
    """Yield what can change, each with a name that stays: the phase, what serves and how, what gates said."""
    place = f"{found.stage} on {found.target}{f' in {found.environment}' if found.environment else ''}"
    record = found.record
    if record is not None:
        what = "rollback to" if record.intent == "rollback" else "release of"
        yield (
            f"{found.stage} phase",
            f"{place}: {what} {record.version} ({record.revision[:12]}) {record.phase}: {clean(record.message)}",
        )
    if found.problem is not None:
        yield f"{found.stage} problem", f"{place}: cannot be asked: {clean(found.problem)}"
    for item in found.serving:
        health = "healthy" if item.healthy else "does not answer"
        details = "".join(f"  {name}={clean(value)}" for name, value in item.details.items())
        key = f"{found.stage} serving {item.name} {item.revision}"
        yield key, f"{place}: {item.name} {item.version} ({item.revision[:12]}) {health}{details}"
    for verdict in found.verdicts:
        line = f"{place}: {verdict.gate} {verdict.outcome}: {clean(verdict.message)}"
        yield f"{found.stage} gate {verdict.gate} {verdict.metric}", line
