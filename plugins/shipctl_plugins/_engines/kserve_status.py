"""What the status of an InferenceService says.

github.com/kserve/kserve v0.13.0: `InferenceServiceStatus` and how it comes about (`PropagateStatus`) in
pkg/apis/serving/v1beta1/inference_service_status.go; what becomes of `canaryTrafficPercent`, `createKnativeService` in
pkg/controller/v1beta1/inferenceservice/reconcilers/knative/ksvc_reconciler.go. The observed generation is that of
Knative's Service there, so whether KServe has seen a change is told by the newest revision that Knative has made.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from shipctl.release.delegated import Followed, Standing
from shipctl.release.traffic import WHOLE
from shipctl_plugins._engines.kserve_service import PERCENT
from shipctl_plugins._engines.notes import Notes, Object, Stride, instant, replicas_of

BROKEN = frozenset({"BlockedByFailedLoad", "InvalidSpec"})
"""States of a transition that does not end by itself."""


@dataclass(frozen=True)
class ServiceStatus:
    """One look at an InferenceService."""

    found: Object
    notes: Notes

    @property
    def predictor(self) -> Object:
        """What it is told to run, without the share of the requests."""
        predictor = dict((self.found.get("spec") or {}).get("predictor") or {})
        return {name: value for name, value in predictor.items() if name != PERCENT}

    @property
    def asked(self) -> int:
        """The percentage that it is told to give to the newest revision."""
        percent = self.found["spec"]["predictor"].get(PERCENT)
        return WHOLE if percent is None else int(percent)

    @property
    def component(self) -> Object:
        """The predictor's status; empty where KServe has said nothing yet."""
        status = self.found.get("status") or {}
        return dict((status.get("components") or {}).get("predictor") or {})

    @cached_property
    def current(self) -> str:
        """The revision that it is told to run."""
        return self.notes.live(self.predictor)

    @property
    def made(self) -> str:
        """Knative's revision of what it is told to run; empty before that is made."""
        newest = str(self.component.get("latestCreatedRevision") or "")
        return "" if newest == self.notes.newest else newest

    @property
    def rolled_out(self) -> str:
        """Knative's revision that had all requests last."""
        return str(self.component.get("latestRolledoutRevision") or "")

    @property
    def whole(self) -> bool:
        """Whether all requests go to what it is told to run."""
        return bool(self.made) and self.rolled_out == self.made and self._percent({self.made}) == WHOLE

    @property
    def stable(self) -> str | None:
        """The revision that is rolled out."""
        if not self.rolled_out:
            return None
        if self.rolled_out == self.notes.mark:
            return self.notes.stable
        if self.rolled_out == self.made:
            return self.current
        return f"Knative's revision {self.rolled_out}"

    def condition(self, name: str) -> Object:
        """Return a condition; empty where there is none."""
        conditions = (self.found.get("status") or {}).get("conditions") or []
        return next((dict(each) for each in conditions if each.get("type") == name), {})

    @property
    def stride(self) -> Stride | None:
        """Where on the way it is; None where there is no way left."""
        way = self.notes.strides
        return way[self.notes.index] if self.notes.index < len(way) - 1 else None

    def weight(self, revision: str) -> int:
        """Return the percentage of the requests that a revision gets."""
        mine = {self.made} if self.made else set()
        stable = {self.notes.mark} if self.notes.mark else set()
        if revision == self.current:
            same = stable if self.notes.stable == self.current else set()
            return self._percent(mine | same)
        if revision == self.notes.stable:
            return self._percent(stable)
        return self._percent(self._serving - mine - stable)

    @property
    def _traffic(self) -> list[Object]:
        return list(self.component.get("traffic") or ())

    @property
    def _serving(self) -> set[str]:
        return {str(each.get("revisionName") or "") for each in self._traffic}

    def _percent(self, names: set[str]) -> int:
        return sum(
            int(each.get("percent") or 0) for each in self._traffic if each.get("revisionName") in names
        )

    # -- in the terms of a release ---------------------------------------------------------------------------

    def followed(self, revision: str) -> Followed:
        """Return what KServe says of a revision."""
        known: dict[str, Any] = {
            "stable": self.stable, "current": self.current, "weight": self.weight(revision), "step": self.notes.index,
        }  # fmt: skip
        if revision != self.current:
            return Followed(standing=Standing.ABSENT, **known)
        standing, message = self._standing()
        known |= {"message": message, "replicas": self._replicas(standing)}
        stride = self.stride
        if standing is Standing.PAUSED and stride is not None:
            known |= {"asks": stride.asks, "until": None if stride.asks else self._since() + stride.pause}
        return Followed(standing=standing, **known)

    def _standing(self) -> tuple[Standing, str]:
        failure = self._failure()
        if failure:
            return Standing.DEGRADED, failure
        if not self.made:
            return Standing.PROGRESSING, "waiting for KServe to make a revision of it"
        ready = self.condition("Ready")
        if self.component.get("latestReadyRevision") != self.made or ready.get("status") != "True":
            said = str(ready.get("message") or ready.get("reason") or "it is not ready")
            return Standing.PROGRESSING, f"{self.made}: {said}"
        if self.whole and self.asked == WHOLE:
            return Standing.HEALTHY, ""
        if self.stride is not None and self._percent({self.made}) == self.asked:
            return Standing.PAUSED, f"{self.made} has {self.asked} %"
        return Standing.PROGRESSING, f"{self.made} has {self._percent({self.made})} % of {self.asked} %"

    def _failure(self) -> str:
        way = self.notes.strides
        meant = way[self.notes.index].weight if self.notes.index < len(way) else WHOLE
        if self.asked < meant:
            return f"somebody else has set {PERCENT} to {self.asked}, where it was {meant}"
        status = (self.found.get("status") or {}).get("modelStatus") or {}
        if self.made and status.get("transitionStatus") in BROKEN:
            why = status.get("lastFailureInfo") or {}
            said = why.get("message") or why.get("reason") or ""
            return f"{status['transitionStatus']}: {said}" if said else str(status["transitionStatus"])
        made = self.condition("PredictorConfigurationReady")
        if self.made and made.get("status") == "False" and made.get("reason") == "RevisionFailed":
            return f"RevisionFailed: {made.get('message') or self.made}"
        return ""

    def _since(self) -> float:
        """Return when the share began: when it was told, or the pods were ready after that."""
        changed = self.condition("Ready").get("lastTransitionTime")
        return max(self.notes.since, instant(str(changed))) if changed else self.notes.since

    def _replicas(self, standing: Standing) -> Any:
        kept = self.notes.kept(self.current)
        wanted = int(self.predictor.get("minReplicas") or 1)
        ready = wanted if standing in {Standing.HEALTHY, Standing.PAUSED} else 0
        return replicas_of(kept, wanted, ready)
