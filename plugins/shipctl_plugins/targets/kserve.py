"""Target `kserve`: an InferenceService whose canary share shipctl moves, since KServe has no steps of its own.

The way (shares, pauses, approvals) and where on it the release is are remembered on the InferenceService, so any
machine goes on. KServe judges nothing but whether pods are ready; shipctl measures at each share, and a share is left
only after a measurement has passed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from shipctl.errors import SpecError, StageError
from shipctl.release.delegated import Followed, Standing
from shipctl.release.strategy import Strategy
from shipctl.release.target import Applied, Candidate, Capability, TargetOptions
from shipctl.release.traffic import WHOLE
from shipctl.stages.base import Serving
from shipctl.stages.context import CheckContext
from shipctl_plugins._engines.cluster import ClusterEngine
from shipctl_plugins._engines.kserve_service import (
    INFERENCE_SERVICE,
    MODE,
    SERVERLESS,
    Services,
    storage_uri,
    strides,
)
from shipctl_plugins._engines.kserve_status import ServiceStatus
from shipctl_plugins._engines.notes import EDITED, Kept, Notes, Object, Stride
from shipctl_plugins._kubernetes.app import App
from shipctl_plugins._kubernetes.manifests.options import KubernetesOptions
from shipctl_plugins._kubernetes.manifests.roles import Rule
from shipctl_plugins._kubernetes.objects import Kind

STRATEGIES = ("canary", "bluegreen")
UNSEEN = 60.0
"""Seconds within which KServe sees a change, where it sees any."""


class KserveOptions(KubernetesOptions):
    """What `kubernetes` takes; what KServe and Knative bring themselves is refused."""


class Kserve(ClusterEngine):
    """Hand revisions over to KServe, and move the share of the canary from step to step."""

    api_version: ClassVar[int] = 1
    options_model: ClassVar[type[TargetOptions]] = KserveOptions
    capabilities: ClassVar[frozenset[Capability]] = frozenset({Capability.WEIGHTS})
    steps_itself: ClassVar[bool] = False
    kind: ClassVar[Kind] = INFERENCE_SERVICE
    options: KserveOptions

    # -- before anything has run -----------------------------------------------------------------------------

    @classmethod
    def supports(cls, strategy: Strategy, options: object) -> str | None:  # noqa: ARG003
        """Refuse what KServe has no words for."""
        if strategy.name not in STRATEGIES or strategy.mirror is not None or strategy.duration is not None:
            return (
                f"the target kserve cannot do {strategy.name}: it divides requests between two revisions, and no more; "
                "use canary or bluegreen, or the target kubernetes"
            )
        if strategy.preview:
            return "the target kserve has no preview door; write `previewService: false`"
        return None

    @classmethod
    def not_enforced(cls, strategy: Strategy, options: object) -> Sequence[str]:  # noqa: ARG003
        """Name what KServe does otherwise."""
        lines = [
            "there is no watchdog, and KServe heeds no lease: when shipctl is gone, the share stays where it is",
            "requests that the candidate cannot be reached for fail: there is no failover to stable",
            "how many pods a revision has is Knative's affair, and one that got no requests for long has to start",
            "the model is read by KServe's storage initializer, whose access to the store is the service account's",
        ]
        if strategy.analysis is not None:
            lines.append(
                "Prometheus has to copy the pods' label shipctl.dev/revision to their series by itself"
            )
        if any(stride.asks for stride in strides(strategy)):
            lines.append("while an approval is waited for, the traffic stays, and does not go back to stable")
        return lines

    @classmethod
    def check(cls, options: KserveOptions, ctx: CheckContext) -> None:
        """Look for KServe, for the right to tell it anything, and for a store that servers can read.

        :raises UnavailableError: if something is missing
        :raises SpecError: if the spec asks for what KServe brings itself
        """
        storage_uri(options, ctx.store)
        theirs = ("router", "ingress", "service", "monitoring", "watchdog", "comparator", "templates")
        given = [name for name in theirs if name in options.model_fields_set]
        if given:
            message = (
                f"{' and '.join(given)} would be of pods and Services that are KServe's here; leave it out, or use the "
                "target kubernetes"
            )
            raise SpecError(message)
        cls.check_cluster(options, ctx)

    @classmethod
    def rules(cls, app: App) -> list[Rule]:  # noqa: ARG003  (objects of an engine may have other names)
        """Return what is needed beside the rules of the target kubernetes."""
        verbs = ["get", "list", "watch", "create", "patch", "update", "delete"]
        return [{"apiGroups": ["serving.kserve.io"], "resources": ["inferenceservices"], "verbs": verbs}]

    def preview(self, candidate: str, strategy: Strategy | None = None) -> Sequence[str]:
        """Say what is rolled out, and by which shares the candidate would be."""
        found, notes = self.look()
        if found is None:
            return ["nothing serves: KServe gives a first revision everything once its pods are ready"]
        status = ServiceStatus(found, notes)
        serving = self.named(notes, status.stable)
        return [f"InferenceService {self.app.name} in {self.app.namespace}: {serving} is rolled out"]

    # -- what is rendered ------------------------------------------------------------------------------------

    def rendered(self, app: App, candidate: Candidate, strategy: Strategy) -> list[Object]:
        """Return the InferenceService at its first share; the note on it is left out."""
        services = Services(self.options, self.ctx, app)
        predictor = services.predictor(services.entry(candidate, 0.0))
        return [services.service(predictor, strides(strategy)[0].weight)]

    # -- what a release does ---------------------------------------------------------------------------------

    def submit(self, candidate: Candidate, strategy: Strategy) -> Applied:
        """Lay the model out, and have KServe run it with its first share."""
        self.publish(candidate)
        services = self._services
        entry = services.entry(candidate, self.ctx.now())

        def change(found: Object | None, notes: Notes) -> str:
            status = ServiceStatus(found, notes) if found is not None else None
            if status is not None and status.current == candidate.revision:
                return f"InferenceService {self.app.name} has {candidate.version} already"
            stable = status.stable if status is not None else None
            way = strides(strategy) if stable is not None else (Stride(weight=WHOLE),)
            runs = services.predictor(entry)
            force = status is not None and status.current != EDITED
            service = self._at(services.service(runs, way[0].weight), found)
            made = ServiceStatus(self.write(service, force=force, dry_run=True), notes)
            kept = Kept(entry=entry, runs=made.predictor)
            told = notes.told(kept, stable, strides=way, since=self.ctx.now(), **_marks(status))
            self.write(service, told, force=force)
            return f"{candidate.version} is handed over to InferenceService {self.app.name}, with {way[0].weight} %"

        return Applied(message=self.changed(change))

    @property
    def _services(self) -> Services:
        return Services(self.options, self.ctx, self.app)

    @staticmethod
    def _at(service: Object, found: Object | None) -> Object:
        """Return a service to apply, made from the version that was looked at."""
        if found is not None:
            service["metadata"]["resourceVersion"] = found["metadata"]["resourceVersion"]
        return service

    def _tell(self, status: ServiceStatus, runs: Object, percent: int, told: Notes) -> None:
        self.write(self._at(self._services.service(runs, percent), status.found), told, force=True)

    def follow(self, revision: str) -> Followed:
        """Look at the InferenceService."""
        found, notes = self.look()
        if found is None:
            return Followed(standing=Standing.ABSENT)
        status = ServiceStatus(found, notes)
        mode = (found["metadata"].get("annotations") or {}).get(MODE, SERVERLESS)
        if mode != SERVERLESS and revision == status.current:
            message = f"its mode {mode} divides no requests; it has to be {SERVERLESS}"
            return status.followed(revision).model_copy(
                update={"standing": Standing.DEGRADED, "message": message}
            )
        return status.followed(revision)

    def resume(self, revision: str) -> Applied:
        """Give the candidate its next share."""

        def change(found: Object | None, notes: Notes) -> str:
            status = ServiceStatus(found, notes) if found is not None else None
            kept = notes.kept(revision)
            if status is None or kept is None or status.followed(revision).standing is not Standing.PAUSED:
                return f"InferenceService {self.app.name} does not wait"
            index = notes.index + 1
            percent = notes.strides[index].weight
            told = notes.model_copy(update={"index": index, "since": self.ctx.now()})
            self._tell(status, kept.runs, percent, told)
            return f"{kept.entry.version} gets {percent} % of the requests"

        return Applied(message=self.changed(change))

    def abort(self, revision: str, stable: str | None) -> Applied:
        """Take the share away, then have the InferenceService run ``stable`` again, and give that everything."""

        def change(found: Object | None, notes: Notes) -> str:
            if found is None:
                return self.nothing(stable)
            status = ServiceStatus(found, notes)
            if stable is None and status.current == revision:
                self.place.cluster.delete(self.ref, uid=found["metadata"]["uid"])
                return f"InferenceService {self.app.name} is removed, as nothing served before it"
            if status.current == stable:
                return self._whole(status, stable)
            if status.current != revision or stable is None:
                return f"InferenceService {self.app.name} has {status.current[:12]}, and not {revision[:12]}"
            return self._back(status, stable)

        return Applied(message=self.changed(change))

    def _back(self, status: ServiceStatus, stable: str) -> str:
        notes = status.notes
        kept, bad = notes.kept(stable), notes.kept(status.current)
        if kept is None or bad is None:
            message = f"{self.app.name} does not know {stable[:12]} any more; `shipctl rollback` goes to it"
            raise StageError(message)
        if not status.made and self.ctx.now() - notes.since < UNSEEN:
            # else what KServe makes of the bad one, a moment later, would be taken for what is put back
            if status.asked:
                self._tell(status, bad.runs, 0, notes.model_copy(update={"since": self.ctx.now()}))
            return f"{bad.entry.version} gets 0 % of the requests"
        before = str(status.component.get("previousRolledoutRevision") or "")
        if status.stable == status.current and before and before == notes.mark:
            # KServe's own way back after a promotion: what had everything before has it again, at once
            if status.asked:
                self._tell(status, bad.runs, 0, notes)
            return f"{bad.entry.version} gets 0 % of the requests"
        # where KServe holds the bad one for stable and knows none before, nothing else could have the rest
        percent = 0 if status.stable == stable else WHOLE
        way = (Stride(weight=WHOLE),) if percent else (Stride(weight=0), Stride(weight=WHOLE))
        told = notes.told(kept, status.stable, strides=way, since=self.ctx.now(), **_marks(status))
        self._tell(status, kept.runs, percent, told)
        return f"InferenceService {self.app.name} runs {self.named(notes, stable)} again"

    def _whole(self, status: ServiceStatus, stable: str) -> str:
        """Give the new pods of ``stable`` everything, once they are ready; until then those that it had serve."""
        kept = status.notes.kept(stable)
        ready = status.made and status.component.get("latestReadyRevision") == status.made
        if kept is None or status.asked == WHOLE or not ready:
            return f"InferenceService {self.app.name} runs {self.named(status.notes, stable)} again"
        told = status.notes.model_copy(update={"strides": (), "index": 0, "since": self.ctx.now()})
        self._tell(status, kept.runs, WHOLE, told)
        return f"{kept.entry.version} has all requests"

    # -- what serves -----------------------------------------------------------------------------------------

    def endpoints(self) -> dict[str, str]:
        """Return the address that KServe gives, or that which it has inside of the cluster."""
        found, _ = self.look()
        url = ((found or {}).get("status") or {}).get("url")
        return {"http": str(url or f"http://{self.app.name}.{self.app.namespace}.svc")}

    def status(self) -> Sequence[Serving]:
        """Return what is rolled out, and what gets a share beside it."""
        found, notes = self.look()
        if found is None:
            return ()
        status = ServiceStatus(found, notes)
        lines = []
        for revision in dict.fromkeys((status.stable, status.current)):
            kept = notes.kept(revision)
            if (
                kept is None
                or revision is None
                or (revision != status.stable and not status.weight(revision))
            ):
                continue
            seen = status.followed(revision)
            healthy = seen.standing in {Standing.HEALTHY, Standing.PAUSED} or revision != status.current
            lines.append(self.served(kept, healthy=healthy, traffic=f"{seen.weight} %"))
        return lines


def _marks(status: ServiceStatus | None) -> dict[str, str]:
    if status is None:
        return {"mark": "", "newest": ""}
    return {"mark": status.rolled_out, "newest": str(status.component.get("latestCreatedRevision") or "")}
