"""`shipctl status`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shipctl.cli.output import Output, common_options, json_option
from shipctl.cli.planning import environment_options, spec_argument
from shipctl.cli.releasing import release_line
from shipctl.cli.specfile import find_spec

if TYPE_CHECKING:
    from shipctl.cli.documents.runs import TargetLine
    from shipctl.stages.base import Serving


@click.command("status")
@spec_argument
@environment_options
@json_option
@common_options
def command(spec: Path | None, environment: str | None, overrides: tuple[str, ...]) -> None:
    """Show what serves, since when, from which digest.

    The targets of the spec's release stages are asked; nothing is changed.
    """
    from shipctl.cli.documents.runs import StatusDocument, TargetLine
    from shipctl.engine.operations import status

    output = Output.current()
    targets = tuple(
        TargetLine(
            stage=found.stage,
            target=found.target,
            serving=found.serving,
            problem=found.problem,
            last=None
            if found.record is None
            else release_line(
                found.stage,
                found.target,
                found.record,
                serves=any(item.revision == found.record.revision for item in found.serving),
            ),
        )
        for found in status(find_spec(spec), environment=environment, overrides=overrides)
    )
    for target in targets:
        for line in _lines(target, time.time()):
            output.result(line)
    output.document(StatusDocument(targets=targets))


def _lines(target: TargetLine, now: float) -> list[str]:
    head = f"{click.style(target.stage, bold=True)} on {target.target}: "
    if target.problem:
        lines = [f"{head}{click.style('cannot be asked', fg='red')}: {target.problem}"]
    elif not target.serving:
        lines = [f"{head}nothing serves"]
    else:
        lines = [line for item in target.serving for line in _serving(head, item, now)]
    last = target.last
    if last is not None and not last.serves:
        lines.append(f"  last release  {last.version} ({last.revision[:12]}) {last.phase}: {last.message}")
    return lines


def _serving(head: str, item: Serving, now: float) -> list[str]:
    from shipctl.report import text

    health = click.style("healthy", fg="green") if item.healthy else click.style("does not answer", fg="red")
    facts = {
        "revision": item.revision,
        "since": f"{text.moment(item.since)} ({text.duration(max(0.0, now - item.since))})",
        **item.endpoints,
        **item.details,
    }
    width = max(map(len, facts))
    return [
        f"{head}{item.name} {item.version}, {health}",
        *(f"  {name:<{width}}  {value}" for name, value in facts.items()),
    ]
