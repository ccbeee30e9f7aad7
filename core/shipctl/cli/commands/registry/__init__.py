"""`shipctl registry`: the models of a store, their versions, aliases, stages, tags and A/B tests."""

from __future__ import annotations

import click

from shipctl.cli.commands.registry import changing, looking
from shipctl.cli.output import common_options


@click.group("registry", invoke_without_command=True)
@common_options
@click.pass_context
def command(ctx: click.Context) -> None:
    """Show and change registered models.

    A model is named NAME, NAME@VERSION or NAME@ALIAS; NAME alone means its highest version that is no pre-release.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for _command in (
    looking.list_models,
    looking.show,
    looking.history,
    looking.search_versions,
    looking.lineage,
    changing.alias,
    changing.stage,
    changing.tag,
    changing.ab,
):
    command.add_command(_command)
