"""Argo Rollouts' controller as far as tests play it: it writes the status that v1.7.2 would, step by step.

What it sets is taken from github.com/argoproj/argo-rollouts v1.7.2: `syncRolloutStatusCanary` (rollout/canary.go),
`syncRolloutStatusBlueGreen` (rollout/bluegreen.go), `resetRolloutStatus` and `promoteStable` (rollout/sync.go),
`CalculateRolloutPhase` (utils/rollout/rolloututil.go).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from shipctl.records import digest_of
from support_controller import Controller, Document, one_look


class Argo(Controller):
    """One Rollout's controller; each method is one reconciliation."""

    kind = "Rollout"

    def rollout(self) -> Document:
        return self.live()

    @property
    def steps(self) -> list[Document]:
        return list((self.rollout()["spec"]["strategy"].get("canary") or {}).get("steps") or ())

    @property
    def hash(self) -> str:
        return digest_of(self.rollout()["spec"]["template"])[:10]

    @one_look
    def write(self, **status: Any) -> None:
        """Write a status for the spec as it is."""
        known = {
            "observedGeneration": str(self.rollout()["metadata"]["generation"]),
            "currentPodHash": self.hash,
        }
        self.set_status({**known, **status})

    @one_look
    def observe(self) -> None:
        """See the spec: a changed pod template begins anew, and one that is stable already is through."""
        if not self.there():
            return
        status, pods = self.status, self.hash
        if status.get("currentPodHash") == pods:
            self.write()
            return
        if status.get("stableRS") == pods:
            self.finish()
            return
        self._begin()

    def _begin(self) -> None:
        self.write(
            abort=None, abortedAt=None, pauseConditions=None, controllerPause=None, promoteFull=None,
            currentStepIndex=0 if self.steps else None, phase="Progressing",
            message="more replicas need to be updated", **self._pods(0),
        )  # fmt: skip

    @one_look
    def finish(self) -> None:
        """Come to the end: the pods of the pod template are the stable ones."""
        self.write(
            stableRS=self.hash, abort=None, abortedAt=None, pauseConditions=None, controllerPause=None,
            currentStepIndex=len(self.steps) or None, phase="Healthy", message=None, **self._pods(100),
        )  # fmt: skip

    @one_look
    def reach(self, index: int) -> None:
        """Come to a step; a pause is begun there."""
        self.observe()
        weight = next(
            (step["setWeight"] for step in reversed(self.steps[: index + 1]) if "setWeight" in step), 0
        )
        paused = "pause" in self.steps[index]
        since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        conditions = [{"reason": "CanaryPauseStep", "startTime": since}] if paused else None
        self.write(
            currentStepIndex=index, pauseConditions=conditions, controllerPause=paused or None,
            phase="Paused" if paused else "Progressing",
            message="CanaryPauseStep" if paused else "more replicas need to be updated", **self._pods(weight),
        )  # fmt: skip

    @one_look
    def pause(self, reason: str) -> None:
        """Pause for another reason."""
        self.observe()
        since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.write(
            pauseConditions=[{"reason": reason, "startTime": since}], controllerPause=True, phase="Paused",
            message=reason,
        )  # fmt: skip

    @one_look
    def give_up(self, message: str) -> None:
        """Abort by itself, as after a metric that failed, and as `abort: true` makes it."""
        self.observe()
        when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.write(
            abort=True, abortedAt=when, pauseConditions=None, controllerPause=None,
            currentStepIndex=0 if self.steps else None, phase="Degraded", message=message, **self._pods(0),
        )  # fmt: skip

    @one_look
    def go_on(self) -> None:
        """Do what has been told since: a new spec, an abort, the end of a pause."""
        if not self.there():
            return
        told = self.status
        self.observe()
        status = self.status
        if told.get("currentPodHash") == status.get("currentPodHash") and status.get("abort"):
            self.give_up(f"RolloutAborted: Rollout aborted update to revision {status['observedGeneration']}")
        elif status.get("controllerPause") and not status.get("pauseConditions"):
            index = int(status.get("currentStepIndex") or 0) + 1
            self.finish() if index >= len(self.steps) else self.reach(index)

    def _pods(self, weight: int) -> Document:
        replicas = int(self.rollout()["spec"].get("replicas", 1))
        stable = self.status.get("stableRS")
        strategy = self.rollout()["spec"]["strategy"]
        if "blueGreen" in strategy:
            updated = replicas
            active = self.hash if weight == 100 or stable is None else stable
            more: Document = {"blueGreen": {"activeSelector": active, "previewSelector": self.hash}}
        elif "trafficRouting" in strategy["canary"]:
            updated = replicas
            canary = 0 if weight == 100 else weight
            more = {"canary": {"weights": {"canary": {"weight": canary}, "stable": {"weight": 100 - canary}}}}
        else:
            updated, more = round(replicas * weight / 100), {}
        counts = {"replicas": replicas, "updatedReplicas": updated, "readyReplicas": replicas}
        return {**counts, "availableReplicas": replicas, **more}
