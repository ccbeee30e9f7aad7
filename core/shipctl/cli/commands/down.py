"""`shipctl down`."""

from __future__ import annotations

from pathlib import Path

import click

from shipctl.cli.output import Output, common_options, json_option
from shipctl.cli.planning import context_option, environment_options, spec_argument
from shipctl.cli.specfile import find_spec
from shipctl.cli.types import DURATION


@click.command("down")
@spec_argument
@environment_options
@context_option
@click.option(
    "--lock-timeout",
    metavar="DURATION",
    type=DURATION,
    default=0.0,
    help="Wait this long for another run of the project.",
)
@json_option
@common_options
def command(
    spec: Path | None,
    environment: str | None,
    overrides: tuple[str, ...],
    context: str | None,
    lock_timeout: float,
) -> None:
    """Stop what a pipeline runs on its targets; artifacts and history stay, and `apply` starts it again."""
    from shipctl.cli.documents.runs import DownDocument
    from shipctl.engine.operations import down

    output = Output.current()

    def say(line: str) -> None:
        if output.verbosity > 0:
            output.say(line, dim=True)

    stopped = down(
        find_spec(spec),
        say=say,
        environment=environment,
        overrides=overrides,
        context=context,
        lock_timeout=lock_timeout,
    )
    for line in stopped or ["nothing runs"]:
        output.say(line)
    output.document(DownDocument(stopped=tuple(stopped)))
