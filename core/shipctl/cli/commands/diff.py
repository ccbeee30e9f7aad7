"""`shipctl diff`."""

from __future__ import annotations

from pathlib import Path

import click

from shipctl.cli.output import Output, common_options, json_option
from shipctl.cli.planning import context_option, environment_options, spec_argument
from shipctl.cli.specfile import find_spec

DIFFERENT = 9
"""The exit code of `--exit-code`: 1, which other tools take for this, is a stage's failure here."""
_COLOURS = {"+": "green", "-": "red", "@": "cyan"}


@click.command("diff")
@spec_argument
@environment_options
@context_option
@click.option("--stage", metavar="ID", help="Only this release stage.")
@click.option(
    "--exit-code", "told", is_flag=True, help=f"Exit with {DIFFERENT} if a release would change anything."
)
@json_option
@common_options
@click.pass_context
def command(
    ctx: click.Context,
    spec: Path | None,
    environment: str | None,
    overrides: tuple[str, ...],
    context: str | None,
    stage: str | None,
    told: bool,  # noqa: FBT001
) -> None:
    """Show how what is live differs from what a release would make of it.

    A unified diff per release stage, from what is live to what the target says it would become; nothing is changed,
    and nothing is printed where nothing differs. What would be released comes from the store, so the stages before
    the release have to have run: `apply --until`.
    """
    from shipctl.cli.documents.rendering import DiffDocument, ReleaseDiff
    from shipctl.engine.rendering import diff

    output = Output.current()
    found = diff(find_spec(spec), stage=stage, environment=environment, overrides=overrides, context=context)
    for line in (line for item in found for line in item.lines):
        output.result(_coloured(line))
    different = any(item.lines for item in found)
    output.document(
        DiffDocument(
            changed=different,
            releases=tuple(
                ReleaseDiff(
                    stage=item.stage,
                    target=item.target,
                    environment=item.environment,
                    version=item.version,
                    revision=item.revision,
                    changed=bool(item.lines),
                    lines=item.lines,
                )
                for item in found
            ),
        )
    )
    if told and different:
        ctx.exit(DIFFERENT)


def _coloured(line: str) -> str:
    if line.startswith(("+++ ", "--- ")):
        return click.style(line, bold=True)
    colour = _COLOURS.get(line[:1])
    return click.style(line, fg=colour) if colour else line
