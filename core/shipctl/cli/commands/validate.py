"""`shipctl validate`."""

from __future__ import annotations

from pathlib import Path

import click

from shipctl.cli.output import Output, common_options, json_option
from shipctl.cli.specfile import find_spec
from shipctl.cli.types import PATH
from shipctl.errors import ShipctlError


@click.command("validate")
@click.argument("specs", metavar="[SPEC]...", nargs=-1, type=PATH)
@json_option
@common_options
def command(specs: tuple[Path, ...]) -> None:
    """Check specs without looking at models, tools or targets.

    Every problem comes with file, line and column; problems are looked for in all specs before the command
    ends with 2.
    """
    from shipctl.cli.documents import SpecCheck, SpecProblem, ValidateDocument
    from shipctl.spec import load_spec

    output = Output.current()
    found = specs or (find_spec(None),)
    checks: list[SpecCheck] = []
    codes: list[int] = []
    for path in found:
        try:
            load_spec(path)
        except ShipctlError as exc:
            problems = tuple(
                SpecProblem(
                    file=problem.location.path,
                    line=problem.location.line,
                    column=problem.location.column,
                    message=problem.message,
                )
                for problem in getattr(exc, "problems", ())
            )
            checks.append(SpecCheck(path=str(path), valid=False, message=str(exc), problems=problems))
            codes.append(exc.exit_code)
            click.echo(str(exc), err=True)
        else:
            checks.append(SpecCheck(path=str(path), valid=True))
            output.say(f"{path}: valid")
    output.document(ValidateDocument(valid=not codes, specs=tuple(checks)))
    if codes:
        output.complain(f"not valid: {', '.join(check.path for check in checks if not check.valid)}")
        click.get_current_context().exit(max(codes))
