"""What is newer supersedes what another process releases, if it may be released itself."""

from __future__ import annotations

from collections.abc import Callable

from shipctl.engine.audit import Auditor
from shipctl.engine.recorder import new_run_id
from shipctl.engine.releases import Release
from shipctl.engine.standing_by import Wants
from shipctl.engine.walk import GOOD, NodeEnd
from shipctl.errors import GateError, LockedError, RolledBackError, ShipctlError, StalePlanError, WaitingError
from shipctl.release.records import AbortWish, ReleaseRecord


def superseding(newer: Callable[[], Release], say: Callable[[str], None], *, retry: bool) -> Wants:
    """Return what says whether a release has to make way for a newer one.

    Nothing is aborted for what may not be released: then an error says why, as the run would (waits for an approval,
    was rolled back before).
    """

    def wants(record: ReleaseRecord) -> AbortWish | None:
        release = newer()
        wish = release.in_the_way(record)
        if wish is None or not release.revision:  # not known before its stages have run
            return wish
        auditor = Auditor(release.pipeline)
        end = release.may_begin(new_run_id(), auditor, retry=retry)
        for problem in auditor.problems:
            say(f"warning: {problem}")
        if end is None:
            return wish
        if end.status in GOOD:
            return None
        raise _refusal(end)

    return wants


def _refusal(end: NodeEnd) -> ShipctlError:
    """Return how a run ends that may not release what it wants to."""
    kinds = (GateError, StalePlanError, WaitingError, RolledBackError)
    found = next((kind for kind in kinds if kind.exit_code == end.exit_code), LockedError)
    return found(end.message)
