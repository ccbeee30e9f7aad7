"""`shipctl registry list`, `show`, `history`, `search` and `lineage`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shipctl.cli.output import Output, common_options, json_option, limit_option
from shipctl.cli.registering import (
    ab_text,
    audit_line,
    entry_text,
    facts,
    model_text,
    opened_registry,
    version_facts,
    version_text,
)
from shipctl.cli.stores import chosen_project, store_options

if TYPE_CHECKING:
    from shipctl.store.model_reading import ModelReader
    from shipctl.store.registered import RegisteredVersion

_APPROVALS = frozenset({"approval requested", "approve", "reject", "promoted"})
"""Actions of the audit log that a model's history shows, too."""


@click.command("list")
@click.option("--stage", metavar="STAGE", help="Only models with a version in this stage.")
@click.option(
    "--tag",
    "tags",
    metavar="KEY[=VALUE]",
    multiple=True,
    help="Only models with this tag, or a version with it.",
)
@store_options
@json_option
@common_options
def list_models(
    stage: str | None,
    tags: tuple[str, ...],
    store: str | None,
    spec: Path | None,
    environment: str | None,
    overrides: tuple[str, ...],
) -> None:
    """List models, their highest versions, aliases."""
    from shipctl.cli.documents.registry import ModelLine, RegistryListDocument

    output = Output.current()
    with opened_registry(store, spec, environment, overrides) as registry:
        states = registry.states()
        uri = registry.objects.uri
    models = []
    for name, state in states.items():
        alive = [version for version in state.versions.values() if version.retired is None]
        tables = [state.tags, *(version.tags for version in alive)]
        if stage is not None and not any((version.stage or "none") == stage for version in alive):
            continue
        if all(any(_has_tag(table, tag) for table in tables) for tag in tags):
            models.append(ModelLine.of(name, state))
    width = max((len(model.name) for model in models), default=0)
    for model in models:
        output.result(model_text(model, width))
    if not models:
        output.say(f"no models like that in {uri}" if states else f"nothing is registered in {uri} yet")
    output.document(RegistryListDocument(store=uri, models=tuple(models)))


def _has_tag(table: dict[str, str], wanted: str) -> bool:
    key, equals, value = wanted.partition("=")
    return key in table and (not equals or table[key] == value)


@click.command("show")
@click.argument("reference", metavar="NAME[@REF]")
@store_options
@json_option
@common_options
def show(
    reference: str, store: str | None, spec: Path | None, environment: str | None, overrides: tuple[str, ...]
) -> None:
    """Show a model, or one of its versions.

    A model is shown with its versions, a version with all that is known of it.
    """
    with opened_registry(store, spec, environment, overrides) as registry:
        if "@" in reference:
            _show_version(registry, reference)
        else:
            _show_model(registry, reference)


def _show_model(registry: ModelReader, name: str) -> None:
    from shipctl.cli.documents.registry import ModelLine, RegistryModelDocument, VersionLine
    from shipctl.store.model_state import check_name

    output = Output.current()
    state = registry.state(check_name(name))
    model = ModelLine.of(name, state)
    versions = tuple(VersionLine.of(version) for version in registry.read(name, state, state.sorted()[::-1]))
    output.result(model_text(model))
    width = max((len(version.version) for version in versions), default=0)
    for version in versions:
        output.result(f"  {version_text(version, width=width)}")
    if model.ab is not None:
        output.result(ab_text(model.ab, name))
    output.document(RegistryModelDocument(store=registry.objects.uri, model=model, versions=versions))


def _show_version(registry: ModelReader, reference: str) -> None:
    from shipctl.cli.documents.registry import RegistryVersionDocument, VersionLine

    output = Output.current()
    version = registry.find(reference)
    output.result(click.style(version.reference, bold=True))
    for line in facts(version_facts(version)):
        output.result(line)
    output.document(
        RegistryVersionDocument(
            store=registry.objects.uri,
            version=VersionLine.of(version),
            package=version.package,
            contains=version.about.contains,
            lineage=version.lineage,
        )
    )


