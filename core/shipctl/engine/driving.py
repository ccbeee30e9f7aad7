"""Takes the steps of one release, so that it can be killed anywhere and gone on with.

The record is on the target before and after each step. Before each, too, it is looked at whether the record is still
this process's own: one that was suspended while another went on stops there, and does nothing more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shipctl.engine.aborting import ABORTED, AbortFile
from shipctl.engine.ports import bundle, input_ports
from shipctl.engine.release_evidence import ReleaseEvidence
from shipctl.engine.walk import NodeEnd
from shipctl.errors import (
    CorruptArtifactError,
    GateError,
    LockedError,
    RunInterruptedError,
    ShipctlError,
    StoreError,
)
from shipctl.release.records import FileRecords, Records, ReleaseRecord
from shipctl.release.target import StaleEpochError
from shipctl.stages.artifacts import Artifact
from shipctl.stages.base import Phase, ReleaseStage, StageInputs, Step
from shipctl.stages.context import ReleaseContext
from shipctl.stages.events import ReleaseStepped
from shipctl.store.objects import store_or_default

if TYPE_CHECKING:
    from shipctl.engine.approvals import ReleaseApprovals
    from shipctl.engine.audit import Auditor
    from shipctl.engine.graph import Node
    from shipctl.engine.pipeline import Pipeline
    from shipctl.stages.verdicts import Verdict

ABORT_ATTEMPTS = 5
"""Times that an abort that raises is tried."""
ABORT_DELAY = 1.0
"""Seconds between the first two; each further delay is that much longer."""
HEARING = 0.5
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


@dataclass(frozen=True)
class Place:
    """One release stage on its target, as one environment uses it."""

    pipeline: Pipeline
    node: Node
    stage: ReleaseStage[Any, Any, Any]
    label: str
    """The target's name, with the environment where there is one."""
    folder: Path
    records: FileRecords
    evidence: ReleaseEvidence
    abort: AbortFile

    def context(
        self,
        *,
        revision: str,
        version: str,
        run: str = "",
        intent: Literal["apply", "rollback"] = "apply",
        log: Callable[[str], None] = lambda _line: None,
        approved: Callable[[], frozenset[str]] = frozenset,
        aborted: Callable[[], str | None] = lambda: None,
    ) -> ReleaseContext:
        """Return what the stage is told of the run."""
        return ReleaseContext(
            project=self.pipeline.project.root,
            target_dir=self.folder,
            pipeline=self.pipeline.name,
            version=version,
            stage=self.node.spec.id,
            revision=revision,
            run=run,
            intent=intent,
            objectives=self.pipeline.objectives,
            store=store_or_default(self.pipeline.loaded.spec.store),
            base=self.pipeline.loaded.root,
            environment=self.pipeline.loaded.environment,
            approved=approved,
            aborted=aborted,
            log=log,
        )

    def artifacts(self, record: ReleaseRecord) -> dict[str, tuple[Artifact, ...]]:
        """Return the inputs of a record, by name; where their files are is not known yet."""
        found = {}
        for name, manifests in record.inputs.items():
            kinds = input_ports(type(self.stage))[name].kinds
            found[name] = tuple(
                self.pipeline.store.artifact(
                    next(kind for kind in kinds if kind.kind == manifest["kind"] or len(kinds) == 1), manifest
                )
                for manifest in manifests
            )
        return found

    def bundle(self, inputs: Mapping[str, tuple[Artifact, ...]]) -> StageInputs:
        """Return inputs as the stage takes them."""
        return bundle(type(self.stage).inputs_model, input_ports(type(self.stage)), inputs)


