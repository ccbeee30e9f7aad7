"""What the status of a Rollout says.

github.com/argoproj/argo-rollouts v1.7.2: `RolloutStatus` in pkg/apis/rollouts/v1alpha1/types.go; how phase and message
come about, and when they count, `GetRolloutPhase` in utils/rollout/rolloututil.go; what goes on with a paused one,
`getPatches` in pkg/kubectl-argo-rollouts/cmd/promote/promote.go.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from shipctl.release.delegated import Followed, Standing
from shipctl.release.traffic import WHOLE
from shipctl_plugins._engines.argo_rollout import PROMOTE
from shipctl_plugins._engines.notes import Notes, Object, instant, replicas_of

_UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class RolloutStatus:
    """One look at a Rollout."""

    found: Object
    notes: Notes

    @property
    def spec(self) -> Object:
        """Its spec."""
        return dict(self.found.get("spec") or {})

    @property
    def status(self) -> Object:
        """Its status; empty where the controller has said nothing yet."""
        return dict(self.found.get("status") or {})

    @cached_property
    def current(self) -> str:
        """The revision of its pod template."""
        return self.notes.live(self.spec.get("template") or {})

    @property
    def observed(self) -> bool:
        """Whether the status is about the spec as it is."""
        return str(self.status.get("observedGeneration", "")) == str(self.found["metadata"].get("generation"))

    @property
    def promoted(self) -> bool:
        """Whether the pods of the pod template are those that Argo holds for stable."""
        stable = self.status.get("stableRS")
        return self.observed and bool(stable) and stable == self.status.get("currentPodHash")

    @property
    def stable(self) -> str | None:
        """The revision that Argo holds for stable."""
        pods = self.status.get("stableRS") or ""
        if not pods:
            return None
        if self.promoted:
            return self.current
        if pods == self.notes.mark:
            return self.notes.stable
        return f"pods {pods}"

    @property
    def bluegreen(self) -> bool:
        """Whether it is released in one step."""
        return "blueGreen" in (self.spec.get("strategy") or {})

    @property
    def steps(self) -> list[Object]:
        """The canary's steps."""
        return list((self.spec.get("strategy", {}).get("canary") or {}).get("steps") or ())

    @property
    def index(self) -> int:
        """Which of them it is at."""
        return int(self.status.get("currentStepIndex") or 0)

    @property
    def reason(self) -> str:
        """Why the controller pauses it; empty if it does not."""
        conditions = self.status.get("pauseConditions") or []
        return str(conditions[0].get("reason", "")) if conditions else ""

    @property
    def aborted(self) -> bool:
        """Whether somebody, or an analysis, has aborted it."""
        return bool(self.status.get("abort"))

    # -- in the terms of a release ---------------------------------------------------------------------------

    def followed(self, revision: str) -> Followed:
        """Return what Argo says of a revision."""
        standing, message = self._standing()
        known: dict[str, Any] = {
            "stable": self.stable, "current": self.current, "weight": self.weight(revision), "message": message,
            "replicas": self._replicas(revision),
        }  # fmt: skip
        if revision != self.current:
            return Followed(**{**known, "standing": Standing.ABSENT, "message": ""})
        if standing is Standing.HEALTHY and self.stable != revision:
            standing = Standing.PROGRESSING
        if standing is Standing.PAUSED:
            known |= {"asks": self._asks(), "until": self._until()}
        return Followed(standing=standing, step=self.index if self.observed else 0, **known)

    def _standing(self) -> tuple[Standing, str]:
        status = self.status
        if not self.observed:
            return Standing.PROGRESSING, "waiting for rollout spec update to be observed"
        if status.get("controllerPause") and not self.reason and not self.spec.get("paused"):
            return Standing.PROGRESSING, "waiting for rollout to unpause"
        said = str(status.get("message") or "")
        phases = {"Healthy": Standing.HEALTHY, "Degraded": Standing.DEGRADED, "Paused": Standing.PAUSED}
        standing = phases.get(str(status.get("phase", "")), Standing.PROGRESSING)
        if self.aborted and not self.promoted:
            standing = Standing.DEGRADED
            said = said or "RolloutAborted"
        if self.steps and standing in {Standing.PROGRESSING, Standing.PAUSED}:
            said = f"step {min(self.index + 1, len(self.steps))} of {len(self.steps)}" + (
                f", {said}" if said else ""
            )
        return standing, said

    def weight(self, revision: str) -> int:
        """Return the percentage of the requests that a revision gets."""
        share = self._share()
        if revision == self.current:
            return share
        if revision == self.stable:
            return WHOLE - share
        if self.observed:  # neither what was told last nor what is stable
            return 0
        return self._routed() or 0

    def _share(self) -> int:
        """Return what the pods of the pod template get."""
        if self.promoted:
            return WHOLE
        if not self.observed:  # what is told last has no pods yet
            return WHOLE if self.current == self.stable else 0
        status = self.status
        if self.bluegreen:
            active = (status.get("blueGreen") or {}).get("activeSelector")
            return WHOLE if active and active == status.get("currentPodHash") else 0
        weight = self._routed()
        if weight is not None:
            return weight
        updated, every = int(status.get("updatedReplicas") or 0), int(status.get("replicas") or 0)
        return min(WHOLE, round(WHOLE * updated / every)) if every else 0

    def _routed(self) -> int | None:
        weights = (self.status.get("canary") or {}).get("weights")
        return int((weights.get("canary") or {}).get("weight") or 0) if weights else None

    def _asks(self) -> str:
        if self.reason == "BlueGreenPause":
            return self.notes.asks.get(PROMOTE, "")
        if self.reason == "CanaryPauseStep":
            return self.notes.asks.get(str(self.index), "")
        return ""

    def _until(self) -> float | None:
        if self.reason != "CanaryPauseStep" or self.index >= len(self.steps):
            return None
        duration = (self.steps[self.index].get("pause") or {}).get("duration")
        begun = self.status["pauseConditions"][0].get("startTime")
        return instant(begun) + _seconds(duration) if duration is not None and begun else None

    def _replicas(self, revision: str) -> Any:
        kept = self.notes.kept(revision)
        if revision != self.current or not self.observed:
            return None
        wanted = int(self.spec.get("replicas") or self.status.get("replicas") or 0)
        ready = min(
            int(self.status.get("updatedReplicas") or 0), int(self.status.get("availableReplicas") or 0)
        )
        return replicas_of(kept, wanted, ready)

    # -- what goes on ----------------------------------------------------------------------------------------

    def going_on(self) -> Object | None:
        """Return the change of the status by which a paused one goes on; None if it does not wait."""
        run = (self.status.get("canary") or {}).get("currentStepAnalysisRunStatus") or {}
        if run.get("status") == "Inconclusive" and self.reason and self.status.get("controllerPause"):
            after = min(self.index + 1, len(self.steps))
            return {"pauseConditions": None, "controllerPause": False, "currentStepIndex": after}
        return {"pauseConditions": None} if self.reason else None


def _seconds(duration: Any) -> float:
    text = str(duration)
    return float(text[:-1]) * _UNITS[text[-1]] if text[-1:] in _UNITS else float(text)
