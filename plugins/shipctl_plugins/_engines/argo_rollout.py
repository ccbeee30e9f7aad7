"""The Rollout of Argo Rollouts, and what stands around it.

Fields: argo-rollouts.readthedocs.io/en/stable/features/specification, version 1.7.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shipctl.release.strategy import SetWeight, Strategy
from shipctl.release.target import Candidate
from shipctl.release.traffic import WHOLE
from shipctl.spec.units import Percentage
from shipctl.stages.context import ReleaseContext
from shipctl_plugins._engines.argo_analysis import Analysis, seconds
from shipctl_plugins._engines.argo_routes import (
    canary_service,
    routed,
    routes,
    stable_service,
    traffic_routing,
)
from shipctl_plugins._engines.cluster import manifest
from shipctl_plugins._engines.notes import Object
from shipctl_plugins._kubernetes.app import App
from shipctl_plugins._kubernetes.manifests.options import KubernetesOptions
from shipctl_plugins._kubernetes.manifests.render import ALL, door
from shipctl_plugins._kubernetes.objects import Kind
from shipctl_plugins._kubernetes.plans import Plans
from shipctl_plugins._kubernetes.state import Entry

ROLLOUT = Kind("argoproj.io/v1alpha1", "Rollout")
WARM = 60
"""Seconds that the old pods stay longer than they are watched, so that a way back finds them."""
PROMOTE = "promote"


@dataclass(frozen=True)
class Rollouts:
    """Renders for one app; nothing is asked of a cluster."""

    options: KubernetesOptions
    address: str | None
    """Prometheus as Argo's controller reaches it."""
    ctx: ReleaseContext
    app: App

    @property
    def plans(self) -> Plans:
        """What a Deployment would have."""
        return Plans(self.options, self.app, Path(self.ctx.base))

    def entry(self, candidate: Candidate, now: float) -> Entry:
        """Return what is remembered of a candidate."""
        return self.plans.entry(candidate, self.ctx.store, now)

    def analysis(self, entry: Entry, strategy: Strategy) -> Analysis:
        """Return what is asked about a revision."""
        return Analysis(self.app, strategy, self.ctx.objectives.slo, entry, self.address)

    # -- around it -------------------------------------------------------------------------------------------

    def around(self, entry: Entry, strategy: Strategy) -> list[Object]:
        """Return everything but the Rollout and the routes."""
        found = [*self.plans.shared(), door(self.options, self.app, ALL, base=Path(self.ctx.base))]
        if strategy.name == "bluegreen":
            found += [self._service(self.app.preview)] if strategy.preview else []
        elif routed(self.options):
            found += [self._service(stable_service(self.app)), self._service(canary_service(self.app))]
        for each in self.plans.revision(entry, None)[2:]:  # without the Deployment and its Service
            found.append(self._of_all(each))
        return [*found, *self.analysis(entry, strategy).templates()]

    def routes(self, strategy: Strategy) -> list[Object]:
        """Return the routes of ours."""
        return routes(self.options, self.app) if strategy.name == "canary" else []

    def _service(self, name: str) -> Object:
        ports = [{**port} for port in self.plans.revision(_anything(self.options), None)[1]["spec"]["ports"]]
        spec = {"type": "ClusterIP", "selector": dict(self.app.pods), "ports": ports}
        return manifest(self.app, Kind("v1", "Service"), name, spec=spec)

    def _of_all(self, found: Object) -> Object:
        """Return a revision's budget or autoscaler as that of the Rollout."""
        changed = copy.deepcopy(found)
        changed["metadata"] = {**manifest(self.app, ROLLOUT, self.app.name)["metadata"]}
        if "selector" in changed["spec"]:
            changed["spec"]["selector"] = {"matchLabels": dict(self.app.pods)}
        if "scaleTargetRef" in changed["spec"]:
            target = {"apiVersion": ROLLOUT.api_version, "kind": ROLLOUT.name, "name": self.app.name}
            changed["spec"]["scaleTargetRef"] = target
        return changed

    # -- the Rollout -----------------------------------------------------------------------------------------

    def template(self, entry: Entry) -> Object:
        """Return the pod template of a revision."""
        template: Object = copy.deepcopy(self.plans.revision(entry, None)[0]["spec"]["template"])
        return template

    def rollout(self, entry: Entry, strategy: Strategy) -> tuple[Object, dict[str, str]]:
        """Return the Rollout, and which of its steps wait for which approval."""
        deployment = self.plans.revision(entry, None)[0]
        how, asks = self._strategy(entry, strategy)
        spec: Object = {
            "revisionHistoryLimit": 3,
            "minReadySeconds": deployment["spec"].get("minReadySeconds", 0),
            "progressDeadlineSeconds": max(1, math.ceil(float(strategy.progressDeadline))),
            "progressDeadlineAbort": True,
            "selector": {"matchLabels": dict(self.app.pods)},
            "template": self.template(entry),
            "strategy": how,
        }
        if self.options.autoscaling is None:
            spec["replicas"] = self.options.replicas
        return manifest(self.app, ROLLOUT, self.app.name, spec=spec), asks

    def _strategy(self, entry: Entry, strategy: Strategy) -> tuple[Object, dict[str, str]]:
        # 0 means "never" to Argo, and "at once" to shipctl
        later = {
            "scaleDownDelaySeconds": math.ceil(float(strategy.scaleDownDelay)) + WARM,
            "abortScaleDownDelaySeconds": max(1, math.ceil(float(strategy.abortScaleDownDelay))),
        }
        if strategy.name == "bluegreen":
            return self._bluegreen(entry, strategy, later)
        canary: Object = {}
        if strategy.surge is not None:
            canary = {
                "maxSurge": _amount(strategy.surge.maxSurge),
                "maxUnavailable": _amount(strategy.surge.maxUnavailable),
            }
        elif routed(self.options):
            canary = {
                "canaryService": canary_service(self.app),
                "stableService": stable_service(self.app),
                **later,
            }
            canary["trafficRouting"] = traffic_routing(self.options, self.app)
        else:
            canary = {"maxSurge": "25%", "maxUnavailable": 0}
        analysis = self.analysis(entry, strategy)
        gated = bool(analysis.templates())
        steps, asks = compiled(strategy, analysis.gate if gated else None)
        if steps:
            canary["steps"] = steps
        first = next((i for i, step in enumerate(steps) if step.get("setWeight")), None)
        if gated and first is not None:
            canary["analysis"] = {
                "templates": [{"templateName": analysis.background}],
                "startingStep": first + 1,
            }
        return {"canary": canary}, asks

    def _bluegreen(
        self, entry: Entry, strategy: Strategy, later: Mapping[str, int]
    ) -> tuple[Object, dict[str, str]]:
        how: Object = {
            "activeService": self.app.name,
            "autoPromotionEnabled": strategy.autoPromotion,
            **later,
        }
        if strategy.preview:
            how["previewService"] = self.app.preview
        analysis = self.analysis(entry, strategy)
        if analysis.templates():
            how["postPromotionAnalysis"] = {"templates": [{"templateName": analysis.gate}]}
        return {"blueGreen": how}, ({} if strategy.autoPromotion else {PROMOTE: PROMOTE})


