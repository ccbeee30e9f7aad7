"""`shipctl schema`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from shipctl.cli.output import Output, common_options
from shipctl.cli.types import PATH
from shipctl.errors import SpecError


@click.command("schema")
@click.option("-o", "--output", "file", metavar="FILE", type=PATH, help="Write to a file instead of stdout.")
@click.option(
    "--of",
    "name",
    metavar="NAME",
    default="spec",
    show_default=True,
    help="`spec`, or a document of --json: plan, run, report, ….",
)
@common_options
def command(file: Path | None, name: str) -> None:
    """Print the JSON schema of specs, with the options of every installed stage.

    Editors complete and check specs with it: put `# yaml-language-server: $schema=FILE` in a spec's first line.
    Stages that do not import are left out and named on stderr.
    """
    output = Output.current()
    text = json.dumps(_schema(name, output), indent=2, ensure_ascii=False)
    if file is None:
        click.echo(text)
        return
    try:
        file.write_text(text + "\n", encoding="utf-8")
    except OSError as exc:
        message = f"cannot write {file}: {exc.strerror}"
        raise SpecError(message) from exc
    output.say(f"written to {file}")


def _schema(name: str, output: Output) -> dict[str, Any]:
    if name == "spec":
        from shipctl.cli.plugins import load_all
        from shipctl.spec import spec_schema
        from shipctl.stages.registry import Registry

        survey = load_all(Registry())
        for problem in survey.problems:
            output.complain(problem, label="warning")
        return spec_schema(
            {name: stage.options_model.model_json_schema() for name, stage in survey.classes.items()}
        )
    from shipctl.cli.documents.every import EVERY_DOCUMENT

    if name not in EVERY_DOCUMENT:
        message = f"there is no schema of {name!r}; there is one of spec, {', '.join(EVERY_DOCUMENT)}"
        raise SpecError(message)
    return EVERY_DOCUMENT[name].model_json_schema(mode="serialization", by_alias=True)
