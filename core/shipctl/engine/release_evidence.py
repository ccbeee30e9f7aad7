"""What lets a release begin and what it leaves on record.

The policy is asked, the audit log is written, and the store is told what it must keep for the target.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from shipctl.engine.sources import registered_name
from shipctl.evidence.admission import admit
from shipctl.evidence.policy import find_policy
from shipctl.records import digest_of
from shipctl.stages.artifacts import Artifact
from shipctl.stages.base import Phase, StageInputs

if TYPE_CHECKING:
    from shipctl.engine.audit import Auditor
    from shipctl.engine.graph import Node
    from shipctl.engine.pipeline import Pipeline
    from shipctl.release.records import Records, ReleaseRecord


class ReleaseEvidence:
    """The evidence of one release stage on its target."""

    def __init__(self, pipeline: Pipeline, node: Node, target: str, *, serves: bool) -> None:
        """``serves`` says that the target goes on needing what was released, as :class:`ReleaseStage` does."""
        self._pipeline = pipeline
        self._node = node
        self._target = target
        self._serves = serves

    def admitted(self, record: ReleaseRecord, inputs: StageInputs) -> ReleaseRecord:
        """Return the record with what the policy found; one that is being aborted is not asked about again.

        :raises GateError: if the policy says no
        """
        if record.phase is Phase.ABORTING:
            return record
        policy = find_policy(self._pipeline.project.root)
        before = record.admission.verified if record.admission is not None else None
        name = registered_name(self._pipeline.loaded) or self._pipeline.name
        expect = f"{name}@{record.version}"
        admission = admit(policy, _artifacts(inputs), expect=expect, verified=before)
        return record.model_copy(update={"admission": admission or record.admission})

    def doubt(self, stable: ReleaseRecord | None) -> str | None:
        """Return why what was released, and is ``stable``, would not be let begin today, or None."""
        policy = find_policy(self._pipeline.project.root)
        if stable is None or policy is None or not policy.required:
            return None
        what = f"{self._pipeline.name} {stable.version} on {self._target}"
        if stable.admission is None:
            return f"{what} was released without the signature that {policy.name} asks for"
        trusted = {key.id for key in policy.trust.keys}
        if not policy.trust.roots and stable.admission.signer not in trusted:
            return (
                f"{what} was signed by {stable.admission.signer}, whom {policy.name} does not trust any more"
            )
        return None

    def refused(self, record: ReleaseRecord, reason: str, auditor: Auditor) -> None:
        """Write down that the policy said no."""
        auditor.record(f"{record.intent} refused", self._subject(record), {"reason": reason})

    def begun(self, record: ReleaseRecord, records: Records, auditor: Auditor) -> None:
        """Write down that a release begins; ``records`` are those of its target before it.

        :raises StoreError: if it cannot be written, unless this is a way back: then nothing must begin
        """
        auditor.begin(f"{record.intent} begun", self._subject(record), self._details(record))
        self._refer(records, record, auditor, strict=True)

    def ended(self, record: ReleaseRecord, records: Records, auditor: Auditor) -> None:
        """Write down how far a release has come; ``records`` are those of its target now."""
        auditor.record(f"{record.intent} {record.phase}", self._subject(record), self._details(record))
        coming = None if record.phase.is_final else record  # one that is paused still needs its files
        self._refer(records, coming, auditor, strict=False)

    def _subject(self, record: ReleaseRecord) -> str:
        return f"{self._pipeline.name}@{record.version}"

    def _details(self, record: ReleaseRecord) -> dict[str, Any]:
        return {
            "stage": self._node.spec.id,
            "target": self._target,
            "environment": self._pipeline.loaded.environment,
            "number": record.number,
            "revision": record.revision,
            "run": record.run,
            "message": record.message,
            "package": record.admission.package if record.admission is not None else None,
            "signer": record.admission.signer if record.admission is not None else None,
        }

    def _refer(
        self, records: Records, coming: ReleaseRecord | None, auditor: Auditor, *, strict: bool
    ) -> None:
        """Tell the store what this target needs: what serves, what is coming, what it would go back to."""
        if not self._serves:
            return
        serving = records.stable.manifests if records.stable is not None else []
        others = [item.manifests for item in (coming, *records.way_back()[:1]) if item is not None]
        needed = [*serving, *chain.from_iterable(others)]
        auditor.refer(
            self._node.spec.id,
            self._target,
            serving=[digest_of(manifest) for manifest in serving],
            manifests=[digest_of(manifest) for manifest in needed],
            files=sorted({entry["sha256"] for manifest in needed for entry in manifest.get("files", ())}),
            strict=strict,
        )


def _artifacts(inputs: StageInputs) -> list[Artifact]:
    """Return everything that the inputs of a stage hold."""
    found: list[Artifact] = []
    for name in type(inputs).model_fields:
        value = getattr(inputs, name)
        found += value if isinstance(value, list) else [value] if value is not None else []
    return found
