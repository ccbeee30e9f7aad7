"""Drives a release stage step by step, so that it can be killed anywhere and gone on with.

The record of a release is written to the target before and after each step. A release that was begun and
is not finished is continued; one that something newer supersedes is aborted first; what was rolled back
is refused until it is asked for with `--retry`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from shipctl.engine.aborting import ABORTED, AbortFile
from shipctl.engine.approvals import ReleaseApprovals
from shipctl.engine.driving import Drive, Driver, Place, changed
from shipctl.engine.fingerprint import components, fingerprint
from shipctl.engine.options import complete_options, partial_options
from shipctl.engine.project import target_label
from shipctl.engine.release_evidence import ReleaseEvidence
from shipctl.engine.walk import NodeEnd
from shipctl.errors import SpecError
from shipctl.evidence.approvals import SHORT, ReleasePlan
from shipctl.release.records import FileRecords, Records, ReleaseRecord
from shipctl.stages.artifacts import Artifact
from shipctl.stages.base import Phase, ReleaseStage, Serving
from shipctl.stages.context import ReleaseContext
from shipctl.store.log import Actor

if TYPE_CHECKING:
    from shipctl.engine.graph import Node
    from shipctl.engine.pipeline import Pipeline
    from shipctl.engine.secrets import Secrets
    from shipctl.engine.walk import Ready

__all__ = ["Drive", "Release"]

SHORT_DIGEST = 6
"""Digits of a revision's digest that are enough to name it."""


