"""`shipctl status`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shipctl.cli.output import Output, common_options, json_option
from shipctl.cli.planning import context_option, environment_options, spec_argument
from shipctl.cli.releasing import details_of, endpoints_of, release_line
from shipctl.cli.specfile import find_spec
from shipctl.cli.types import DURATION

if TYPE_CHECKING:
    from shipctl.cli.documents.runs import TargetLine
    from shipctl.engine.operations import TargetStatus
    from shipctl.stages.base import Serving

_SHORTEST = 0.1
"""Seconds between two looks at least."""


@click.command("status")
@spec_argument
@environment_options
@context_option
@click.option(
    "--watch", "watched", is_flag=True, help="Go on showing it until the release that is under way ends."
)
@click.option(
    "--interval",
    metavar="DURATION",
    type=DURATION,
    default="1s",
    show_default=True,
    help="With --watch: the time between two looks.",
)
@json_option
@common_options
def command(
    spec: Path | None,
    environment: str | None,
    overrides: tuple[str, ...],
    context: str | None,
    watched: bool,  # noqa: FBT001
    interval: float,
) -> None:
    """Show what serves, since when, from which digest.

    The targets of the spec's release stages are asked; nothing is changed. Where metrics are read, processes and logs
    are shown with -v, and always with --json; with --watch, that document is the one of the end.
    """
    from shipctl.cli.documents.runs import StatusDocument
    from shipctl.engine.operations import looking

    output = Output.current()
    look = looking(find_spec(spec), environment=environment, overrides=overrides, context=context)
    if watched:
        from shipctl.cli.watching import watch

        found = watch(look, max(interval, _SHORTEST), output)
    else:
        found = look()
    targets = tuple(target_line(item) for item in found)
    verbose = output.verbosity > 0
    for target in targets:
        for line in target_lines(target, time.time(), verbose=verbose):
            output.result(line)
    output.document(StatusDocument(targets=targets))


def target_line(found: TargetStatus) -> TargetLine:
    """Return what a target serves as the document shows it."""
    from shipctl.cli.documents.runs import TargetLine

    last = found.record
    return TargetLine(
        stage=found.stage,
        target=found.target,
        environment=found.environment,
        serving=found.serving,
        problem=found.problem,
        last=None
        if last is None
        else release_line(
            found.stage,
            found.target,
            last,
            serves=any(item.revision == last.revision for item in found.serving),
            environment=found.environment,
        ),
    )


def target_lines(target: TargetLine, now: float, *, verbose: bool = False) -> list[str]:
    """Write what a target serves."""
    where = f"{target.target} in {target.environment}" if target.environment else target.target
    head = f"{click.style(target.stage, bold=True)} on {where}: "
    if target.problem:
        lines = [f"{head}{click.style('cannot be asked', fg='red')}: {target.problem}"]
    elif not target.serving:
        lines = [f"{head}nothing serves"]
    else:
        lines = [line for item in target.serving for line in _serving(head, item, now, verbose=verbose)]
    last = target.last
    if last is not None and not last.serves:
        lines.append(f"  last release  {last.version} ({last.revision[:12]}) {last.phase}: {last.message}")
    return lines


def _serving(head: str, item: Serving, now: float, *, verbose: bool) -> list[str]:
    from shipctl.report import text

    health = click.style("healthy", fg="green") if item.healthy else click.style("does not answer", fg="red")
    facts = {
        "revision": item.revision,
        "since": f"{text.moment(item.since)} ({text.duration(max(0.0, now - item.since))})",
        **endpoints_of(item, verbose=verbose),
        **details_of(item, verbose=verbose),
    }
    width = max(map(len, facts))
    return [
        f"{head}{item.name} {item.version}, {health}",
        *(f"  {name:<{width}}  {value}" for name, value in facts.items()),
    ]
