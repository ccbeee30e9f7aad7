"""`shipctl validate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shipctl.cli.output import Output, common_options, json_option
from shipctl.cli.planning import context_option, environment_options
from shipctl.cli.specfile import find_spec
from shipctl.cli.types import PATH
from shipctl.errors import ShipctlError

if TYPE_CHECKING:
    from shipctl.cli.documents.runs import ValidateDocument


@click.command("validate")
@click.argument("specs", metavar="[SPEC]...", nargs=-1, type=PATH)
@environment_options
@context_option
@json_option
@common_options
def command(
    specs: tuple[Path, ...], environment: str | None, overrides: tuple[str, ...], context: str | None
) -> None:
    """Check specs: form, stages, options, edges and files.

    Every problem comes with file, line and column; problems are looked for in all specs before the command
    ends with 2. With -e they are checked as that environment has them.
    """
    from shipctl.engine.pipeline import prepare

    output = Output.current()
    found = specs or (find_spec(None),)
    wrong: dict[Path, ShipctlError] = {}
    for path in found:
        try:
            prepare(path, environment=environment, overrides=overrides, context=context)
        except ShipctlError as exc:
            wrong[path] = exc
            click.echo(str(exc), err=True)
        else:
            output.say(f"{path}: valid")
    if output.json:
        output.document(_document(found, wrong))
    if wrong:
        output.complain(f"not valid: {', '.join(map(str, wrong))}")
        click.get_current_context().exit(max(exc.exit_code for exc in wrong.values()))


def _document(found: Sequence[Path], wrong: Mapping[Path, ShipctlError]) -> ValidateDocument:
    from shipctl.cli.documents.runs import SpecCheck, SpecProblem, ValidateDocument

    return ValidateDocument(
        valid=not wrong,
        specs=tuple(
            SpecCheck(
                path=str(path),
                valid=path not in wrong,
                message=str(wrong.get(path, "")),
                problems=tuple(
                    SpecProblem(
                        file=problem.location.path,
                        line=problem.location.line,
                        column=problem.location.column,
                        message=problem.message,
                    )
                    for problem in getattr(wrong.get(path), "problems", ())
                ),
            )
            for path in found
        ),
    )
