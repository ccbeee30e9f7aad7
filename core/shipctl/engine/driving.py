"""Takes the steps of one release, so that it can be killed anywhere and gone on with.

The record is on the target before and after each step. Before each, too, it is looked at whether the record is still
this process's own: one that was suspended while another went on stops there, and does nothing more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shipctl.engine.aborting import ABORTED, SUPERSEDED
from shipctl.engine.keeping import Keeper
from shipctl.engine.place import Place
from shipctl.engine.walk import NodeEnd
from shipctl.errors import (
    CorruptArtifactError,
    GateError,
    LockedError,
    RunInterruptedError,
    ShipctlError,
    StoreError,
)
from shipctl.processes import own_name
from shipctl.release.records import AbortWish, Records, ReleaseRecord
from shipctl.release.target import StaleEpochError
from shipctl.stages.artifacts import Artifact
from shipctl.stages.base import Phase, StageInputs, Step
from shipctl.stages.context import ReleaseContext
from shipctl.stages.events import ReleaseStepped

if TYPE_CHECKING:
    from shipctl.engine.approvals import ReleaseApprovals
    from shipctl.engine.audit import Auditor
    from shipctl.engine.standing_by import IfRunning
    from shipctl.stages.verdicts import Verdict

ABORT_ATTEMPTS = 5
"""Times that an abort that raises is tried."""
ABORT_DELAY = 1.0
"""Seconds between the first two; each further delay is that much longer."""
HEARING = 1.0
"""Seconds at most until a wish to abort is heard between two steps."""

Watch = Callable[[ReleaseStepped, "Sequence[Verdict]"], None]


@dataclass(frozen=True)
class Drive:
    """What driving a release needs of the run around it."""

    run: str
    """The run's id."""
    watch: Watch
    """Told of every step."""
    log: Callable[[str], None]
    workdir: Path
    """Where the inputs are laid out."""
    stop: threading.Event
    """Set when the run is interrupted."""
    redact: Callable[[str], str]
    """Takes secrets out of a message."""
    auditor: Auditor
    """Writes down who did what."""
    if_running: IfRunning = "supersede"
    """What to do about a release that a process on another machine drives."""
    hand_over: bool = False
    """Whether to end once the candidate is stable, and leave watching it to somebody else."""


