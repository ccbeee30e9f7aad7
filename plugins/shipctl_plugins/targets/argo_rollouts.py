"""Target `argo-rollouts`: a Rollout and its AnalysisTemplates, which Argo's controller drives.

A canary's steps, its pauses and its analysis are Argo's; shipctl hands over, follows the status, passes on approvals,
aborts, and measures once everything goes to the candidate. After an abort the Rollout has the pod template of what is
stable again: neither `kubectl argo rollouts retry` nor a later apply of the same manifest brings the candidate back.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from shipctl.errors import SpecError, StageError
from shipctl.release.delegated import Followed, Standing
from shipctl.release.strategy import PauseStep, SetWeight, Strategy
from shipctl.release.target import Applied, Candidate, Capability, TargetOptions
from shipctl.spec.fields import Text
from shipctl.stages.base import Serving
from shipctl.stages.context import CheckContext
from shipctl_plugins._engines.argo_analysis import ANALYSIS_TEMPLATE, unable
from shipctl_plugins._engines.argo_rollout import ROLLOUT, Rollouts
from shipctl_plugins._engines.argo_routes import GATEWAY, ISTIO, REPLICAS, in_use, routed, routes
from shipctl_plugins._engines.argo_status import RolloutStatus
from shipctl_plugins._engines.cluster import ClusterEngine, manifest
from shipctl_plugins._engines.notes import EDITED, Kept, Notes, Object
from shipctl_plugins._kubernetes import objects
from shipctl_plugins._kubernetes.app import App, short
from shipctl_plugins._kubernetes.manifests.options import KubernetesOptions, app_of
from shipctl_plugins._kubernetes.manifests.roles import Rule
from shipctl_plugins._kubernetes.objects import Kind
from shipctl_plugins._kubernetes.repository import base_uri
from shipctl_plugins._kubernetes.state import Entry
from shipctl_plugins._kubernetes.traffic.ratio import percentages

STRATEGIES = ("canary", "bluegreen", "rolling")


class ArgoRolloutsOptions(KubernetesOptions):
    """What `kubernetes` takes, and where Argo's controller finds Prometheus."""

    prometheus: Text | None = Field(
        default=None,
        description="Address of Prometheus as Argo's controller reaches it; left out, the `url` of the provider.",
    )


