"""What the commands about releases have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shipctl.cli.documents.runs import ReleaseLine
    from shipctl.release.records import ReleaseRecord


def release_line(
    stage: str, target: str, record: ReleaseRecord, *, serves: bool, environment: str | None = None
) -> ReleaseLine:
    """Return a record as the documents show it."""
    from shipctl.cli.documents.runs import ReleaseLine

    return ReleaseLine(
        stage=stage,
        target=target,
        environment=environment,
        number=record.number,
        version=record.version,
        revision=record.revision,
        intent=record.intent,
        phase=str(record.phase),
        serves=serves,
        rolled_back=record.rolled_back,
        message=record.message,
        user=record.user,
        run=record.run,
        started=record.started,
        updated=record.updated,
    )
