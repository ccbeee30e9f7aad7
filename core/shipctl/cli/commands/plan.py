"""`shipctl plan`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from shipctl.cli.output import Output, common_options, json_option
from shipctl.cli.planning import (
    count_actions,
    option_words,
    plan_lines,
    plan_options,
    spec_argument,
    summary_line,
    what_still_works,
)
from shipctl.cli.specfile import find_spec
from shipctl.cli.types import PATH


@click.command("plan")
@spec_argument
@plan_options
@click.option(
    "-o",
    "--output",
    "file",
    metavar="FILE",
    type=PATH,
    help="Pin the plan in a file, for `shipctl apply FILE`.",
)
@json_option
@common_options
def command(
    spec: Path | None,
    environment: str | None,
    overrides: tuple[str, ...],
    context: str | None,
    until: str | None,
    file: Path | None,
) -> None:
    """Show what apply would do, and why; nothing is changed.

    A line per stage: run (and which input, option, source or tool changed), cached, skipped, release (and
    what would change on the target), in-place. Stages that cannot run here say what is missing.
    """
    from shipctl.engine.plan import make_plan

    output = Output.current()
    path = find_spec(spec)
    plan = make_plan(path, environment=environment, overrides=overrides, context=context, until=until)
    if file is not None:
        plan.write(file)
    ready = plan.ready()
    for line in plan_lines(ready.nodes):
        output.result(line)
    output.result(summary_line(ready.nodes))
    hint = what_still_works(ready.nodes, path, option_words(environment, overrides, context))
    if hint:
        output.result(hint)
    if file is not None:
        output.say(f"written to {file}; carry it out with `{shlex.join(['shipctl', 'apply', str(file)])}`")
    if output.json:
        from shipctl.cli.documents.runs import PlanDocument

        output.document(
            PlanDocument(
                pipeline=ready.pipeline,
                version=ready.version,
                digest=ready.digest,
                nodes=ready.nodes,
                counts=count_actions(ready.nodes),
                file=None if file is None else str(file),
            )
        )
