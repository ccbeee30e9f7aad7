"""`shipctl history`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shipctl.cli.output import Output, common_options, json_option, limit_option
from shipctl.cli.planning import context_option, environment_options, spec_argument
from shipctl.cli.registering import clean
from shipctl.cli.releasing import release_line
from shipctl.cli.specfile import find_spec
from shipctl.errors import SpecError

if TYPE_CHECKING:
    from shipctl.cli.documents.runs import ReleaseLine, RunLine

_DIGEST = re.compile(r"\b[0-9a-f]{64}\b")


@click.command("history")
@spec_argument
@environment_options
@context_option
@limit_option("How many of each to show.")
@click.option(
    "--audit",
    "audited",
    is_flag=True,
    help="Show the audit log instead: who applied, published, rolled back or retired what.",
)
@click.option(
    "--expect-head",
    metavar="DIGEST",
    help="With --audit: fail unless the entry with this digest, noted earlier, is still there.",
)
@json_option
@common_options
def command(
    spec: Path | None,
    environment: str | None,
    overrides: tuple[str, ...],
    context: str | None,
    limit: int,
    audited: bool,  # noqa: FBT001
    expect_head: str | None,
) -> None:
    """Show runs and releases, newest first; releases of all environments, or of the one that is chosen.

    Records that a target keeps itself, for every machine, are asked of it.

    The audit log is kept in the store that the spec publishes to. Its entries are chained by their digests, so that
    one that was changed or taken out is found; note the digest of the newest elsewhere to find a log that was cut.
    """
    if audited:
        _audit(spec, environment, overrides, limit, expect_head)
        return
    if expect_head:
        raise SpecError("--expect-head goes with --audit")
    from shipctl.cli.documents.runs import HistoryDocument, RunLine
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
        found = history(
            path,
            environment=environment,
            overrides=overrides,
            context=context,
            registry=registry,
            complain=lambda problem: output.complain(clean(problem), label="warning"),
        )
        releases = [
            release_line(row.stage, row.target, row.record, serves=row.serves, environment=row.environment)
            for row in found[:limit]
        ]
    for line in _lines(runs, releases):
        output.result(line)
    output.document(HistoryDocument(runs=tuple(runs), releases=tuple(releases)))


def _audit(
    spec: Path | None,
    environment: str | None,
    overrides: tuple[str, ...],
    limit: int,
    expect_head: str | None,
) -> None:
    from shipctl.cli.documents.audit import AuditDocument
    from shipctl.cli.registering import audit_line
    from shipctl.cli.stores import chosen_project, chosen_store
    from shipctl.report import text
    from shipctl.store.log import audit
    from shipctl.store.objects import open_store

    output = Output.current()
    store, base = chosen_store(None, spec, environment, overrides)
    heads = chosen_project(spec).heads()
    with open_store(store, base) as objects:
        entries = audit(objects, heads=heads).verify(expect_head=expect_head)
        uri = objects.uri
    lines = [audit_line(entry) for entry in reversed(entries[-limit:])]
    for line in lines:
        details = ", ".join(
            f"{key} {_short(value)}" for key, value in line.details.items() if value or value == 0
        )
        output.result(
            f"{line.number:>5}  {text.moment(line.time)}  {line.actor}  {line.action}  {line.subject}"
            f"{f'  ({details})' if details else ''}"
        )
    head = entries[-1].digest if entries else None
    output.result(
        f"{len(entries)} entries in {uri}, the chain is whole; head sha256:{head}"
        if head
        else f"the audit log of {uri} is empty"
    )
    output.document(AuditDocument(store=uri, entries=tuple(lines), total=len(entries), head=head))


def _short(value: object) -> str:
    """Write a detail of an entry: digests by their beginning, the rest as JSON where it is no text."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return _DIGEST.sub(lambda found: found[0][:12], text.partition("\n")[0])


def _lines(runs: list[RunLine], releases: list[ReleaseLine]) -> list[str]:
    from shipctl.report import text

    lines = []
    if releases:
        lines.append(click.style("releases:", bold=True))
        width = max(len(item.environment or "") for item in releases)
        for item in releases:
            state = "serves" if item.serves else "rolled-back" if item.rolled_back else item.phase
            note = item.message.partition("\n")[0]
            where = f"{item.environment or '-':<{width}}  " if width else ""
            lines.append(
                f"  {item.number:>3}  {text.moment(item.started)}  {state:<11}  "
                f"{where}{item.version}  "
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
