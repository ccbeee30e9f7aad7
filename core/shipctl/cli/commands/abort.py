"""`shipctl abort`."""

from __future__ import annotations

from pathlib import Path

import click

from shipctl.cli.output import Output, common_options, json_option
from shipctl.cli.planning import context_option, environment_options, spec_argument
from shipctl.cli.running import display_options, watched
from shipctl.cli.specfile import find_spec


@click.command("abort")
@spec_argument
@environment_options
@context_option
@click.option("--stage", metavar="STAGE", help="Which release stage, where several are under way.")
@click.option("--reason", metavar="TEXT", default="", help="Why; kept in the release's record.")
@display_options
@json_option
@common_options
def command(
    spec: Path | None,
    environment: str | None,
    overrides: tuple[str, ...],
    context: str | None,
    stage: str | None,
    reason: str,
    display: str | None,
    events: Path | None,
) -> None:
    """Abort the release that is under way, and wait until what served before serves again.

    A shipctl that drives it is asked to; where none does, the steps are taken here.
    """
    from shipctl.cli.documents.approvals import AbortDocument
    from shipctl.engine.operations import abort

    output = Output.current()
    with watched(display, events) as hooks:
        done = abort(
            find_spec(spec),
            hooks=hooks,
            say=output.say,
            reason=reason,
            stage=stage,
            environment=environment,
            overrides=overrides,
            context=context,
        )
    record = done.record
    output.document(
        AbortDocument(
            stage=done.stage,
            target=done.target,
            environment=done.environment,
            number=record.number,
            version=record.version,
            revision=record.revision,
            phase=str(record.phase),
            run=done.run,
            exit_code=done.exit_code,
            message=done.message,
        )
    )
    if done.exit_code:
        output.complain(done.message)
        click.get_current_context().exit(done.exit_code)