@click.command("history")
@click.argument("name")
@limit_option("How many entries.")
@click.option(
    "--expect-head",
    metavar="DIGEST",
    help="Fail unless the entry with this digest, noted earlier, is still there.",
)
@store_options
@json_option
@common_options
def history(
    name: str,
    limit: int,
    expect_head: str | None,
    store: str | None,
    spec: Path | None,
    environment: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Show who did what to a model, newest first, and who approved or rejected its releases.

    All entries are verified: they are chained by their digests, so that one that was changed or taken out is found.
    """
    from shipctl.cli.documents.registry import RegistryHistoryDocument
    from shipctl.store.log import audit

    output = Output.current()
    with opened_registry(store, spec, environment, overrides) as registry:
        entries = registry.history(name, expect_head=expect_head)
        audited = audit(registry.objects, heads=chosen_project(spec).heads()).entries()
        uri = registry.objects.uri
    shown = entries[: -limit - 1 : -1]
    for entry in shown:
        output.result(entry_text(entry))
    said = [item for item in audited if item.action in _APPROVALS and item.subject.startswith(f"{name}@")]
    decisions = said[: -limit - 1 : -1]
    if decisions:
        output.result(click.style("approvals, in the audit log:", bold=True))
    for entry in decisions:
        output.result(entry_text(entry))
    output.say(f"{len(entries)} entries, the chain is whole; head sha256:{entries[-1].digest}")
    output.document(
        RegistryHistoryDocument(
            store=uri,
            name=name,
            total=len(entries),
            head=entries[-1].digest,
            entries=tuple(audit_line(entry) for entry in shown),
            approvals=tuple(audit_line(entry) for entry in decisions),
        )
    )


@click.command("search")
@click.argument("query", nargs=-1, required=True)
@store_options
@json_option
@common_options
def search_versions(
    query: tuple[str, ...],
    store: str | None,
    spec: Path | None,
    environment: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Search versions.

    All words of QUERY have to hold.

    \b
    mnist              in name, version, description, owner, stage, alias, tag or label
    name:dig*          also version, stage, alias, owner, license, by, parent, digest, data, spec, run
    tag:team=vision    or tag:team; label:tier=gold
    is:retired         left out otherwise; also is:prerelease, is:aliased
    accuracy>=0.97     a metric; also latency.p95<20ms, accuracy>97%

    Quote what your shell would read itself: shipctl registry search 'accuracy>=0.97 stage:production'
    """  # noqa: D301  (\b is click's)
    from shipctl.cli.documents.registry import RegistrySearchDocument, VersionLine
    from shipctl.store.search import search

    output = Output.current()
    text = " ".join(query)
    with opened_registry(store, spec, environment, overrides) as registry:
        versions = tuple(VersionLine.of(version) for version in search(registry, text))
        uri = registry.objects.uri
    width = max((len(f"{version.name}@{version.version}") for version in versions), default=0)
    for version in versions:
        output.result(version_text(version, full=True, width=width))
    if not versions:
        output.say(f"nothing found for {text!r} in {uri}")
    output.document(RegistrySearchDocument(store=uri, query=text, versions=versions))


@click.command("lineage")
@click.argument("reference", metavar="NAME[@REF]")
@store_options
@json_option
@common_options
def lineage(
    reference: str, store: str | None, spec: Path | None, environment: str | None, overrides: tuple[str, ...]
) -> None:
    """Show where a version comes from.

    That is: spec, data, run and parents. Also what came after it.
    """
    from shipctl.cli.documents.registry import RegistryLineageDocument

    output = Output.current()
    with opened_registry(store, spec, environment, overrides) as registry:
        version = registry.find(reference)
        state = registry.state(version.name)
        uri = registry.objects.uri
    ancestors: list[str] = []
    parent = state.versions[version.version].parent
    while parent is not None and parent not in ancestors:
        ancestors.append(parent)
        parent = state.versions[parent].parent if parent in state.versions else None
    children = state.children(version.version)
    output.result(click.style(version.reference, bold=True))
    for line in facts(_lineage_facts(version, ancestors, children)):
        output.result(line)
    output.document(
        RegistryLineageDocument(
            store=uri,
            name=version.name,
            version=version.version,
            digest=version.digest,
            registered=version.registered,
            by=version.by,
            lineage=version.lineage,
            ancestors=tuple(ancestors),
            children=children,
        )
    )


def _lineage_facts(
    version: RegisteredVersion, ancestors: Sequence[str], children: Sequence[str]
) -> dict[str, str]:
    from shipctl.report import text

    table = {
        "package": version.digest,
        "registered": f"{text.moment(version.registered)} by {version.by}",
        "after": " ← ".join(ancestors) or "nothing: it is the first",
        "before": ", ".join(children),
    }
    for name, value in version.lineage.items():
        if name == "parent":
            continue
        if isinstance(value, dict):
            table |= {f"{name} {key}": str(inner) for key, inner in value.items()}
        else:
            table[name] = "" if value is None else str(value)
    return table