class Driver:
    """Drives one release to its end, or to a pause."""

    def __init__(self, place: Place, drive: Drive, approvals: ReleaseApprovals) -> None:
        self._place = place
        self._run = drive
        self._approvals = approvals
        self._etag = ""
        self._granted: set[str] = set()
        self.rejected = False
        """Whether somebody's rejection has ended it."""
        self.waits: NodeEnd | None = None
        """How the run ends because people are asked something in a pause."""

    def drive(self, record: ReleaseRecord, etag: str, *, begin: bool = False) -> ReleaseRecord:
        """Take steps until the release is finished, or waits for people.

        ``etag`` is that of the records which ``record`` was read from, or made after.

        :raises GateError: if the policy does not let it begin
        :raises LockedError: if another process has gone on with it
        :raises RunInterruptedError: if the run was interrupted
        """
        place, drive = self._place, self._run
        self._etag = etag
        inputs = self._open(record)
        try:
            record = place.evidence.admitted(record, inputs)
        except GateError as exc:
            place.evidence.refused(record, str(exc), drive.auditor)
            if begin:
                raise
            record = changed(record, phase=Phase.ABORTING, message=str(exc))
        if begin:
            place.evidence.begun(record, self._records(), drive.auditor)
        self._save(record)
        record = self._steps(record, inputs)
        if record.phase.is_final:
            place.abort.clear()
            by_hand = record.message.startswith(ABORTED)
            self._approvals.end(record.phase, used=by_hand or record.phase is not Phase.REJECTED)
        place.evidence.ended(record, self._records(), drive.auditor)
        return record

    def _steps(self, record: ReleaseRecord, inputs: StageInputs) -> ReleaseRecord:
        stage = self._place.stage
        context = self._context(record)
        state = stage.state_model.model_validate(record.state)
        attempts = 0
        while not record.phase.is_final:
            self._still_ours(record)
            aborting = record.phase is Phase.ABORTING
            wish = None if aborting else self._wish(record)
            if wish is not None:
                record = self._taken(record, Step(phase=Phase.ABORTING, message=f"{ABORTED}{wish}"))
                continue
            act = stage.abort if aborting else stage.step
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
        record = changed(record, phase=step.phase, message=message)
        self._save(record)
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
        reason = self._place.abort.reason(record.number)
        if reason is not None or record.intent == "rollback":
            return reason
        rejected = self._approvals.rejected()
        self.rejected = rejected is not None
        return rejected

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
            if left <= HEARING or self._place.abort.reason(record.number) is not None:
                return

    @staticmethod
    def _interrupted(record: ReleaseRecord) -> RunInterruptedError:
        return RunInterruptedError(f"interrupted at {record.phase}; the same command goes on from there")

    # -- inputs and records ------------------------------------------------------------------------------------

    def _open(self, record: ReleaseRecord) -> StageInputs:
        """Lay out the inputs. One that is damaged has no files then, which keeps no release from being aborted.

        :raises CorruptArtifactError: if one is damaged and the release is to go on
        """
        store = self._place.pipeline.store
        opened: dict[str, tuple[Artifact, ...]] = {}
        for name, artifacts in self._place.artifacts(record).items():
            items = []
            for index, artifact in enumerate(artifacts):
                folder = self._run.workdir / record.revision[:12] / name / str(index)
                try:
                    items.append(store.view(artifact, folder))
                except CorruptArtifactError:
                    if record.phase is not Phase.ABORTING:
                        raise
                    items.append(artifact)
            opened[name] = tuple(items)
        return self._place.bundle(opened)

    def _records(self) -> Records:
        return self._place.records.load()[0]

    def _still_ours(self, record: ReleaseRecord) -> Records:
        """Return the records, as this process has left them.

        :raises LockedError: if another one has written them since
        """
        records, etag = self._place.records.load()
        if etag != self._etag:
            latest = records.latest
            now = (
                f"it is {latest.phase} by run {latest.run} now"
                if latest is not None
                else "its record is gone"
            )
            message = (
                f"another process has taken over what {self._place.node.id} releases on {self._place.label} while this "
                f"one drove {record.version}: {now}. This one stops here and touches nothing more; see `shipctl status`"
            )
            raise LockedError(message)
        return records

    def _save(self, record: ReleaseRecord) -> None:
        """Write the record.

        :raises LockedError: if another process has written since
        """
        records = self._still_ours(record)
        self._etag = self._place.records.save(_left(records.put(record), record), self._etag)


def changed(record: ReleaseRecord, **changes: Any) -> ReleaseRecord:
    """Return a record with other values, and the time at which they changed."""
    return record.model_copy(update={**changes, "updated": time.time()})


def _left(records: Records, record: ReleaseRecord) -> Records:
    """Mark what a rollback has left: in the same write that completes it, or a kill between the two loses it."""
    if record.intent != "rollback" or record.phase is not Phase.DONE:
        return records
    left = [
        item
        for item in records.records
        if item.phase is Phase.DONE
        and item.number < record.number
        and not item.rolled_back
        and item.revision != record.revision
    ]
    return records.put(changed(left[-1], rolled_back=True)) if left else records


def _failed(exc: Exception, *, aborting: bool, attempts: int) -> Step:
    text = str(exc) if isinstance(exc, ShipctlError) else f"{type(exc).__name__}: {exc}"
    return Step(phase=Phase.ABORTING, message=text, requeue=ABORT_DELAY * attempts if aborting else 0.0)
