"""One release stage on its target, to be looked at: what it would release, what serves, what stands on record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from shipctl.engine.fingerprint import components, fingerprint
from shipctl.engine.options import complete_options, partial_options
from shipctl.engine.place import Place
from shipctl.engine.project import target_label
from shipctl.engine.release_evidence import ReleaseEvidence
from shipctl.evidence.approvals import SHORT, ReleasePlan
from shipctl.release.records import FileRecords, Records, RecordStore, ReleaseRecord
from shipctl.stages.artifacts import Artifact
from shipctl.stages.base import Phase, ReleaseStage, Serving
from shipctl.stages.context import ReleaseContext

if TYPE_CHECKING:
    from shipctl.engine.graph import Node
    from shipctl.engine.pipeline import Pipeline
    from shipctl.engine.secrets import Secrets
    from shipctl.engine.walk import Ready


class ReleaseView:
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
        place = Place(
            pipeline=pipeline,
            node=node,
            stage=stage,
            label=label,
            folder=folder,
            records=FileRecords(folder, pipeline.name, node.spec.id),
            evidence=ReleaseEvidence(pipeline, node, label, serves=self.serves),
        )
        kept = stage.records(place.context(revision="", version=version))
        self._place = place if kept is None else replace(place, records=kept)
        self.keeps_records = kept is not None
        """Whether the target keeps the records itself, for every machine."""

    @classmethod
    def planned(cls, pipeline: Pipeline, node: Node, ready: Ready | None) -> Self:
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
    ) -> Self:
        """Return the release with all its options; ``stages`` is what expressions may know of other stages.

        :raises SpecError: if the options are wrong after all
        """
        planned = pipeline.options[node.id]
        return cls._of(
            pipeline, node, complete_options(node, planned, pipeline.loaded, stages or {}, secrets), ready
        )

    def moved(self, record: ReleaseRecord) -> Self:
        """Return the release, with the options of this one, of what another environment's record holds."""
        inputs = self._place.artifacts(record)
        for item in (item for items in inputs.values() for item in items):
            self._pipeline.store.has_files(item.files)  # so that what a shared store has can be fetched
        return self._with(self._pipeline, self._node, self._stage, inputs, record.version)

    @classmethod
    def _of(cls, pipeline: Pipeline, node: Node, options: Any, ready: Ready | None) -> Self:
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
    ) -> Self:
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
        return self._place.records.load()[0]

    def under_way(self) -> ReleaseRecord | None:
        """Return the last release if it is not over."""
        latest = self.records().latest
        return latest if latest is not None and not latest.phase.is_final else None

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline that it belongs to."""
        return self._pipeline

    @property
    def stage_id(self) -> str:
        """The stage's id."""
        return self._node.spec.id

    @property
    def store(self) -> RecordStore:
        """Where the records are kept."""
        return self._place.records

    def patience(self, phase: Phase) -> float:
        """Return within how many seconds an abort that is asked for in ``phase`` is over at worst."""
        from shipctl.release.leaving import patience

        return patience(self._stage, phase)

    def versions(self) -> dict[str, str]:
        """Return revision to the version number that the target's servers use for it, where it tells.

        :raises ShipctlError: if it cannot be asked
        """
        from shipctl.release.leaving import versions

        return versions(self._stage, self.context(revision=""))

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

    def rights(self) -> dict[str, str]:
        """Return what gives who runs shipctl its rights on the target, as files by their paths."""
        return dict(self._stage.rights(self.context(revision="")))

    def status(self) -> Sequence[Serving]:
        """Return what the target says it serves."""
        return tuple(self._stage.status(self.context(revision="")))

    def down(self, log: Callable[[str], None]) -> Sequence[str]:
        """Stop what this pipeline runs on the target."""
        return tuple(self._stage.down(self.context(revision="", log=log)))

    def doubt(self) -> str | None:
        """Return why what is in place would not be let begin today, or None. It is not touched for that."""
        return self._place.evidence.doubt(self.records().stable)

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