class ArgoRollouts(ClusterEngine):
    """Hand revisions over to Argo Rollouts, which goes from step to step and judges by AnalysisTemplates."""

    api_version: ClassVar[int] = 1
    options_model: ClassVar[type[TargetOptions]] = ArgoRolloutsOptions
    capabilities: ClassVar[frozenset[Capability]] = frozenset({Capability.WEIGHTS, Capability.PREVIEW})
    kind: ClassVar[Kind] = ROLLOUT
    others: ClassVar[tuple[Kind, ...]] = (ANALYSIS_TEMPLATE,)
    options: ArgoRolloutsOptions

    # -- before anything has run -----------------------------------------------------------------------------

    @classmethod
    def supports(cls, strategy: Strategy, options: object) -> str | None:
        """Refuse what Argo Rollouts has no words for."""
        if strategy.name not in STRATEGIES or strategy.mirror is not None or strategy.duration is not None:
            return (
                f"the target argo-rollouts cannot do {strategy.name}, which ends by statistics of shipctl's own; use "
                "canary or bluegreen, or the target kubernetes"
            )
        assert isinstance(options, KubernetesOptions)  # noqa: S101  (the options of this class)
        if options.router.uses not in {REPLICAS, GATEWAY, ISTIO}:
            return (
                f"the target argo-rollouts knows no router {options.router.uses}; choose gateway-api, istio or "
                "replicas"
            )
        return unable(strategy)

    @classmethod
    def not_enforced(cls, strategy: Strategy, options: object) -> Sequence[str]:
        """Name what Argo Rollouts does otherwise."""
        assert isinstance(options, KubernetesOptions)  # noqa: S101  (the options of this class)
        alone = (
            "when shipctl is gone, Argo goes on by itself until it is promoted, and nobody watches it then"
        )
        lines = [f"there is no watchdog, and Argo heeds no lease: {alone}"]
        asking = [index for index, step in enumerate(strategy.steps) if _asks(step)]
        if asking or not strategy.autoPromotion:
            lines.append(
                "while an approval is waited for, the traffic stays where it is, and does not go back to stable"
            )
        if strategy.analysis is not None:
            lines.append("the candidate is not compared with the stable revision: bounds are absolute")
            lines.append(
                "of the slo, Argo asks about error_rate alone, and beside it about analysis.metrics; the rest is asked "
                "about once it is promoted"
            )
        if strategy.surge is not None or (strategy.name == "bluegreen" and strategy.analysis is not None):
            lines.append("nothing is measured before everything goes to the candidate")
        if not routed(options) and strategy.name == "canary":
            lines.append(_rounded(strategy, options.replicas))
        if routed(options):
            lines.append(
                "requests that the candidate cannot be reached for fail: there is no failover to stable"
            )
        if options.watchdog is not None or options.comparator is not None:
            lines.append("`watchdog` and `comparator` are the target kubernetes' alone, and are not used")
        return lines

    @classmethod
    def check(cls, options: ArgoRolloutsOptions, ctx: CheckContext) -> None:
        """Look for Argo Rollouts, for the right to tell it anything, and for a store that servers can read.

        :raises UnavailableError: if something is missing
        :raises SpecError: if the spec asks for what Argo cannot do
        """
        base_uri(options, ctx.store)
        if options.autoscaling is not None and options.autoscaling.engine == "keda":
            message = "the target argo-rollouts scales by `engine: hpa` alone; write that in autoscaling"
            raise SpecError(message)
        cls.check_cluster(options, ctx, routes(options, app_of(options, ctx.pipeline, ctx.environment)))

    @classmethod
    def rules(cls, app: App) -> list[Rule]:  # noqa: ARG003  (objects of an engine may have other names)
        """Return what is needed beside the rules of the target kubernetes."""
        verbs = ["get", "list", "watch", "create", "patch", "update", "delete"]
        return [
            {"apiGroups": ["argoproj.io"], "resources": ["rollouts", "analysistemplates"], "verbs": verbs},
            {
                "apiGroups": ["argoproj.io"],
                "resources": ["rollouts/status"],
                "verbs": ["get", "patch", "update"],
            },
        ]

    def preview(self, candidate: str, strategy: Strategy | None = None) -> Sequence[str]:
        """Say what Argo holds for stable, and which objectives it does not ask about."""
        found, notes = self.look()
        if found is None:
            return ["nothing serves: Argo Rollouts brings up a first revision without steps"]
        status = RolloutStatus(found, notes)
        kept = notes.kept(status.stable)
        serving = (
            f"{kept.entry.version} ({short(kept.entry.revision)})" if kept is not None else status.stable
        )
        lines = [f"Rollout {self.app.name} in {self.app.namespace}: {serving} is stable"]
        if status.current != status.stable:
            lines.append(f"it is under way to {status.current[:12]}, which this release takes the place of")
        return lines

    # -- what is rendered ------------------------------------------------------------------------------------

    def _rollouts(self, app: App) -> Rollouts:
        return Rollouts(self.options, self.options.prometheus, self.ctx, app)

    def rendered(self, app: App, candidate: Candidate, strategy: Strategy) -> list[Object]:
        """Return everything that a release puts there, the Rollout last; the note on it is left out."""
        rollouts = self._rollouts(app)
        entry = rollouts.entry(candidate, 0.0)
        return [
            *rollouts.around(entry, strategy),
            *rollouts.routes(strategy),
            rollouts.rollout(entry, strategy)[0],
        ]

    def beside(self, found: Object) -> Object:
        """Return a manifest with the note, and with the weights that Argo has set."""
        if found["kind"] in {"HTTPRoute", "GRPCRoute", "VirtualService"}:
            return in_use(found, self.place.cluster.get(objects.reference(found)))
        return super().beside(found)

    # -- what a release does ---------------------------------------------------------------------------------

    def submit(self, candidate: Candidate, strategy: Strategy) -> Applied:
        """Lay the model out, and apply the Rollout and what stands around it."""
        self.publish(candidate)
        rollouts = self._rollouts(self.app)
        entry = rollouts.entry(candidate, self.ctx.now())

        def change(found: Object | None, notes: Notes) -> str:
            status = RolloutStatus(found, notes) if found is not None else None
            if status is not None and status.current == candidate.revision:
                return self._again(status, candidate)
            if found is not None:
                self._same_kind(found, strategy)
            for each in rollouts.around(entry, strategy):
                objects.apply(self.place, each, self.ctx.log)
            for each in rollouts.routes(strategy):
                objects.apply(self.place, self.beside(each), self.ctx.log)
            rollout, asks = rollouts.rollout(entry, strategy)
            self._apply(rollout, entry, asks, status)
            return f"{candidate.version} is handed over to Rollout {self.app.name}"

        return Applied(message=self.changed(change))

    def _again(self, status: RolloutStatus, candidate: Candidate) -> str:
        if status.aborted and not status.promoted:
            self._patch_status(status, {"abort": False})
            return f"Rollout {self.app.name} begins {candidate.version} anew"
        return f"Rollout {self.app.name} has {candidate.version} already"

    def _same_kind(self, found: Object, strategy: Strategy) -> None:
        kind = "blueGreen" if strategy.name == "bluegreen" else "canary"
        if kind not in (found["spec"].get("strategy") or {}):
            message = (
                f"Rollout {self.app.name} is no {kind} so far, and a change of that would take both revisions off the "
                "traffic; keep to the strategy, or `shipctl down` first"
            )
            raise StageError(message)

    def _apply(
        self, rollout: Object, entry: Entry, asks: dict[str, str], status: RolloutStatus | None
    ) -> None:
        """Apply the Rollout, with a note of what the server makes of its pod template: it may know fewer fields."""
        # `kubectl argo rollouts undo` leaves another owner of what is ours by all rights
        force = status is not None and status.current != EDITED
        if status is not None:
            rollout["metadata"]["resourceVersion"] = status.found["metadata"]["resourceVersion"]
        made = self.write(rollout, force=force, dry_run=True)
        notes, stable = (status.notes, status.stable) if status is not None else (Notes(), None)
        kept = Kept(entry=entry, runs=made["spec"]["template"])
        told = notes.told(kept, stable, mark=_pods(status), asks=asks, fields=tuple(rollout["spec"]))
        self.write(rollout, told, force=force)

    def follow(self, revision: str) -> Followed:
        """Look at the Rollout."""
        found, notes = self.look()
        if found is None:
            return Followed(standing=Standing.ABSENT)
        return RolloutStatus(found, notes).followed(revision)

    def resume(self, revision: str) -> Applied:
        """Do what `kubectl argo rollouts promote` does with one that waits."""

        def change(found: Object | None, notes: Notes) -> str:
            status = RolloutStatus(found, notes) if found is not None else None
            if found is None or status is None or status.current != revision:
                return f"Rollout {self.app.name} does not wait for {revision[:12]}"
            patch = status.going_on()
            if patch is not None:
                self._patch_status(status, patch)
            if status.spec.get("paused"):
                self.place.cluster.patch(self.ref, {"spec": {"paused": False}})
            elif patch is None:
                return f"Rollout {self.app.name} does not wait"
            return f"Rollout {self.app.name} goes on"

        return Applied(message=self.changed(change))

    def abort(self, revision: str, stable: str | None) -> Applied:
        """Abort as `kubectl argo rollouts abort` does, and put the pod template of ``stable`` back."""

        def change(found: Object | None, notes: Notes) -> str:
            if found is None:
                return self.nothing(stable)
            status = RolloutStatus(found, notes)
            if status.current != revision:
                return (
                    f"Rollout {self.app.name} has {status.current[:12]}, and {revision[:12]} is not under way"
                )
            if stable is None:
                return self._removed(found)
            if not status.aborted and not status.promoted:
                self._patch_status(status, {"abort": True})
                return f"Rollout {self.app.name} is aborted"
            self._pin(status, stable)
            return f"Rollout {self.app.name} has the pod template of {self.named(notes, stable)} again"

        return Applied(message=self.changed(change))

    def _removed(self, found: Object) -> str:
        """Remove a first release: there is nothing that Argo could go back to."""
        self.place.cluster.delete(self.ref, uid=found["metadata"]["uid"])
        return f"Rollout {self.app.name} is removed, as nothing served before it"

    def _pin(self, status: RolloutStatus, stable: str) -> None:
        """Have the Rollout's pod template be that of ``stable``, without steps that would hold it up."""
        kept = status.notes.kept(stable)
        if kept is None:
            message = (
                f"Rollout {self.app.name} does not know {stable[:12]} any more; `shipctl rollback` goes to it"
            )
            raise StageError(message)
        spec = {name: copy.deepcopy(status.spec[name]) for name in status.notes.fields if name in status.spec}
        spec["template"] = kept.runs
        if status.bluegreen:
            spec["strategy"]["blueGreen"]["autoPromotionEnabled"] = True
        elif status.promoted:  # it is not stable any more for Argo, which would go through the steps
            for name in ("steps", "analysis"):
                spec["strategy"]["canary"].pop(name, None)
        rollout = manifest(self.app, ROLLOUT, self.app.name, spec=spec)
        rollout["metadata"]["resourceVersion"] = status.found["metadata"]["resourceVersion"]
        self.write(rollout, status.notes.told(kept, status.stable, mark=_pods(status)), force=True)

    def _patch_status(self, status: RolloutStatus, change: Object) -> None:
        version = status.found["metadata"]["resourceVersion"]
        self.place.cluster.patch(self.ref, {"status": change}, subresource="status", resource_version=version)

    # -- what serves -----------------------------------------------------------------------------------------

    def status(self) -> Sequence[Serving]:
        """Return what Argo holds for stable, and what it is under way to."""
        found, notes = self.look()
        if found is None:
            return ()
        status = RolloutStatus(found, notes)
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
            healthy = seen.standing is Standing.HEALTHY or revision != status.current
            details = {
                "traffic": f"{seen.weight} %",
                "rollout": str(status.status.get("phase", "not seen yet")),
            }
            lines.append(self.served(kept, healthy=healthy, **details))
        return lines


def _pods(status: RolloutStatus | None) -> str:
    return str(status.status.get("stableRS") or "") if status is not None else ""


def _asks(step: Any) -> bool:
    return isinstance(step, PauseStep) and step.pause.duration is None


def _rounded(strategy: Strategy, replicas: int) -> str:
    """Say what weights become where they are shares of pods (`maxSurge` 25 %, rounded up)."""
    weights = [step.setWeight for step in strategy.steps if isinstance(step, SetWeight)]
    first = next((weight for weight in weights if weight), 5)
    canary = max(1, round(replicas * first / 100))
    share = percentages({"stable": max(0, replicas - canary), "canary": canary}).get("canary", 0)
    return f"weights are shares of pods: {first} % of {replicas} pods come to about {share} %"
