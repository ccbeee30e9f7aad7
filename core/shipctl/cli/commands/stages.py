"""`shipctl stages`: what plugins there are, and the beginning of a new one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shipctl import __version__
from shipctl.cli.option_words import default_words, grouped, type_words
from shipctl.cli.output import Output, common_options, json_option
from shipctl.cli.types import PATH
from shipctl.errors import PluginError, SpecError

if TYPE_CHECKING:
    from shipctl.cli.documents.stages import StageDocument

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_KINDS = {"broken": "red", "release": "cyan"}


@click.group("stages", invoke_without_command=True)
@common_options
@click.pass_context
def command(ctx: click.Context) -> None:
    """List, describe, check or create stage plugins."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@command.command("list")
@json_option
@common_options
def list_stages() -> None:
    """List the installed stages; one that does not import says why."""
    from shipctl.cli.documents.stages import StagesDocument
    from shipctl.cli.plugins import load_all, summaries
    from shipctl.stages.registry import Registry

    output = Output.current()
    registry = Registry()
    stages = summaries(registry, load_all(registry))
    width = max((len(stage.name) for stage in stages), default=0)
    for stage in stages:
        kind = click.style(f"{stage.kind:<9}", fg=_KINDS.get(stage.kind))
        owner = "" if stage.distribution.startswith("shipctl ") else f"  [{stage.distribution}]"
        output.result(f"{stage.name:<{width}}  {kind}  {stage.summary or '; '.join(stage.problems)}{owner}")
    output.document(StagesDocument(stages=stages))


@command.command("describe")
@click.argument("name")
@click.option("--markdown", is_flag=True, help="Write it as a page of documentation.")
@json_option
@common_options
def describe_stage(name: str, markdown: bool) -> None:  # noqa: FBT001
    """Show what a stage does, takes and gives, and its options."""
    from shipctl.cli.plugins import describe
    from shipctl.cli.stage_page import stage_page
    from shipctl.stages.registry import Registry

    output = Output.current()
    document = describe(Registry(), name)
    output.result(stage_page(document) if markdown else _description(document))
    output.document(document)


@command.command("check")
@click.argument("name", required=False)
@json_option
@common_options
def check_stages(name: str | None) -> None:
    """Check what installed stages say about themselves.

    Imports and looks at one stage or all of them; ends with 3 if anything is wrong. How a stage behaves is for its own
    tests to say: see `shipctl.testing`.
    """
    from shipctl.cli.documents.stages import StagesDocument
    from shipctl.cli.plugins import load_all, summaries
    from shipctl.stages.registry import Registry

    output = Output.current()
    registry = Registry()
    stages = summaries(registry, load_all(registry, None if name is None else [name]), check=True)
    for stage in stages:
        if not stage.problems:
            output.say(f"{click.style('ok', fg='green'):<2}     {stage.name}")
        for problem in stage.problems:
            output.result(f"{click.style('broken', fg='red')} {stage.name}: {problem}")
    output.document(StagesDocument(stages=stages))
    wrong = [stage.name for stage in stages if stage.problems]
    if wrong:
        output.complain(
            f"{len(wrong)} of {len(stages)} stages {'is' if len(wrong) == 1 else 'are'} broken: {', '.join(wrong)}"
        )
        click.get_current_context().exit(PluginError.exit_code)


@command.command("new")
@click.argument("name")
@click.option("--directory", metavar="DIR", type=PATH, help="Where to write it; ./NAME by default.")
@click.option("--force", is_flag=True, help="Overwrite files that exist.")
@common_options
def new_stage(name: str, directory: Path | None, force: bool) -> None:  # noqa: FBT001
    """Write a new stage as a distribution of its own.

    It has an entry point, and tests that pass at once.
    """
    from shipctl.cli.scaffold import render_tree, write_files
    from shipctl.stages.registry import Registry

    if not _NAME.fullmatch(name):
        message = f"{name!r} is no name for a stage; use lower-case words with hyphens between them, such as my-stage"
        raise SpecError(message)
    if name in Registry().names():
        message = (
            f"a stage named {name!r} is installed: `shipctl stages describe {name}`; choose another name"
        )
        raise SpecError(message)
    module = name.replace("-", "_")
    variables = {
        "name": name,
        "distribution": f"shipctl-{name}",
        "package": f"shipctl_{module}",
        "module": module,
        "cls": "".join(word.capitalize() for word in name.split("-")),
        "requirement": f"shipctl>={__version__}",
    }
    folder = directory or Path(name)
    output = Output.current()
    for path in write_files(folder, render_tree("plugin", variables), force=force):
        output.say(f"wrote {path}")
    output.say(f"next: pip install -e {folder} && pytest {folder}")


def _description(document: StageDocument) -> str:
    stage = document.stage
    lines = [
        f"{click.style(stage.name, bold=True)}  ({stage.kind}, {stage.distribution})",
        "",
        document.description,
    ]
    for title, entries in (("inputs", document.inputs), ("outputs", document.outputs)):
        if entries:
            lines += ["", click.style(f"{title}:", bold=True), *_table(entries)]
    known = document.options.get("$defs", {})
    lines += ["", click.style("options:", bold=True), *(_options(document.options, known) or ["  none"])]
    for title, group in grouped(document.options).items():
        lines += ["", click.style(f"{title}:", bold=True), *_options(group, known)]
    if document.metrics:
        lines += ["", click.style("metrics:", bold=True), f"  {', '.join(document.metrics)}"]
    if document.requires:
        wanted = " ".join(f"'{brings}'" for brings in sorted(set(document.requires.values())))
        lines += ["", click.style("needs:", bold=True), f"  pip install {wanted}"]
    return "\n".join(lines)


def _table(entries: dict[str, str]) -> list[str]:
    width = max(map(len, entries))
    return [f"  {name:<{width}}  {text}" for name, text in entries.items()]


def _options(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> list[str]:
    """Return a line or two per option: name, type, default, and below it the description."""
    lines = []
    for name, option in schema.get("properties", {}).items():
        default = default_words(name, schema)
        shown = default if default == "required" else f"default {default}"
        lines.append(f"  {click.style(name, bold=True)}: {type_words(option, definitions)}, {shown}")
        if option.get("description"):
            lines.append(f"      {option['description']}")
    return lines
