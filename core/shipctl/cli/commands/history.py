"""`shipctl history`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from shipctl.cli.output import Output, common_options, json_option
from shipctl.cli.planning import environment_options, spec_argument
from shipctl.cli.releasing import release_line
from shipctl.cli.specfile import find_spec

if TYPE_CHECKING:
    from shipctl.cli.documents import ReleaseLine, RunLine


@click.command("history")
@spec_argument
@environment_options
@click.option(
    "-n",
    "--limit",
    metavar="N",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="How many of each to show.",
)
@json_option
@common_options
def command(spec: Path | None, environment: str | None, overrides: tuple[str, ...], limit: int) -> None:
    """Show runs and releases, newest first."""
    from shipctl.cli.documents import HistoryDocument, RunLine
    from shipctl.engine.journal import Journal
    from shipctl.engine.operations import history
    from shipctl.engine.project import Project
    from shipctl.spec import load_spec
    from shipctl.stages.base import ReleaseStage
    from shipctl.stages.registry import Registry

    output = Output.current()
    path = find_spec(spec)
    loaded = load_spec(path, environment=environment, overrides=overrides)
    project = Project.of(path)
    runs: list[RunLine] = []
    if project.journal.exists():
        with Journal(project.journal) as journal:
            rows = journal.runs(limit=limit, pipeline=loaded.spec.metadata.name)
        runs = [RunLine(**{name: getattr(row, name) for name in RunLine.model_fields}) for row in rows]
    registry = Registry()
    releases: list[ReleaseLine] = []
    if any(issubclass(registry.load(stage.uses), ReleaseStage) for stage in loaded.spec.stages):
        found = history(path, environment=environment, overrides=overrides, registry=registry)
        releases = [
            release_line(row.stage, row.target, row.record, serves=row.serves) for row in found[:limit]
        ]
    for line in _lines(runs, releases):
        output.result(line)
    output.document(HistoryDocument(runs=tuple(runs), releases=tuple(releases)))


def _lines(runs: list[RunLine], releases: list[ReleaseLine]) -> list[str]:
    from shipctl.report import text

    lines = []
    if releases:
        lines.append(click.style("releases:", bold=True))
        for item in releases:
            state = "serves" if item.serves else "rolled-back" if item.rolled_back else item.phase
            note = item.message.partition("\n")[0]
            lines.append(
                f"  {item.number:>3}  {text.moment(item.started)}  {state:<11}  {item.version}  "
                f"{text.short(item.revision)}  {item.stage} on {item.target} by {item.user}"
                f"{' (rollback)' if item.intent == 'rollback' else ''}: {note}"
            )
    lines.append(
        click.style("runs:", bold=True) if runs else "nothing has run yet; begin with `shipctl apply`"
    )
    for run in runs:
        state = (
            "unfinished"
            if run.exit_code is None
            else "done"
            if run.exit_code == 0
            else f"exit {run.exit_code}"
        )
        took = text.duration(run.finished - run.started) if run.finished else ""
        note = (run.message or "").partition("\n")[0]
        lines.append(
            f"  {run.id}  {text.moment(run.started)}  {state:<10}  {took:>7}  {run.version}  {run.command}"
            f"{f': {note}' if note else ''}"
        )
    return lines