class Release:
    """One release stage of a pipeline, with what it is to release (or None to only look)."""

    def __init__(
        self,
        pipeline: Pipeline,
        node: Node,
        stage: ReleaseStage[Any, Any, Any],
        inputs: Mapping[str, tuple[Artifact, ...]] | None,
        revision: str,
        version: str,
    ) -> None:
        self._pipeline = pipeline
        self._node = node
        self._stage = stage
        self._inputs = inputs
        self.revision = revision
        self.version = version
        self.target = stage.target()
        self.serves = type(stage).serves
        self.environment = pipeline.loaded.environment
        label = target_label(self.target, self.environment)
        folder = pipeline.project.target(self.target, self.environment)
        self._records = FileRecords(folder, pipeline.name, node.spec.id)
        self._place = Place(
            pipeline=pipeline,
            node=node,
            stage=stage,
            label=label,
            folder=folder,
            records=self._records,
            evidence=ReleaseEvidence(pipeline, node, label, serves=self.serves),
            abort=AbortFile(folder, pipeline.name, node.spec.id),
        )

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

    def moved(self, record: ReleaseRecord) -> Release:
        """Return the release, with the options of this one, of what another environment's record holds."""
        inputs = self._place.artifacts(record)
        for item in (item for items in inputs.values() for item in items):
            self._pipeline.store.has_files(item.files)  # so that what a shared store has can be fetched
        return self._with(self._pipeline, self._node, self._stage, inputs, record.version)

    @classmethod
    def _of(cls, pipeline: Pipeline, node: Node, options: Any, ready: Ready | None) -> Release:
        assert issubclass(node.cls, ReleaseStage)  # noqa: S101  (the caller chose it)
        inputs = ready.inputs if ready is not None else None
        return cls._with(pipeline, node, node.cls(options), inputs, pipeline.version)

    @classmethod
    def _with(
        cls,
        pipeline: Pipeline,
        node: Node,
        stage: ReleaseStage[Any, Any, Any],
        inputs: Mapping[str, tuple[Artifact, ...]] | None,
        version: str,
    ) -> Release:
        revision = ""
        if inputs is not None:
            canonical = pipeline.options[node.id].canonical(
                node.cls.options_model, None, pipeline.scope(node)
            )
            digests = {name: [item.digest for item in items] for name, items in inputs.items()}
            named = {"class": node.spec.uses, "pipeline": pipeline.name, "version": version}
            revision = fingerprint(components(named, canonical, digests))
        return cls(pipeline, node, stage, inputs, revision, version)

    # -- looking -------------------------------------------------------------------------------------------

    def context(
        self,
        *,
        revision: str | None = None,
        version: str | None = None,
        log: Callable[[str], None] = lambda _line: None,
    ) -> ReleaseContext:
        """Return what the stage is told by who only looks."""
        revision = self.revision if revision is None else revision
        return self._place.context(revision=revision, version=version or self.version, log=log)

    @property
    def label(self) -> str:
        """The target's name, with the environment where there is one."""
        return self._place.label

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
        return bool(self._stage.in_place(self._place.bundle(self._inputs), self.context()))

    def holds(self, record: ReleaseRecord) -> bool:
        """Whether the target says that it serves what a record holds, whole and healthy."""
        context = self.context(revision=record.revision, version=record.version)
        inputs = self._place.bundle(self._place.artifacts(record))
        if not self._stage.in_place(inputs, context):
            return False
        return all(item.healthy for item in self.status() if item.revision == record.revision)

    def preview(self) -> Sequence[str]:
        """Return what would change on the target, a line each."""
        latest = self.records().latest
        if latest is not None and not latest.phase.is_final:
            what = "rollback to" if latest.intent == "rollback" else "release of"
            return (
                f"the {what} {latest.version}, which stands at {latest.phase}, is finished or aborted first",
            )
        lines = list(self._stage.preview(self.context()))
        approval = self._node.spec.approval
        if approval is not None and approval.required and self.revision != self.stable_revision():
            digest = f" of release {self._plan(self.records()).digest[:SHORT]}" if self.revision else ""
            who = " or ".join(approval.roles) or "anybody whom the policy names"
            lines.append(f"needs an approval{digest} by {who} before anything moves")
        return tuple(lines)

    def status(self) -> Sequence[Serving]:
        """Return what the target says it serves."""
        return tuple(self._stage.status(self.context(revision="")))

    def down(self, log: Callable[[str], None]) -> Sequence[str]:
        """Stop what this pipeline runs on the target."""
        return tuple(self._stage.down(self.context(revision="", log=log)))

    # -- releasing -----------------------------------------------------------------------------------------

    def waits(self, drive: Drive, *, retry: bool) -> NodeEnd | None:
        """Return why the revision may not be released now, after asking for what it takes; None if it may.

        What was begun goes on without being asked about again, unless somebody has rejected it since.

        :raises StoreError: if somebody has to be asked, and the store cannot be reached
        """
        records = self.records()
        latest = records.latest
        unfinished = latest is not None and not latest.phase.is_final
        if (
            unfinished
            and latest is not None
            and (latest.intent == "rollback" or latest.revision == self.revision)
        ):
            return None
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
        with self._approvals(self._plan(records), drive) as approvals:
            return approvals.gate(drive.run, lambda: self._stage.preview(self.context()))

    def apply(self, drive: Drive, *, retry: bool) -> NodeEnd:
        """Release the revision, or go on with it where an earlier run was stopped; or return what it waits for."""
        latest = self.records().latest
        if latest is not None and not latest.phase.is_final and latest.intent == "rollback":
            drive.log(f"the rollback to {latest.version} was not finished; finishing it first")
            self._drive(latest, drive)
        waits = self.waits(drive, retry=retry)
        latest = self.records().latest
        if latest is not None and not latest.phase.is_final and latest.revision == self.revision:
            drive.log(
                f"going on with release {latest.number} of {latest.version}, which stood at {latest.phase}"
            )
            return self._drive(latest, drive)
        if waits is not None:
            return waits
        if latest is not None and not latest.phase.is_final:
            drive.log(
                f"release {latest.number} of {latest.version} is unfinished; aborting it for {self.version}"
            )
            self._drive(changed(latest, phase=Phase.ABORTING, message="superseded"), drive)
        assert self._inputs is not None  # noqa: S101  (apply is called with inputs)
        manifests = {name: [item.manifest() for item in items] for name, items in self._inputs.items()}
        record = self._begin(self.records(), drive.run, self.revision, self.version, "apply", manifests)
        return self._drive(record, drive, begin=True)

    def rollback(self, drive: Drive, to: str | None) -> NodeEnd:
        """Release an earlier revision again: the one before, or the one that ``to`` names by version or digest.

        :raises SpecError: if there is none such
        """
        records, _ = self._records.load()
        latest, stable = records.latest, records.stable
        if latest is not None and not latest.phase.is_final:
            if latest.intent == "apply":
                drive.log(f"release {latest.number} of {latest.version} is at {latest.phase}; aborting it")
                aborting = changed(latest, phase=Phase.ABORTING, message="rolled back by hand")
                return NodeEnd("done", self._drive(aborting, drive).message)  # which is what was asked for
            return self._drive(latest, drive)
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
        return self._drive(record, drive, begin=True)

    def abort(self, drive: Drive, reason: str) -> NodeEnd:
        """Abort the release that is under way.

        :raises SpecError: if there is none
        """
        latest = self.records().latest
        if latest is None or latest.phase.is_final:
            message = (
                f"{self._node.spec.id} releases nothing on {self.label} now, so there is nothing to abort"
            )
            raise SpecError(message)
        if latest.phase is not Phase.ABORTING:
            latest = changed(latest, phase=Phase.ABORTING, message=f"{ABORTED}{reason}")
        end = self._drive(latest, drive)
        record = self.records().latest
        went_back = record is not None and record.phase in {Phase.ROLLED_BACK, Phase.REJECTED}
        return NodeEnd("done", end.message) if went_back else NodeEnd("failed", end.message, exit_code=1)

    def ask_abort(self, number: int, reason: str) -> None:
        """Ask the process that drives release ``number`` to abort it."""
        self._place.abort.ask(number, reason)

    def forget_abort(self) -> None:
        """Take back what was asked."""
        self._place.abort.clear()

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

    def _plan(self, records: Records, record: ReleaseRecord | None = None) -> ReleasePlan:
        """Return what a release, this one or that of a record, would change."""
        return ReleasePlan(
            pipeline=self._pipeline.name,
            version=record.version if record is not None else self.version,
            stage=self._node.spec.id,
            target=self.target,
            environment=self.environment,
            revision=record.revision if record is not None else self.revision,
            stable=records.stable.revision if records.stable is not None else None,
        )

    def _approvals(self, plan: ReleasePlan, drive: Drive) -> ReleaseApprovals:
        return ReleaseApprovals(self._pipeline, self._node, plan, drive.auditor)

    def _drive(self, record: ReleaseRecord, drive: Drive, *, begin: bool = False) -> NodeEnd:
        """Take steps until the release is finished, or waits for people."""
        records, etag = self._records.load()
        with self._approvals(self._plan(records, record), drive) as approvals:
            driver = Driver(self._place, drive, approvals)
            record = driver.drive(record, etag, begin=begin)
        if record.phase is Phase.DONE:
            return NodeEnd("done", record.message)
        if driver.rejected:  # by somebody, which is another matter than to be rolled back
            return NodeEnd("rejected", record.message, exit_code=4)
        if record.phase is Phase.REJECTED:
            status: Literal["failed", "rejected"] = "failed" if record.error else "rejected"
            return NodeEnd(status, record.message, exit_code=1 if record.error else 4)
        if record.phase is Phase.ROLLED_BACK:
            return NodeEnd("failed", record.message, exit_code=7)
        return driver.waits or NodeEnd("waiting", record.message, exit_code=6)

    def doubt(self) -> str | None:
        """Return why what is in place would not be let begin today, or None. It is not touched for that."""
        return self._place.evidence.doubt(self.records().stable)
