"""Drives a release stage step by step, so that it can be killed anywhere and gone on with.

The record of a release is written to the target before and after each step. A release that was begun and
is not finished is continued; one that something newer supersedes is aborted first; what was rolled back
is refused until it is asked for with `--retry`.
"""

from __future__ import annotations

import shlex
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from shipctl.engine.aborting import ABORTED, SUPERSEDED
from shipctl.engine.approvals import ReleaseApprovals
from shipctl.engine.driving import Drive, Driver, changed
from shipctl.engine.release_view import ReleaseView
from shipctl.engine.standing_by import POLL, StandBy, Wants
from shipctl.engine.walk import NodeEnd
from shipctl.errors import RunInterruptedError, SpecError
from shipctl.release.records import AbortWish, Records, ReleaseRecord
from shipctl.stages.base import Phase
from shipctl.stages.events import ReleaseStepped
from shipctl.store.log import Actor

if TYPE_CHECKING:
    from shipctl.engine.audit import Auditor
    from shipctl.evidence.approvals import ReleasePlan

__all__ = ["Drive", "Release", "went_back"]

BY_HAND = "rolled back by hand"
SHORT_DIGEST = 6
"""Digits of a revision's digest that are enough to name it."""


class Release(ReleaseView):
    """One release stage of a pipeline, to be acted on."""

    def waits(self, drive: Drive, *, retry: bool) -> NodeEnd | None:
        """Return why the revision may not be released now, after asking for what it takes; None if it may.

        What was begun goes on without being asked about again, unless somebody has rejected it since.

        :raises StoreError: if somebody has to be asked, and the store cannot be reached
        """
        latest = self.under_way()
        if latest is not None and (latest.intent == "rollback" or latest.revision == self.revision):
            return None
        return self.may_begin(drive.run, drive.auditor, retry=retry)

    def may_begin(self, run: str, auditor: Auditor, *, retry: bool) -> NodeEnd | None:
        """Return why the revision may not be released at all, after asking for what it takes; None if it may.

        :raises StoreError: if somebody has to be asked, and the store cannot be reached
        """
        records = self.records()
        gone = records.was_rolled_back(self.revision)
        if gone is not None and not retry:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(gone.updated))
            message = (
                f"revision {self.revision[:12]} ({gone.version}) was rolled back on {when}; "
                "`apply --retry` releases it again"
            )
            return NodeEnd("failed", message, exit_code=7)
        tested = records.was_only_tested(self.revision)
        if tested is not None and not retry:
            return NodeEnd(
                "done", f"{tested.message}; it was not to be promoted, `apply --retry` tests it again"
            )
        with self._approvals(self._plan(records), auditor) as approvals:
            return approvals.gate(run, lambda: self._stage.preview(self.context()))

    def in_the_way(self, record: ReleaseRecord) -> AbortWish | None:
        """Say why a release that another process drives has to make way for this one; None if it is waited for.

        A rollback is nobody's to abort, and the same revision needs no second release. While it is not known what is to
        be released, because its stages have not run, that may be the same, and nobody can have approved it.
        """
        approval = self._node.spec.approval
        asks = approval is not None and approval.required
        unknown = not self.revision and (record.version == self.version or asks)
        if record.intent == "rollback" or record.revision == self.revision or unknown:
            return None
        reason = f"{SUPERSEDED.removeprefix(ABORTED)} by {self.version}, by {Actor.current()}"
        return AbortWish(number=record.number, reason=reason, newer=self.version)

    def apply(self, drive: Drive, *, retry: bool) -> NodeEnd:
        """Release the revision, or go on with it where an earlier run was stopped; or return what it waits for.

        :raises LockedError: if another process drives a release that is not to be waited for
        """
        seen = self._stand_by(drive, self.in_the_way)
        latest = self.under_way()
        if latest is not None and latest.intent == "rollback":
            drive.log(f"the rollback to {latest.version} was not finished; finishing it first")
            self._drive(latest, drive)
            seen = latest
        waits = self.waits(drive, retry=retry)
        latest = self.under_way()
        if latest is not None and latest.revision == self.revision:
            return self._continued(latest, drive)
        if waits is not None:
            return waits
        if latest is not None:
            self._make_way(latest, drive)
        if (seen is not None or latest is not None) and self.in_place():  # as it was not when this run looked
            return self.there()
        assert self._inputs is not None  # noqa: S101  (apply is called with inputs)
        manifests = {name: [item.manifest() for item in items] for name, items in self._inputs.items()}
        record = self._begin(self.records(), drive.run, self.revision, self.version, "apply", manifests)
        return self._drive(record, drive, begin=True)

    def there(self) -> NodeEnd:
        """Return how a run ends that finds its revision in place."""
        return NodeEnd(
            "in-place", f"{self.version} {'serves' if self.serves else 'is in place'} on {self.label}"
        )

    def go_on(self, drive: Drive) -> NodeEnd:
        """Go on with the release that is under way, whatever it releases.

        :raises LockedError: if another process drives it
        """
        self._stand_by(replace(drive, if_running="refuse"), lambda _: None)
        latest = self.under_way()
        if latest is None:
            return NodeEnd("in-place", f"nothing is under way on {self.label}")
        return self._continued(latest, drive)

    def rollback(self, drive: Drive, to: str | None, seen: ReleaseRecord | None = None) -> NodeEnd:
        """Release an earlier revision again: the one before, or the one that ``to`` names by version or digest.

        What is under way is aborted; ``seen`` was under way when this was asked for, and has ended since. That is
        all then, unless ``to`` names something else than what serves.

        :raises SpecError: if there is none such
        :raises LockedError: if another process drives a release that is not to be waited for
        """
        seen = self._stand_by(drive, self.by_hand) or seen
        latest = self.under_way()
        if latest is not None:
            if latest.intent == "rollback":
                return self._drive(latest, drive)
            drive.log(f"release {latest.number} of {latest.version} is at {latest.phase}; aborting it")
            seen = latest
            self._drive(changed(latest, phase=Phase.ABORTING, message=f"{ABORTED}{BY_HAND}"), drive)
        records = self.records()
        latest, stable = records.latest, records.stable
        if seen is not None and latest is not None and latest.number == seen.number:
            back = went_back(latest) or latest.intent == "rollback"
            if back and (to is None or (stable is not None and _named(stable, to))):
                return NodeEnd("done", latest.message)
        choices = records.way_back()
        goal = next((item for item in choices if to is None or _named(item, to)), None)
        if goal is None or stable is None:
            have = ", ".join(f"{item.version} ({item.revision[:12]})" for item in choices) or "none"
            what = f"no release {to!r} to roll back to" if to else "nothing to roll back to"
            message = f"{what}; releases that were done and never rolled back, beside what serves: {have}"
            raise SpecError(message)
        record = self._begin(records, drive.run, goal.revision, goal.version, "rollback", goal.inputs)
        record = record.model_copy(update={"admission": goal.admission})
        return self._drive(record, drive, begin=True)

    def by_hand(self, record: ReleaseRecord) -> AbortWish | None:
        """Say why a release that another process drives makes way for a rollback; None for another rollback."""
        if record.intent == "rollback":
            return None
        return AbortWish(number=record.number, reason=f"{BY_HAND}, by {Actor.current()}")

    def abort(self, drive: Drive, reason: str) -> NodeEnd:
        """Abort the release that is under way, whoever drove it.

        :raises SpecError: if there is none
        """
        latest = self.under_way()
        if latest is None:
            message = (
                f"{self._node.spec.id} releases nothing on {self.label} now, so there is nothing to abort"
            )
            raise SpecError(message)
        if latest.phase is not Phase.ABORTING:
            latest = changed(latest, phase=Phase.ABORTING, message=f"{ABORTED}{reason}")
        end = self._drive(latest, drive)
        record = self.records().latest
        gone = record is not None and went_back(record)
        return NodeEnd("done", end.message) if gone else NodeEnd("failed", end.message, exit_code=1)

    def _stand_by(self, drive: Drive, wants: Wants) -> ReleaseRecord | None:
        """Wait while a process of another machine drives a release here; return the last one that was waited for.

        :raises LockedError: if it is not to be waited for
        :raises RunInterruptedError: if the run is interrupted meanwhile
        """

        def say(line: str) -> None:
            drive.watch(
                ReleaseStepped(
                    run=drive.run, node=self._node.id, target=self.label, revision=self.revision,
                    phase=Phase.PENDING, message=line, requeue=POLL, time=time.time(),
                ),
                (),
            )  # fmt: skip

        standing = StandBy(self, wants, say, if_running=drive.if_running)
        while standing.look():
            if drive.stop.wait(POLL):
                raise RunInterruptedError("interrupted while another process releases; nothing was done")
        return standing.followed

    def _continued(self, latest: ReleaseRecord, drive: Drive) -> NodeEnd:
        drive.log(f"going on with release {latest.number} of {latest.version}, which stood at {latest.phase}")
        return self._drive(latest, drive)

    def _make_way(self, latest: ReleaseRecord, drive: Drive) -> None:
        """Bring a release to its end that nobody drives any more: one that is promoted stays so, others are aborted."""
        name = f"release {latest.number} of {latest.version}"
        if latest.phase is Phase.WATCHING:
            drive.log(f"{name} is promoted and was being watched; ending that for {self.version}")
            self._drive(latest, replace(drive, hand_over=False), watching=False)
            return
        drive.log(f"{name} is unfinished; aborting it for {self.version}")
        message = f"{SUPERSEDED} by {self.version}, by {Actor.current()}"
        self._drive(changed(latest, phase=Phase.ABORTING, message=message), drive)

    def _begin(
        self,
        records: Records,
        run: str,
        revision: str,
        version: str,
        intent: Literal["apply", "rollback"],
        inputs: dict[str, Any],
    ) -> ReleaseRecord:
        now = time.time()
        return ReleaseRecord(
            number=records.latest.number + 1 if records.latest is not None else 1,
            revision=revision, version=version, intent=intent, run=run, user=Actor.current().user, phase=Phase.PENDING,
            inputs=inputs, started=now, updated=now,
        )  # fmt: skip

    def _approvals(self, plan: ReleasePlan, auditor: Auditor) -> ReleaseApprovals:
        return ReleaseApprovals(self._pipeline, self._node, plan, auditor)

    def _drive(
        self, record: ReleaseRecord, drive: Drive, *, begin: bool = False, watching: bool = True
    ) -> NodeEnd:
        """Take steps until the release is finished, waits for people, or is handed over."""
        from shipctl.release.leaving import unwatched

        records, etag = self._place.records.load()
        place = self._place if watching else replace(self._place, stage=unwatched(self._stage))
        with self._approvals(self._plan(records, record), drive.auditor) as approvals:
            driver = Driver(place, drive, approvals, records, etag)
            record = driver.drive(record, begin=begin)
        if record.phase is Phase.DONE:
            return NodeEnd("done", record.message)
        if driver.rejected:  # by somebody, which is another matter than to be rolled back
            return NodeEnd("rejected", record.message, exit_code=4)
        if record.phase is Phase.ROLLED_BACK or (went_back(record) and record.message.startswith(ABORTED)):
            return NodeEnd("failed", record.message, exit_code=7)
        if record.phase is Phase.REJECTED:
            status: Literal["failed", "rejected"] = "failed" if record.error else "rejected"
            return NodeEnd(status, record.message, exit_code=1 if record.error else 4)
        if record.phase is Phase.WATCHING:
            message = f"{record.version} is promoted on {self.label}; `{self._command('watch')}` watches it to its end"
            return NodeEnd("done", message)
        return driver.waits or NodeEnd("waiting", record.message, exit_code=6)

    def _command(self, name: str) -> str:
        """Return a command of shipctl about this spec."""
        chosen = ["-e", self.environment] if self.environment else []
        chosen += ["--context", self._pipeline.context] if self._pipeline.context is not None else []
        return shlex.join(["shipctl", name, self._pipeline.loaded.path.name, *chosen])


def went_back(record: ReleaseRecord) -> bool:
    """Whether a release ended with what served before it."""
    return record.phase in {Phase.ROLLED_BACK, Phase.REJECTED}


def _named(record: ReleaseRecord, name: str) -> bool:
    """Whether a release is meant by a version, or by the beginning of a digest."""
    return record.version == name or (len(name) >= SHORT_DIGEST and record.revision.startswith(name))
