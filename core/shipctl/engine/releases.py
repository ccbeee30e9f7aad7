"""Drives a release stage step by step, so that it can be killed anywhere and gone on with.

The record of a release is written to the target before and after each step. A release that was begun and
is not finished is continued; one that something newer supersedes is aborted first; what was rolled back
is refused until it is asked for with `--retry`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shipctl.engine.fingerprint import components, fingerprint
from shipctl.engine.options import complete_options, partial_options
from shipctl.engine.ports import bundle, input_ports
from shipctl.engine.release_evidence import ReleaseEvidence
from shipctl.engine.walk import NodeEnd
from shipctl.errors import CorruptArtifactError, GateError, RunInterruptedError, ShipctlError, SpecError
from shipctl.release.records import FileRecords, Records, ReleaseRecord
from shipctl.stages.artifacts import Artifact
from shipctl.stages.base import Phase, ReleaseStage, Serving, StageInputs, Step
from shipctl.stages.context import ReleaseContext
from shipctl.stages.events import ReleaseStepped
from shipctl.store.log import Actor
from shipctl.store.objects import store_or_default

if TYPE_CHECKING:
    from shipctl.engine.audit import Auditor
    from shipctl.engine.graph import Node
    from shipctl.engine.pipeline import Pipeline
    from shipctl.engine.secrets import Secrets
    from shipctl.engine.walk import Ready
    from shipctl.stages.verdicts import Verdict

ABORT_ATTEMPTS = 5
"""Times that an abort that raises is tried."""
ABORT_DELAY = 1.0
"""Seconds between the first two; each further delay is that much longer."""

SHORT_DIGEST = 6
"""Digits of a revision's digest that are enough to name it."""

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


