"""What the commands about releases have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shipctl.cli.documents.runs import ReleaseLine
    from shipctl.release.records import ReleaseRecord
    from shipctl.stages.base import Serving

_ONLY_VERBOSE = frozenset({"pid", "pids", "log", "logs"})
"""Details that help who looks for a fault, and nobody else."""


def endpoints_of(item: Serving, *, verbose: bool) -> dict[str, str]:
    """Return the addresses that are shown: those of clients, with ``verbose`` also where metrics are read."""
    return {
        name: address
        for name, address in item.endpoints.items()
        if verbose or name.partition("/")[0] != "metrics"
    }


def details_of(item: Serving, *, verbose: bool) -> dict[str, str]:
    """Return the details that are shown: with ``verbose`` also processes and their logs."""
    return {name: value for name, value in item.details.items() if verbose or name not in _ONLY_VERBOSE}


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
