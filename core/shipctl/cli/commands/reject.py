"""`shipctl reject`."""

from __future__ import annotations

from pathlib import Path

import click

from shipctl.cli.approving import decision_options, say


@click.command("reject")
@decision_options
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
) -> None:
    """Reject a release that waits for an approval.

    It stands until the same person approves. A release that is under way already is aborted.
    """
    say(
        "reject",
        spec,
        environment,
        overrides,
        stage=stage,
        release=release,
        reason=reason,
        role=role,
        key=key,
        password_file=password_file,
    )