class Driver:
    """Drives one release to its end, or to a pause."""

    def __init__(
        self, place: Place, drive: Drive, approvals: ReleaseApprovals, records: Records, etag: str
    ) -> None:
        """``records`` were loaded with ``etag``; the release is the last one in them, or a new one."""
        self._place = place
        self._run = drive
        self._approvals = approvals
        self._keeper = Keeper(place, records, etag)
        self._stage = place.stage
        self._granted: set[str] = set()
        self._has_left = False
        self.rejected = False
        """Whether somebody's rejection has ended it."""
        self.waits: NodeEnd | None = None
        """How the run ends because people are asked something in a pause."""

    def drive(self, record: ReleaseRecord, *, begin: bool = False) -> ReleaseRecord:
        """Take steps until the release is finished, waits for people, or is handed over.

        :raises GateError: if the policy does not let it begin
        :raises LockedError: if another process has gone on with it
        :raises RunInterruptedError: if the run was interrupted
        """
        place, drive = self._place, self._run
        inputs = self._open(record)
        try:
            record = place.evidence.admitted(record, inputs)
        except GateError as exc:
            place.evidence.refused(record, str(exc), drive.auditor)
            if begin:
                raise
            record = changed(record, phase=Phase.ABORTING, message=str(exc))
        if begin:
            place.evidence.begun(record, self._keeper.records, drive.auditor)
        record = changed(record, driver=own_name())
        self._keeper.save(record)
        try:
            record = self._steps(record, inputs)
        except LockedError:  # it is somebody else's now
            raise
        except BaseException:
            self._leave(record)
            raise
        if record.phase.is_final:
            by_hand = record.message.startswith(ABORTED) and not record.message.startswith(SUPERSEDED)
            self._approvals.end(record.phase, used=by_hand or record.phase is not Phase.REJECTED)
        place.evidence.ended(record, self._keeper.records, drive.auditor)
        return record

    def _steps(self, record: ReleaseRecord, inputs: StageInputs) -> ReleaseRecord:
        context = self._context(record)
        state = self._stage.state_model.model_validate(record.state)
        attempts = 0
        while not record.phase.is_final:
            self._keeper.look(record.version)
            aborting = record.phase is Phase.ABORTING
            wish = None if aborting else self._wish(record)
            if wish is not None:
                record = self._taken(record, Step(phase=Phase.ABORTING, message=f"{ABORTED}{wish}"))
                continue
            act = self._stage.abort if aborting else self._stage.step
            try:
                state, step = act(state, inputs, context)
                attempts = 0
            except StaleEpochError as exc:  # whoever has the target now decides
                raise LockedError(str(exc)) from exc
            except Exception as exc:  # any failure of a step means the same: go back
                if self._run.stop.is_set():  # but not one that comes of being interrupted
                    raise self._interrupted(record) from exc
                attempts += 1
                step = _failed(exc, aborting=aborting, attempts=attempts)
                record = record.model_copy(update={"error": record.error or not isinstance(exc, GateError)})
                if aborting and attempts >= ABORT_ATTEMPTS:
                    raise
            record = record.model_copy(update={"state": state.model_dump(mode="json")})
            record = self._taken(record, step)
            if step.phase is Phase.PAUSED and step.requeue == 0:
                if not self._goes_on(record, step):
                    self._resign()  # the stage has given back its lease itself
                    return record
            elif self._run.hand_over and self._may_be_left(record, context):
                self._leave(record)
                return record
            elif not record.phase.is_final:
                self._wait(record, step.requeue)
        return record

    def _taken(self, record: ReleaseRecord, step: Step) -> ReleaseRecord:
        """Write a step down, tell of it, and return the record after it."""
        aborting = record.phase is Phase.ABORTING
        step = step.model_copy(update={"message": self._run.redact(step.message)})
        if aborting and not step.phase.is_final:
            step = step.model_copy(update={"phase": Phase.ABORTING})
        # on the way back it is why, and at its end also what came of it
        message = record.message if aborting and record.message else step.message
        if aborting and step.phase.is_final and step.message and step.message not in message:
            message = f"{message}; {step.message}"
        done = {"driver": ""} if step.phase.is_final else {}
        record = changed(record, phase=step.phase, message=message, **done)
        self._keeper.save(record)
        self._run.watch(
            ReleaseStepped(
                run=record.run, node=self._place.node.id, target=self._place.label, revision=record.revision,
                phase=step.phase, message=step.message, requeue=step.requeue, time=record.updated,
            ),
            step.verdicts,
        )  # fmt: skip
        return record

    def _context(self, record: ReleaseRecord) -> ReleaseContext:
        back = record.intent == "rollback"
        return self._place.context(
            run=record.run,
            revision=record.revision,
            version=record.version,
            intent=record.intent,
            log=self._run.log,
            approved=(lambda: frozenset({"release", "promote"})) if back else self._approvals.approved,
            aborted=lambda: self._wish(record),
        )

    # -- what people want --------------------------------------------------------------------------------------

    def _wish(self, record: ReleaseRecord) -> str | None:
        """Return why somebody wants this release aborted, or None."""
        wish = self._keeper.wish(record.number)
        if wish is not None and not self._makes_way(wish):
            return wish.reason
        if record.intent == "rollback":
            return None
        rejected = self._approvals.rejected()
        self.rejected = rejected is not None
        return rejected

    def _makes_way(self, wish: AbortWish) -> bool:
        """Whether what is to make way is promoted already: its watch ends then, and it stays what serves till later."""
        latest = self._keeper.records.latest
        if wish.newer is None or latest is None or latest.phase is not Phase.WATCHING:
            return False
        if self._stage is self._place.stage:
            from shipctl.release.leaving import unwatched

            self._run.log(f"{latest.version} is promoted; its watch ends for {wish.newer}")
            self._stage = unwatched(self._stage)
        return True

    def _goes_on(self, record: ReleaseRecord, step: Step) -> bool:
        """Whether what a pause asks for is there by now; else people are asked, and the run ends."""
        asks = tuple(word.strip() for word in step.asks.split(",") if word.strip())
        if not asks or record.intent == "rollback" or self._granted.issuperset(asks):
            return False  # the last: a stage that goes on asking for what it was granted
        try:
            self.waits = self._approvals.waiting(asks, self._run.run, record, lambda: (record.message,))
        except StoreError as exc:
            message = f"{record.message}; nobody can be asked: {exc}"
            self.waits = NodeEnd("waiting", message, exit_code=6)
        if self.waits is None:
            self._granted.update(asks)
            self._approvals.look()
        return self.waits is None

    def _wait(self, record: ReleaseRecord, seconds: float) -> None:
        """Wait for the next step, unless somebody wants an abort meanwhile.

        :raises RunInterruptedError: if the run is interrupted
        """
        end = time.monotonic() + seconds
        while True:
            left = end - time.monotonic()
            if self._run.stop.wait(max(0.0, min(left, HEARING))):
                raise self._interrupted(record)
            if left <= HEARING:
                return
            with suppress(StoreError):  # the look before the next step counts
                self._keeper.look(record.version)
            if self._keeper.wish(record.number) is not None:
                return

    # -- leaving it ------------------------------------------------------------------------------------------------

    def _may_be_left(self, record: ReleaseRecord, context: ReleaseContext) -> bool:
        """Whether a release is promoted, and only has to be watched."""
        if record.phase is not Phase.WATCHING:
            return False
        from shipctl.release.leaving import may_be_left

        try:
            return may_be_left(self._place.stage, context)
        except ShipctlError:
            return False  # looked at again after the next step

    def _leave(self, record: ReleaseRecord) -> str:
        """Give back what this process holds on the target, and return what becomes of the traffic."""
        from shipctl.release.leaving import let_go

        said = "" if self._has_left else let_go(self._place.stage, self._context(record))
        self._has_left = True
        self._resign()
        return said

    def _resign(self) -> None:
        """Write down that nobody takes the steps any more."""
        latest = self._keeper.records.latest
        if latest is not None and latest.driver == own_name():
            with suppress(
                ShipctlError
            ):  # somebody else's by now; or others will see that this process has ended
                self._keeper.save(latest.model_copy(update={"driver": ""}))

    def _interrupted(self, record: ReleaseRecord) -> RunInterruptedError:
        said = self._leave(record)
        also = f"; {said}" if said else ""
        return RunInterruptedError(
            f"interrupted at {record.phase}{also}; the same command goes on from there"
        )

    # -- inputs ------------------------------------------------------------------------------------------------

    def _open(self, record: ReleaseRecord) -> StageInputs:
        """Lay out the inputs. One that is damaged has no files then, which keeps no release from being aborted.

        :raises CorruptArtifactError: if one is damaged and the release is to go on
        """
        store = self._place.pipeline.store
        opened: dict[str, tuple[Artifact, ...]] = {}
        for name, artifacts in self._place.artifacts(record).items():
            items = []
            for index, artifact in enumerate(artifacts):
                store.has_files(artifact.files)  # so that what a shared store has can be fetched
                folder = self._run.workdir / record.revision[:12] / name / str(index)
                try:
                    items.append(store.view(artifact, folder))
                except CorruptArtifactError:
                    if record.phase is not Phase.ABORTING:
                        raise
                    items.append(artifact)
            opened[name] = tuple(items)
        return self._place.bundle(opened)


def changed(record: ReleaseRecord, **changes: Any) -> ReleaseRecord:
    """Return a record with other values, and the time at which they changed."""
    return record.model_copy(update={**changes, "updated": time.time()})


def _failed(exc: Exception, *, aborting: bool, attempts: int) -> Step:
    text = str(exc) if isinstance(exc, ShipctlError) else f"{type(exc).__name__}: {exc}"
    return Step(phase=Phase.ABORTING, message=text, requeue=ABORT_DELAY * attempts if aborting else 0.0)