class Release:
    """One release stage of a pipeline, with what it is to release (or None to only look)."""

    def __init__(
        self,
        pipeline: Pipeline,
        node: Node,
        stage: ReleaseStage[Any, Any, Any],
        inputs: Mapping[str, tuple[Artifact, ...]] | None,
        revision: str,
    ) -> None:
        self._pipeline = pipeline
        self._node = node
        self._stage = stage
        self._inputs = inputs
        self.revision = revision
        self.target = stage.target()
        self.serves = type(stage).serves
        self._target_dir = pipeline.project.targets / self.target
        self._records = FileRecords(self._target_dir, pipeline.name, node.spec.id)
        self._evidence = ReleaseEvidence(pipeline, node, self.target, serves=self.serves)

    @classmethod
    def planned(cls, pipeline: Pipeline, node: Node, ready: Ready | None) -> Release:
        """Return the release as far as it is known when planning: secrets are not resolved."""
        return cls._of(
            pipeline, node, partial_options(node.cls.options_model, pipeline.options[node.id]), ready
        )

    @classmethod
    def of(
        cls,
        pipeline: Pipeline,
        node: Node,
        ready: Ready | None,
        secrets: Secrets,
        stages: Mapping[str, Any] | None = None,
    ) -> Release:
        """Return the release with all its options; ``stages`` is what expressions may know of other stages.

        :raises SpecError: if the options are wrong after all
        """
        planned = pipeline.options[node.id]
        return cls._of(
            pipeline, node, complete_options(node, planned, pipeline.loaded, stages or {}, secrets), ready
        )

    @classmethod
    def _of(cls, pipeline: Pipeline, node: Node, options: Any, ready: Ready | None) -> Release:
        assert issubclass(node.cls, ReleaseStage)  # noqa: S101  (the caller chose it)
        inputs = ready.inputs if ready is not None else None
        revision = ""
        if inputs is not None:
            canonical = pipeline.options[node.id].canonical(
                node.cls.options_model, None, pipeline.scope(node)
            )
            digests = {name: [item.digest for item in items] for name, items in inputs.items()}
            revision = fingerprint(
                components(
                    {"class": node.spec.uses, "pipeline": pipeline.name, "version": pipeline.version},
                    canonical,
                    digests,
                )
            )
        return cls(pipeline, node, node.cls(options), inputs, revision)

    # -- looking -------------------------------------------------------------------------------------------

    def context(
        self,
        *,
        run: str = "",
        revision: str | None = None,
        version: str | None = None,
        intent: Literal["apply", "rollback"] = "apply",
        log: Callable[[str], None] = lambda _line: None,
    ) -> ReleaseContext:
        """Return what the stage is told of the run."""
        return ReleaseContext(
            project=self._pipeline.project.root,
            target_dir=self._target_dir,
            pipeline=self._pipeline.name,
            version=version or self._pipeline.version,
            stage=self._node.spec.id,
            revision=self.revision if revision is None else revision,
            run=run,
            intent=intent,
            objectives=self._pipeline.objectives,
            store=store_or_default(self._pipeline.loaded.spec.store),
            base=self._pipeline.loaded.root,
            log=log,
        )

    def records(self) -> Records:
        """Return the records of this stage on its target."""
        return self._records.load()[0]

    def stable_revision(self) -> str | None:
        """Return the revision that serves, as recorded."""
        stable = self.records().stable
        return stable.revision if stable is not None else None

    def in_place(self) -> bool:
        """Whether this very revision serves, as recorded and as the target says."""
        if self._inputs is None or not self.revision or self.stable_revision() != self.revision:
            return False
        latest = self.records().latest
        if latest is None or not latest.phase.is_final:
            return False
        return bool(self._stage.in_place(_bundle(self._stage, self._inputs), self.context()))

    def preview(self) -> Sequence[str]:
        """Return what would change on the target, a line each."""
        latest = self.records().latest
        if latest is not None and not latest.phase.is_final:
            what = "rollback to" if latest.intent == "rollback" else "release of"
            return (
                f"the {what} {latest.version}, which stands at {latest.phase}, is finished or aborted first",
            )
        return tuple(self._stage.preview(self.context()))

    def status(self) -> Sequence[Serving]:
        """Return what the target says it serves."""
        return tuple(self._stage.status(self.context(revision="")))

    def down(self, log: Callable[[str], None]) -> Sequence[str]:
        """Stop what this pipeline runs on the target."""
        return tuple(self._stage.down(self.context(revision="", log=log)))

    # -- releasing -----------------------------------------------------------------------------------------

    def apply(self, drive: Drive, *, retry: bool) -> NodeEnd:
        """Release the revision, or go on with it where an earlier run was stopped."""
        records, _ = self._records.load()
        latest = records.latest
        if latest is not None and not latest.phase.is_final and latest.intent == "rollback":
            drive.log(f"the rollback to {latest.version} was not finished; finishing it first")
            self._drive(latest, drive)
            records, _ = self._records.load()
            latest = records.latest
        if latest is not None and not latest.phase.is_final and latest.revision != self.revision:
            drive.log(
                f"release {latest.number} of {latest.version} is unfinished; aborting it for {self._pipeline.version}"
            )
            self._drive(_with(latest, phase=Phase.ABORTING, message="superseded"), drive)
            records, _ = self._records.load()
            latest = records.latest
        if latest is not None and not latest.phase.is_final:
            drive.log(
                f"going on with release {latest.number} of {latest.version}, which stood at {latest.phase}"
            )
            return self._end(self._drive(latest, drive))
        gone = records.was_rolled_back(self.revision)
        if gone is not None and not retry:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(gone.updated))
            message = (
                f"revision {self.revision[:12]} ({gone.version}) was rolled back on {when}; "
                "`apply --retry` releases it again"
            )
            return NodeEnd("failed", message, exit_code=7)
        assert self._inputs is not None  # noqa: S101  (apply is called with inputs)
        manifests = {name: [item.manifest() for item in items] for name, items in self._inputs.items()}
        record = self._begin(records, drive.run, self.revision, self._pipeline.version, "apply", manifests)
        return self._end(self._drive(record, drive, begin=True))

    def rollback(self, drive: Drive, to: str | None) -> NodeEnd:
        """Release an earlier revision again: the one before, or the one that ``to`` names by version or digest.

        :raises SpecError: if there is none such
        """
        records, _ = self._records.load()
        latest, stable = records.latest, records.stable
        if latest is not None and not latest.phase.is_final:
            if latest.intent == "apply":
                drive.log(f"release {latest.number} of {latest.version} is at {latest.phase}; aborting it")
                aborting = _with(latest, phase=Phase.ABORTING, message="rolled back by hand")
                return NodeEnd("done", self._drive(aborting, drive).message)  # which is what was asked for
            return self._end(self._drive(latest, drive))
        choices = records.way_back()
        goal = next(
            (
                item
                for item in choices
                if to is None
                or item.version == to
                or (len(to) >= SHORT_DIGEST and item.revision.startswith(to))
            ),
            None,
        )
        if goal is None or stable is None:
            have = ", ".join(f"{item.version} ({item.revision[:12]})" for item in choices) or "none"
            what = f"no release {to!r} to roll back to" if to else "nothing to roll back to"
            message = f"{what}; releases that were done and never rolled back, beside what serves: {have}"
            raise SpecError(message)
        record = self._begin(records, drive.run, goal.revision, goal.version, "rollback", goal.inputs)
        record = record.model_copy(update={"admission": goal.admission})
        return self._end(self._drive(record, drive, begin=True))

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

    def _end(self, record: ReleaseRecord) -> NodeEnd:
        if record.phase is Phase.DONE:
            return NodeEnd("done", record.message)
        if record.phase is Phase.REJECTED:
            return NodeEnd(
                "failed" if record.error else "rejected", record.message, exit_code=1 if record.error else 4
            )
        if record.phase is Phase.ROLLED_BACK:
            return NodeEnd("failed", record.message, exit_code=7)
        return NodeEnd("waiting", record.message, exit_code=6)

    def _drive(self, record: ReleaseRecord, drive: Drive, *, begin: bool = False) -> ReleaseRecord:
        """Take steps until the release is finished; the record is on the target before and after each.

        :raises GateError: if the policy does not let it begin
        """
        context = self.context(
            run=record.run,
            revision=record.revision,
            version=record.version,
            intent=record.intent,
            log=drive.log,
        )
        inputs = self._open(record, drive.workdir)
        try:
            record = self._evidence.admitted(record, inputs)
        except GateError as exc:
            self._evidence.refused(record, str(exc), drive.auditor)
            if begin:
                raise
            record = _with(record, phase=Phase.ABORTING, message=str(exc))
        if begin:
            self._evidence.begun(record, self.records(), drive.auditor)
        state = self._stage.state_model.model_validate(record.state)
        self._save(record)
        attempts = 0
        while not record.phase.is_final:
            aborting = record.phase is Phase.ABORTING
            act = self._stage.abort if aborting else self._stage.step
            try:
                state, step = act(state, inputs, context)
                attempts = 0
            except Exception as exc:  # any failure of a step means the same: go back
                if drive.stop.is_set():  # but not one that comes of being interrupted
                    message = f"interrupted at {record.phase}; the same command goes on from there"
                    raise RunInterruptedError(message) from exc
                attempts += 1
                step = _failed(exc, aborting=aborting, attempts=attempts)
                record = record.model_copy(update={"error": record.error or not isinstance(exc, GateError)})
                if aborting and attempts >= ABORT_ATTEMPTS:
                    raise
            step = step.model_copy(update={"message": drive.redact(step.message)})
            if aborting and not step.phase.is_final:
                step = step.model_copy(update={"phase": Phase.ABORTING})
            message = record.message if aborting and record.message and step.phase.is_final else step.message
            if aborting and step.phase.is_final and step.message and step.message not in message:
                message = f"{message}; {step.message}"
            record = _with(record, phase=step.phase, message=message, state=state.model_dump(mode="json"))
            self._save(record)
            drive.watch(
                ReleaseStepped(
                    run=record.run, node=self._node.id, target=self.target, revision=record.revision,
                    phase=step.phase, message=step.message, requeue=step.requeue, time=record.updated,
                ),
                step.verdicts,
            )  # fmt: skip
            if step.phase is Phase.PAUSED:
                break
            if not record.phase.is_final and drive.stop.wait(step.requeue):
                message = f"interrupted at {record.phase}; the same command goes on from there"
                raise RunInterruptedError(message)
        self._evidence.ended(record, self.records(), drive.auditor)
        return record

    def doubt(self) -> str | None:
        """Return why what is in place would not be let begin today, or None. It is not touched for that."""
        return self._evidence.doubt(self.records().stable)

    def _open(self, record: ReleaseRecord, workdir: Path) -> StageInputs:
        """Lay out the inputs. One that is damaged has no files then, which keeps no release from being aborted.

        :raises CorruptArtifactError: if one is damaged and the release is to go on
        """
        store = self._pipeline.store
        opened: dict[str, tuple[Artifact, ...]] = {}
        for name, manifests in record.inputs.items():
            port = input_ports(type(self._stage))[name]
            items = []
            for index, manifest in enumerate(manifests):
                kind = next(
                    kind for kind in port.kinds if kind.kind == manifest["kind"] or len(port.kinds) == 1
                )
                artifact = store.artifact(kind, manifest)
                try:
                    items.append(store.view(artifact, workdir / record.revision[:12] / name / str(index)))
                except CorruptArtifactError:
                    if record.phase is not Phase.ABORTING:
                        raise
                    items.append(artifact)
            opened[name] = tuple(items)
        return _bundle(self._stage, opened)

    def _save(self, record: ReleaseRecord) -> None:
        records, etag = self._records.load()
        self._records.save(_left(records.put(record), record), etag)


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
    return records.put(_with(left[-1], rolled_back=True)) if left else records


def _with(record: ReleaseRecord, **changes: Any) -> ReleaseRecord:
    return record.model_copy(update={**changes, "updated": time.time()})


def _failed(exc: Exception, *, aborting: bool, attempts: int) -> Step:
    text = str(exc) if isinstance(exc, ShipctlError) else f"{type(exc).__name__}: {exc}"
    return Step(phase=Phase.ABORTING, message=text, requeue=ABORT_DELAY * attempts if aborting else 0.0)


def _bundle(stage: ReleaseStage[Any, Any, Any], inputs: Mapping[str, tuple[Artifact, ...]]) -> StageInputs:
    return bundle(type(stage).inputs_model, input_ports(type(stage)), inputs)
