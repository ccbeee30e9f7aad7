"""A click group that imports a command when it is used, and lists all of them without importing any."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click


class LazyGroup(click.Group):
    """Finds the command `name` as `command` in the module `<package>.<name>`."""

    def __init__(
        self, *args: Any, package: str = "", summaries: Mapping[str, str] | None = None, **kwargs: Any
    ) -> None:
        """``summaries`` names every command with its line for ``--help``, in the order of the list."""
        super().__init__(*args, **kwargs)
        self._package = package
        self._summaries = dict(summaries or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands in their documented order."""
        return list(self._summaries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of the command ``cmd_name``; None if there is no such command."""
        if cmd_name not in self._summaries:
            return None
        command = import_module(f"{self._package}.{cmd_name}").command
        if not isinstance(command, click.Command):
            message = f"{self._package}.{cmd_name}.command is not a click command"
            raise TypeError(message)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that ``args`` begin with, or say which one may have been meant."""
        name = args[0]
        if not name.startswith("-") and name not in self._summaries:
            near = difflib.get_close_matches(name, self._summaries, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the commands are {', '.join(self._summaries)}"
            message = f"no command named {name!r}; {hint}"
            raise click.UsageError(message, ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the summaries alone."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self._summaries.items()))
