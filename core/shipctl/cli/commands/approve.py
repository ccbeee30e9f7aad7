"""`shipctl approve`."""

from __future__ import annotations

from pathlib import Path

import click

from shipctl.cli.approving import decision_options, pending_line, pending_lines, say
from shipctl.cli.output import Output
from shipctl.cli.specfile import find_spec
from shipctl.cli.types import DURATION
from shipctl.errors import SpecError


@click.command("approve")
@decision_options
@click.option(
    "--expires",
    metavar="DURATION",
    type=DURATION,
    help="How long it holds, such as 1d; the spec may set a shorter time.",
)
@click.option("--list", "listed", is_flag=True, help="Only show what waits, and what was said to it.")
def command(
    spec: Path | None,
    environment: str | None,
    overrides: tuple[str, ...],
    stage: str | None,
    release: str | None,
    reason: str,
    role: str | None,
    key: str | None,
    password_file: Path | None,
    expires: float | None,
    listed: bool,  # noqa: FBT001
) -> None:
    """Approve a release that waits for it.

    An approval is bound to what is released and to what serves now, and is used once. Who may approve stands in the
    policy; who began the release may not. Nothing is built: the request lies in the spec's store.
    """
    if not listed:
        say(
            "approve",
            spec,
            environment,
            overrides,
            stage=stage,
            release=release,
            reason=reason,
            role=role,
            key=key,
            password_file=password_file,
            expires=expires,
        )
        return
    if key or role or reason or expires is not None or release:
        raise SpecError("--list only shows what waits; leave out what an approval takes")
    from shipctl.cli.documents.approvals import PendingDocument
    from shipctl.engine.deciding import waiting

    output = Output.current()
    found = waiting(find_spec(spec), environment=environment, overrides=overrides, stage=stage)
    for item in found:
        for line in pending_lines(item):
            output.result(line)
    if not found:
        output.result("nothing waits for an approval")
    output.document(PendingDocument(pending=tuple(pending_line(item) for item in found)))
