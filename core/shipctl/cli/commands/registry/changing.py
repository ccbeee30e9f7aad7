"""`shipctl registry alias`, `stage`, `tag` and `ab`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shipctl.cli.output import Output, common_options, json_option
from shipctl.cli.registering import ab_text, opened_registry, pairs
from shipctl.cli.stores import store_options
from shipctl.errors import SpecError

if TYPE_CHECKING:
    from shipctl.store.model_state import AbTest
    from shipctl.store.models import ModelRegistry


def _changed(registry: ModelRegistry, name: str, message: str, *, changed: bool) -> None:
    """Tell what became of a change."""
    Output.current().say(message)
    _document(registry, name, message, changed=changed)


def _document(registry: ModelRegistry, name: str, message: str, *, changed: bool) -> None:
    from shipctl.cli.documents.registry import ModelLine, RegistryChangeDocument

    output = Output.current()
    if output.json:
        model = ModelLine.of(name, registry.state(name))
        output.document(
            RegistryChangeDocument(store=registry.objects.uri, changed=changed, message=message, model=model)
        )


@click.command("alias")
@click.argument("reference", metavar="NAME[@REF]")
@click.argument("aliases", metavar="ALIAS...", nargs=-1, required=True)
@click.option("--delete", is_flag=True, help="Remove the aliases of the model NAME.")
@store_options
@json_option
@common_options
def alias(
    reference: str,
    aliases: tuple[str, ...],
    delete: bool,  # noqa: FBT001
    store: str | None,
    spec: Path | None,
    environment: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Let aliases point at a version, or remove them.

    `shipctl registry alias digits@staging production` promotes what staging is to production.
    """
    name = reference.partition("@")[0]
    with opened_registry(store, spec, environment, overrides) as registry:
        if delete:
            if "@" in reference:
                message = (
                    f"an alias is removed from a model; write `shipctl registry alias {name} ALIAS --delete`"
                )
                raise SpecError(message)
            dropped = registry.unalias(name, *aliases)
            lines = [f"{word} pointed at {name}@{version}, and is gone" for word, version in dropped.items()]
        else:
            moved = registry.alias(reference, *aliases)
            lines = [f"{word}: {before or 'none'} → {after}" for word, (before, after) in moved.items()]
        unchanged = f"{reference} has {', '.join(aliases)} already; nothing was changed"
        _changed(registry, name, "\n".join(lines) or unchanged, changed=bool(lines))


@click.command("stage")
@click.argument("reference", metavar="NAME@REF")
@click.argument("stage", metavar="STAGE")
@store_options
@json_option
@common_options
def stage(
    reference: str,
    stage: str,
    store: str | None,
    spec: Path | None,
    environment: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Say where a version stands in its life.

    That is: none, development, staging, production or archived. A stage is a note for people and searches; what is
    resolved, and what serves, does not depend on it.
    """
    with opened_registry(store, spec, environment, overrides) as registry:
        changed = registry.set_stage(reference, stage)
        message = f"{reference} is in stage {stage}{'' if changed else ' already'}"
        _changed(registry, reference.partition("@")[0], message, changed=changed)


@click.command("tag")
@click.argument("reference", metavar="NAME[@REF]")
@click.argument("tags", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--delete", "deleted", metavar="KEY", multiple=True, help="Remove a tag; repeatable.")
@store_options
@json_option
@common_options
def tag(
    reference: str,
    tags: tuple[str, ...],
    deleted: tuple[str, ...],
    store: str | None,
    spec: Path | None,
    environment: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Set and remove tags.

    They are those of a version, or of a whole model where only NAME is given.
    """
    new = pairs(tags, "tag")
    if not (new or deleted):
        raise SpecError("nothing to do; give KEY=VALUE, or --delete KEY")
    with opened_registry(store, spec, environment, overrides) as registry:
        changed = bool(deleted) and registry.untag(reference, *deleted)
        changed = (bool(new) and registry.tag(reference, new)) or changed
        message = f"{reference}: tags {'changed' if changed else 'are so already; nothing was changed'}"
        _changed(registry, reference.partition("@")[0], message, changed=changed)


@click.command("ab")
@click.argument("name")
@click.option(
    "--arm",
    "arms",
    metavar="VERSION=WEIGHT",
    multiple=True,
    help="A version with its share in percent; repeatable.",
)
@click.option("--key", metavar="KIND:NAME", help="What a user is recognised by: header:x-user, cookie:uid.")
@click.option("--metric", metavar="METRIC", help="The metric that decides.")
@click.option(
    "--name", "title", metavar="TITLE", help="What the test is called; made from the versions by default."
)
@click.option("--clear", is_flag=True, help="Remove the A/B test.")
@store_options
@json_option
@common_options
def ab(
    name: str,
    arms: tuple[str, ...],
    key: str | None,
    metric: str | None,
    title: str | None,
    clear: bool,  # noqa: FBT001
    store: str | None,
    spec: Path | None,
    environment: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Show, set or remove the A/B test of a model."""
    if clear and (arms or key or metric or title):
        raise SpecError("--clear removes the A/B test; leave out the other options")
    if not arms and (key or metric or title):
        raise SpecError("an A/B test needs arms; write --arm VERSION=WEIGHT for each")
    test = _ab_test(arms, key, metric, title) if arms else None
    with opened_registry(store, spec, environment, overrides) as registry:
        asked = clear or test is not None
        changed = asked and registry.configure_ab(name, test)
        message = ab_text(registry.state(name).ab, name)
        if asked:
            _changed(
                registry, name, message if changed else f"{message}; nothing was changed", changed=changed
            )
        else:
            Output.current().result(message)
            _document(registry, name, message, changed=False)


def _ab_test(arms: Sequence[str], key: str | None, metric: str | None, title: str | None) -> AbTest:
    from shipctl.store.model_state import AbTest, Arm

    parts = []
    for word in arms:
        version, _, weight = word.partition("=")
        try:
            parts.append(Arm(version=version, weight=float(weight.removesuffix("%"))))
        except ValueError:  # pydantic's is one
            message = f"{word!r} is no arm; write VERSION=WEIGHT with a percentage above 0, such as 1.1.0=10"
            raise SpecError(message) from None
    name = title or "-vs-".join(part.version for part in parts)
    return AbTest(name=name, arms=tuple(parts), key=key, metric=metric, started=time.time())
