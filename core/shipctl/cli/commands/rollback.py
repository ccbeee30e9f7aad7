"""`shipctl rollback`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from shipctl.cli.output import Output, common_options, json_option
from shipctl.cli.planning import context_option, environment_options, spec_argument
from shipctl.cli.running import display_options, finish, if_running_option, lock_timeout_option, watched
from shipctl.cli.specfile import find_spec

if TYPE_CHECKING:
    from shipctl.engine.standing_by import IfRunning


@click.command("rollback")
@spec_argument
@environment_options
@context_option
@click.option(
    "--to", metavar="VERSION|REVISION", help="Which release; the one before what serves by default."
)
@click.option("--stage", metavar="STAGE", help="Which release stage, where the spec has several.")
@lock_timeout_option
@if_running_option
@display_options
@json_option
@common_options
def command(
    spec: Path | None,
    environment: str | None,
    overrides: tuple[str, ...],
    context: str | None,
    to: str | None,
    stage: str | None,
    lock_timeout: float,
    if_running: IfRunning,
    display: str | None,
    events: Path | None,
) -> None:
    """Serve an earlier release again.

    A release that is still under way is aborted instead, by the process that drives it. What was left is not released
    again by `apply` without --retry.
    """
    from shipctl.engine.operations import rollback

    output = Output.current()
    path = find_spec(spec)
    with watched(display, events) as hooks:
        result = rollback(
            path,
            hooks=hooks,
            to=to,
            stage=stage,
            environment=environment,
            overrides=overrides,
            context=context,
            lock_timeout=lock_timeout,
            if_running=if_running,
            say=output.say,
        )
    finish(output, result, hooks)
