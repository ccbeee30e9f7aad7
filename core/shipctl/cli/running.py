"""What the commands that run something have in common: displays, the event log, how the end is told."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from shipctl.cli.displays import colored, default_display, make_display
from shipctl.cli.output import Output
from shipctl.cli.types import DURATION, PATH
from shipctl.errors import SpecError

if TYPE_CHECKING:
    from shipctl.engine.apply import RunResult
    from shipctl.engine.hooks import Hooks

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


def display_options(command: CommandT) -> CommandT:
    """Add ``--display`` and ``--events``."""
    for decorate in (
        click.option(
            "--events",
            metavar="FILE",
            type=PATH,
            help="Append every event to a file, as one line of JSON each.",
        ),
        click.option(
            "--display", metavar="NAME", help="How progress is shown; `console` on a terminal, else `log`."
        ),
    ):
        command = decorate(command)
    return command


def if_running_option(command: CommandT) -> CommandT:
    """Add ``--if-running``."""
    return click.option(
        "--if-running",
        type=click.Choice(["supersede", "queue", "refuse"]),
        default="supersede",
        show_default=True,
        help="While another process releases on the same target: have that aborted, wait for its end, or end with 8.",
    )(command)


def lock_timeout_option(command: CommandT) -> CommandT:
    """Add ``--lock-timeout``."""
    return click.option(
        "--lock-timeout",
        metavar="DURATION",
        type=DURATION,
        default=0.0,
        help="Wait this long for another run of the project, such as 5m; by default not at all.",
    )(command)


@contextmanager
def watched(display: str | None, events: Path | None) -> Iterator[Hooks]:
    """Yield the hooks of a run with its display and event log; close both however the run ends.

    Progress goes to stdout, with ``--json`` to stderr.

    :raises SpecError: if the event file cannot be written, or there is no such display
    """
    from shipctl.engine.hooks import Hooks

    output = Output.current()
    stream = sys.stderr if output.json else sys.stdout
    with ExitStack() as stack:
        shown = make_display(
            display or default_display(stream),
            stream,
            verbosity=output.verbosity,
            color=colored(stream, plain=output.plain),
        )
        stack.callback(shown.close)
        plugins: list[object] = [shown]
        if events is not None:
            try:
                file = stack.enter_context(events.open("a", encoding="utf-8"))
            except OSError as exc:
                message = f"cannot write events to {events}: {exc.strerror}"
                raise SpecError(message) from exc
            log = make_display("events", file)
            stack.callback(log.close)
            plugins.append(log)
        yield Hooks(plugins)


def finish(output: Output, result: RunResult, hooks: Hooks) -> None:
    """Tell how a run ended and exit with its code."""
    for problem in (*hooks.problems, *result.warnings):
        output.complain(str(problem), label="warning")
    if output.json:
        from shipctl.cli.documents.runs import RunDocument

        output.document(RunDocument(**dict(result)))
    if result.exit_code:
        output.complain(result.message)
        click.get_current_context().exit(result.exit_code)
