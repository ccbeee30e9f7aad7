"""`shipctl apply`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shipctl.cli.output import Output, common_options, json_option
from shipctl.cli.planning import option_words, plan_options, spec_argument, what_still_works
from shipctl.cli.running import display_options, finish, if_running_option, lock_timeout_option, watched
from shipctl.cli.specfile import find_spec
from shipctl.errors import SpecError, UnavailableError

if TYPE_CHECKING:
    from shipctl.engine.standing_by import IfRunning


@click.command("apply")
@spec_argument
@plan_options
@click.option(
    "--jobs",
    "-j",
    metavar="N",
    type=click.IntRange(min=1),
    help="Stages side by side at most; the processors by default.",
)
@lock_timeout_option
@if_running_option
@click.option("--retry", is_flag=True, help="Release again what was rolled back before.")
@click.option(
    "--no-watch",
    "hand_over",
    is_flag=True,
    help="End with 0 once what is released is stable, and leave watching it to `shipctl watch`.",
)
@display_options
@json_option
@common_options
def command(
    spec: Path | None,
    environment: str | None,
    overrides: tuple[str, ...],
    context: str | None,
    until: str | None,
    jobs: int | None,
    lock_timeout: float,
    if_running: IfRunning,
    retry: bool,  # noqa: FBT001
    hand_over: bool,  # noqa: FBT001
    display: str | None,
    events: Path | None,
) -> None:
    """Do what a spec, or a plan file of `shipctl plan -o`, says.

    Stages that are done already are not repeated, also after a crash. A plan file is carried out exactly, or
    refused (exit code 5) when something that it pinned has changed. A release that another process drives on the
    same target is aborted by it first; the same one is waited for.
    """
    from shipctl.engine.apply import apply
    from shipctl.engine.plan import is_plan_file, make_plan, read_plan

    output = Output.current()
    path = find_spec(spec)
    pinned = is_plan_file(path)
    if pinned:
        if environment or overrides or until or context is not None:
            message = (
                f"{path} is a plan file, which pins all of that: leave out -e, --set, --context and --until"
            )
            raise SpecError(message)
        plan = read_plan(path)
    else:
        plan = make_plan(path, environment=environment, overrides=overrides, context=context, until=until)
    words = option_words(environment, overrides, context)
    hint = None if pinned else what_still_works(plan.nodes, path, words)
    with watched(display, events) as hooks:
        try:
            result = apply(
                plan,
                hooks=hooks,
                jobs=jobs,
                lock_timeout=lock_timeout,
                if_running=if_running,
                say=output.say,
                retry=retry,
                hand_over=hand_over,
                arguments=sys.argv[1:] if sys.argv[1:2] == ["apply"] else None,
            )
        except UnavailableError as exc:
            raise (UnavailableError(f"{exc}\n{hint}") if hint else exc) from None
    finish(output, result, hooks)