def compiled(strategy: Strategy, gate: str | None) -> tuple[list[Object], dict[str, str]]:
    """Return a canary's steps as Argo has them, and which of them wait for which approval.

    Before each weight between 0 and 100 is left, ``gate`` (the name of an AnalysisTemplate) is asked once.
    """
    steps: list[Object] = []
    asks: dict[str, str] = {}
    weight, asked = 0, True
    for index, step in enumerate(strategy.steps):
        if isinstance(step, SetWeight):
            if gate is not None and not asked:
                steps.append(_gate(gate))
            asked = not 0 < step.setWeight < WHOLE
            weight = step.setWeight
            steps.append({"setWeight": weight})
        elif step.pause.duration is not None:
            steps.append({"pause": {"duration": seconds(float(step.pause.duration))}})
        else:
            if gate is not None and not asked:
                steps.append(_gate(gate))
                asked = True
            asks[str(len(steps))] = f"step {index}"
            steps.append({"pause": {}})
    if gate is not None and not asked:
        steps.append(_gate(gate))
    return steps, asks


def _gate(name: str) -> Object:
    return {"analysis": {"templates": [{"templateName": name}]}}


def _amount(value: Any) -> int | str:
    return f"{round(float(value) * 100)}%" if isinstance(value, Percentage) else int(value)


def _anything(options: KubernetesOptions) -> Entry:
    """Return a revision that stands for any, where only what all have in common is wanted."""
    digest = "0" * 64
    return Entry(
        revision=digest, version="0.0.0", model="model", digest=digest, repository=digest, image=options.image,
        replicas=options.replicas, since=0.0,
    )  # fmt: skip
