"""How a command speaks: text for a person, or exactly one JSON document on stdout; errors on stderr."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from shipctl.records import Record

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


@dataclass
class Output:
    """What the options of one invocation say about its output."""

    json: bool = False
    """One JSON document on stdout instead of text."""
    verbosity: int = 0
    """Below zero: errors only. Above: what stages log, too."""
    plain: bool = False
    """No colour, whatever the terminal can."""

    @classmethod
    def of(cls, ctx: click.Context) -> Output:
        """Return the one of this invocation, shared by the group and its commands."""
        return ctx.ensure_object(cls)

    @classmethod
    def current(cls) -> Output:
        """Return the one of the command that is running."""
        return cls.of(click.get_current_context())

    def say(self, text: str = "", **style: Any) -> None:
        """Write a line for a person; with ``--json`` or ``-q`` nothing."""
        if not self.json and self.verbosity >= 0:
            click.echo(click.style(text, **style) if style else text, color=False if self.plain else None)

    def result(self, text: str) -> None:
        """Write what was asked for (a schema, a table): also with ``-q``, but not with ``--json``."""
        if not self.json:
            click.echo(text, color=False if self.plain else None)

    def document(self, record: Record) -> None:
        """Write the JSON document, if that is what was asked for."""
        if self.json:
            click.echo(record.model_dump_json(indent=2, by_alias=True))

    def complain(self, message: str, *, label: str = "error") -> None:
        """Write a line to stderr, whatever the options say."""
        text = f"{click.style(f'{label}:', fg='red', bold=True)} {message}"
        click.echo(text, err=True, color=False if self.plain else None)

    def error(self, message: str, exit_code: int, *, label: str = "error") -> None:
        """Write the error that ends the program to stderr; with ``--json`` also as the document on stdout."""
        self.complain(message, label=label)
        if self.json:
            # by hand: an error while pydantic is imported has to come out, too
            document = {"schema": "shipctl.error/1", "exit_code": exit_code, "message": message}
            click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def _quieter(ctx: click.Context, _: click.Parameter, value: bool) -> None:  # noqa: FBT001
    if value:
        Output.of(ctx).verbosity = -1


def _louder(ctx: click.Context, _: click.Parameter, value: int) -> None:
    if value:
        Output.of(ctx).verbosity = value


def _colourless(ctx: click.Context, _: click.Parameter, value: bool) -> None:  # noqa: FBT001
    if value:
        Output.of(ctx).plain = True


def _as_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:  # noqa: FBT001
    if value:
        Output.of(ctx).json = True


def common_options(command: CommandT) -> CommandT:
    """Add the options that every command has; they may stand before or after its name."""
    for decorate in (
        click.option(
            "--no-color",
            is_flag=True,
            expose_value=False,
            callback=_colourless,
            help="No colours (also: NO_COLOR).",
        ),
        click.option(
            "-v",
            "--verbose",
            count=True,
            expose_value=False,
            callback=_louder,
            help="Show more: what stages log, processes, files.",
        ),
        click.option(
            "-q", "--quiet", is_flag=True, expose_value=False, callback=_quieter, help="Errors only."
        ),
    ):
        command = decorate(command)
    return command


def json_option(command: CommandT) -> CommandT:
    """Add ``--json``."""
    return click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        is_eager=True,  # so that an error in another option is a document, too
        callback=_as_json,
        help="One JSON document on stdout, nothing else there.",
    )(command)


def limit_option(what: str) -> Callable[[CommandT], CommandT]:
    """Add ``-n``: of what is listed newest first, how many to show; ``what`` is its help."""
    return click.option(
        "-n",
        "--limit",
        metavar="N",
        type=click.IntRange(min=1),
        default=20,
        show_default=True,
        help=what,
    )
