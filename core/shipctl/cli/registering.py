"""What the commands about the registry have in common: opening it, and the text of models and versions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shipctl.cli.stores import chosen_project, chosen_store
from shipctl.errors import SpecError

if TYPE_CHECKING:
    from shipctl.cli.documents.audit import AuditLine
    from shipctl.cli.documents.registry import ModelLine, VersionLine
    from shipctl.store.log import LogEntry
    from shipctl.store.model_state import AbTest
    from shipctl.store.models import ModelRegistry, RegisteredVersion


@contextmanager
def opened_registry(
    store: str | None, spec: Path | None, environment: str | None, overrides: Sequence[str]
) -> Iterator[ModelRegistry]:
    """Give the registry of the store that is meant. In a project, the ends of its logs are remembered."""
    from shipctl.store.models import ModelRegistry
    from shipctl.store.objects import open_store

    chosen, base = chosen_store(store, spec, environment, overrides)
    heads = chosen_project(spec).heads()
    with open_store(chosen, base) as objects:
        yield ModelRegistry(objects, heads=heads)


def pairs(words: Sequence[str], what: str) -> dict[str, str]:
    """Read `KEY=VALUE` words.

    :raises SpecError: if one is none
    """
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals):
            message = f"{word!r} is no {what}; write KEY=VALUE"
            raise SpecError(message)
        found[key] = value
    return found


def model_text(model: ModelLine, width: int = 0) -> str:
    """Write a model on one line: name, what it means alone, aliases, how many versions, tags."""
    from shipctl.report import text

    name = click.style(f"{model.name:<{width}}", bold=True)
    parts = [f"{model.latest or 'no release':<10}", text.plural(len(model.versions), "version")]
    if model.retired:
        parts.append(f"{len(model.retired)} retired")
    parts += [f"{alias}={version}" for alias, version in sorted(model.aliases.items())]
    if model.ab is not None:
        parts.append(f"A/B {model.ab.name}")
    parts += [clean(f"[{key}={value}]") for key, value in sorted(model.tags.items())]
    return f"{name}  {'  '.join(parts)}"


def version_text(version: VersionLine, *, full: bool = False, width: int = 0) -> str:
    """Write a version on one line; ``full`` with the model's name."""
    from shipctl.report import text

    name = f"{version.name}@{version.version}" if full else version.version
    state = f"{version.stage or 'none':<11}"
    if version.retired is not None:
        state = click.style(f"{'retired':<11}", fg="red")
    parts = [
        click.style(f"{name:<{width}}", bold=True),
        state,
        text.short(version.digest),
        text.moment(version.registered),
        *(click.style(alias, fg="cyan") for alias in version.aliases),
        text.metrics(version.metrics),
        *(clean(f"[{key}={value}]") for key, value in sorted(version.tags.items())),
    ]
    return "  ".join(part for part in parts if part)


def facts(table: Mapping[str, Any], indent: str = "  ") -> Iterator[str]:
    """Yield `name  value` lines; what is empty is left out."""
    shown = {name: value for name, value in table.items() if value not in (None, "", (), {}, [])}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        yield f"{indent}{name:<{width}}  {clean(str(value))}"


def version_facts(version: RegisteredVersion) -> dict[str, Any]:
    """Return what is known of a version, by the words that a person reads."""
    from shipctl.report import text

    about, package = version.about, version.package
    size = sum(entry["size"] for entry in version.files)
    retired = "" if version.retired is None else text.moment(version.retired)
    return {
        "digest": version.digest,
        "files": f"{text.plural(len(version.files), 'file')}, {text.size(size)}",
        "signed by": package.get("signer") or "nobody",
        "stage": version.stage,
        "aliases": ", ".join(version.aliases),
        "tags": _table(version.tags),
        "retired": f"{retired}: {version.reason}" if retired and version.reason else retired,
        "registered": f"{text.moment(version.registered)} by {version.by}",
        "parent": version.lineage.get("parent"),
        "owner": about.owner,
        "description": about.description,
        "license": about.license,
        "labels": _table(about.labels),
        "metrics": text.metrics(about.metrics, limit=len(about.metrics)),
        "contains": _table({role: text.short(digest) for role, digest in about.contains.items()}),
    }


def ab_text(test: AbTest | None, name: str) -> str:
    """Write the A/B test of the model ``name`` on one line."""
    if test is None:
        return f"{name} has no A/B test"
    arms = ", ".join(f"{arm.version} {arm.weight:g} %" for arm in test.arms)
    key = f", by {test.key}" if test.key else ""
    metric = f", decided by {test.metric}" if test.metric else ""
    return clean(f"{name}: A/B test {test.name}: {arms}{key}{metric}")


def audit_line(entry: LogEntry) -> AuditLine:
    """Return an entry as the documents show it: without the state."""
    from shipctl.cli.documents.audit import AuditLine

    return AuditLine(
        **entry.model_dump(exclude={"state", "nonce", "actor"}), actor=entry.actor, digest=entry.digest
    )


def entry_text(entry: LogEntry) -> str:
    """Write an entry of a model's history on one line."""
    from shipctl.report import text

    what = clean(_what(entry.details))
    return (
        f"{entry.number:>5}  {text.moment(entry.time)}  {entry.action:<8}  {entry.subject}"
        f"{f'  {what}' if what else ''}  by {entry.actor}"
    )


def _what(details: Mapping[str, Any]) -> str:
    """Write what is particular to an entry; a package's manifest is not for a line."""
    parts = []
    for name, value in details.items():
        if name == "aliases" and isinstance(value, Mapping):
            parts += [
                f"{alias}: {move['from'] or 'none'} → {move['to'] or 'none'}" for alias, move in value.items()
            ]
        elif name == "digest":
            parts.append(str(value)[:12])
        elif name in {"set", "lineage"} and isinstance(value, Mapping):
            parts += [
                f"{key}={text}" for key, text in value.items() if isinstance(text, str) and name == "set"
            ]
        elif name not in {"package", "about", "version"} and value not in (None, "", [], False):
            parts.append(f"{name} {', '.join(value) if isinstance(value, list) else value}")
    return "; ".join(parts)


def _table(table: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(table.items()))


def clean(text: str) -> str:
    """Return text of somebody else's as one line that cannot move a terminal's cursor."""
    from shipctl.report.text import printable

    return " ".join(printable(text).split("\n"))
