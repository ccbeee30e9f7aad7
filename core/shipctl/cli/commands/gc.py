"""`shipctl gc`."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import click

from shipctl.cli.output import Output, common_options, json_option
from shipctl.cli.planning import environment_options, spec_argument
from shipctl.cli.stores import store_option
from shipctl.cli.types import DURATION

if TYPE_CHECKING:
    from shipctl.engine.project import Project
    from shipctl.store.gc import Collected, Counted


@click.command("gc")
@spec_argument
@store_option
@environment_options
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@click.option(
    "--min-age",
    metavar="DURATION",
    type=DURATION,
    default="1d",
    show_default=True,
    help="Keep whatever was written later than that.",
)
@click.option(
    "--keep-results",
    metavar="DURATION",
    type=DURATION,
    default="30d",
    show_default=True,
    help="Keep results of stages for that long after they were made.",
)
@click.option(
    "--keep-retired",
    metavar="DURATION",
    type=DURATION,
    default="30d",
    show_default=True,
    help="Keep versions for that long after they were retired.",
)
@click.option(
    "--lock-timeout",
    metavar="DURATION",
    type=DURATION,
    default=0.0,
    help="Wait this long for a run of the project, where the store is its own.",
)
@json_option
@common_options
def command(
    spec: Path | None,
    store: str | None,
    environment: str | None,
    overrides: tuple[str, ...],
    dry_run: bool,  # noqa: FBT001
    min_age: float,
    keep_results: float,
    keep_retired: float,
    lock_timeout: float,
) -> None:
    """Remove from a store what nothing refers to any more.

    What a version that is not retired, an alias, a target that serves or could go back, or a publication that is
    going on refers to is never touched, nor are the registry and the audit log. If it cannot be told what one of them
    needs, nothing is deleted.
    """
    from shipctl.cli.documents.gc import GcDocument
    from shipctl.cli.stores import chosen_project, chosen_store
    from shipctl.engine.locks import project_lock
    from shipctl.release.needs import local_needs
    from shipctl.store.gc import collect
    from shipctl.store.objects import open_store

    output = Output.current()
    chosen, base = chosen_store(store, spec, environment, overrides)
    with open_store(chosen, base) as objects:
        owner = _owner(objects.uri)
        project = chosen_project(spec)
        targets = {place.targets for place in (project, owner) if place is not None}
        # The project's own runs take no leases while they work: they hold the project's lock.
        alone = (
            project_lock(owner.state / "lock", "shipctl gc", lock_timeout)
            if owner is not None and owner.state.is_dir() and not dry_run
            else nullcontext()
        )
        with alone:
            collected = collect(
                objects,
                extra_roots={digest for folder in targets for digest in local_needs(folder)},
                min_age=min_age,
                keep_results=keep_results,
                keep_retired=keep_retired,
                dry_run=dry_run,
                heads=project.heads(),
            )
    for line in _lines(collected):
        output.result(line)
    output.document(GcDocument(collected=collected))


def _owner(uri: str) -> Project | None:
    """Return the project whose own store that is."""
    from shipctl.engine.project import Project
    from shipctl.store.objects import scheme_of

    if scheme_of(uri) != "file":
        return None
    folder = Path(unquote(urlsplit(uri).path)).resolve()
    project = Project(folder.parent.parent)
    return project if project.store == folder else None


def _lines(collected: Collected) -> list[str]:
    from shipctl.report import text

    verb = "would be deleted" if collected.dry_run else "deleted"

    def line(what: str, counted: Counted) -> str:
        stay = f"{counted.kept} stay ({text.size(counted.kept_bytes)})"
        return f"  {what:<9}  {counted.deleted} {verb} ({text.size(counted.deleted_bytes)}), {stay}"

    kept = [
        text.plural(collected.versions, "version"),
        text.plural(collected.deployments, "deployment"),
        f"{text.plural(collected.leases, 'publication')} under way",
    ]
    return [
        click.style(
            f"{collected.uri}: {text.size(collected.freed_bytes)} {_FREED[collected.dry_run]}", bold=True
        ),
        line("files", collected.files),
        line("artifacts", collected.manifests),
        line("results", collected.results),
        *([line("laid out", collected.repositories)] if sum(vars(collected.repositories).values()) else []),
        f"  uploads    {collected.unfinished} unfinished {verb}",
        f"kept what is needed by {', '.join(kept)}",
    ]


_FREED = {True: "would be freed", False: "freed"}
