"""`shipctl promote`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from shipctl.cli.output import Output, common_options, json_option
from shipctl.cli.planning import context_option
from shipctl.cli.running import display_options, if_running_option, lock_timeout_option, watched
from shipctl.cli.specfile import find_spec
from shipctl.cli.types import PATH

if TYPE_CHECKING:
    from shipctl.engine.standing_by import IfRunning


@click.command("promote")
@click.argument("source", metavar="SOURCE")
@click.argument("target", metavar="TARGET")
@click.argument("spec", metavar="[SPEC]", required=False, type=PATH)
@click.option("--stage", metavar="STAGE", help="Which release stage, where several release to both.")
@click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Override a value of the spec, such as vars.registry=…; repeatable.",
)
@context_option
@lock_timeout_option
@if_running_option
@click.option("--retry", is_flag=True, help="Release again what was rolled back there before.")
@display_options
@json_option
@common_options
def command(
    source: str,
    target: str,
    spec: Path | None,
    stage: str | None,
    overrides: tuple[str, ...],
    context: str | None,
    lock_timeout: float,
    if_running: IfRunning,
    retry: bool,  # noqa: FBT001
    display: str | None,
    events: Path | None,
) -> None:
    """Release to one environment what serves in another, such as `promote staging production`.

    The very same artifacts under the same version as in SOURCE: nothing is built. Options, policy and approval are
    those of TARGET. Refused while what SOURCE serves is not done, whole and healthy.
    """
    from shipctl.cli.documents.approvals import PromoteDocument
    from shipctl.engine.promotion import promote

    output = Output.current()
    with watched(display, events) as hooks:
        done = promote(
            find_spec(spec),
            source,
            target,
            hooks=hooks,
            stage=stage,
            overrides=overrides,
            context=context,
            lock_timeout=lock_timeout,
            if_running=if_running,
            say=output.say,
            retry=retry,
        )
    for problem in (*hooks.problems, *done.result.warnings):
        output.complain(str(problem), label="warning")
    output.document(
        PromoteDocument(
            run=done.result.run,
            exit_code=done.result.exit_code,
            message=done.result.message,
            warnings=done.result.warnings,
            source=source,
            target=target,
            stage=done.stage,
            version=done.version,
            source_revision=done.source_revision,
            revision=done.revision,
            artifacts=done.artifacts,
        )
    )
    if done.result.exit_code:
        output.complain(done.result.message)
        click.get_current_context().exit(done.result.exit_code)
