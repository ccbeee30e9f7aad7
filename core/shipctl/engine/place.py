"""Where a release stage acts: its target's folder and records, and what it is told of the run there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shipctl.engine.ports import bundle, input_ports
from shipctl.engine.release_evidence import ReleaseEvidence
from shipctl.release.records import RecordStore, ReleaseRecord
from shipctl.stages.artifacts import Artifact
from shipctl.stages.base import ReleaseStage, StageInputs
from shipctl.stages.context import ReleaseContext
from shipctl.store.objects import store_or_default

if TYPE_CHECKING:
    from shipctl.engine.graph import Node
    from shipctl.engine.pipeline import Pipeline


@dataclass(frozen=True)
class Place:
    """One release stage on its target, as one environment uses it."""

    pipeline: Pipeline
    node: Node
    stage: ReleaseStage[Any, Any, Any]
    label: str
    """The target's name, with the environment where there is one."""
    folder: Path
    records: RecordStore
    evidence: ReleaseEvidence

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
