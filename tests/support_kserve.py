"""KServe's controller, and Knative's below it, as far as tests play them: the status that v0.13.0 would write.

What it sets is taken from github.com/kserve/kserve v0.13.0: `createKnativeService` (pkg/controller/v1beta1/
inferenceservice/reconcilers/knative/ksvc_reconciler.go) for the traffic that Knative is asked for, and
`PropagateStatus` (pkg/apis/serving/v1beta1/inference_service_status.go) for what becomes of its answer.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from shipctl.records import digest_of
from support_cluster import Kube
from support_controller import Controller, Document, one_look


class KServe(Controller):
    """One InferenceService's controllers; each call is one reconciliation."""

    kind = "InferenceService"

    def __init__(self, kube: Kube, namespace: str, name: str = "shop") -> None:
        super().__init__(kube, namespace, name)
        self.seen = ""
        self.count = 0
        self.slow = False
        """The newest pods do not become ready."""

    def service(self) -> Document:
        return self.live()

    @property
    def percent(self) -> int | None:
        percent = self.service()["spec"]["predictor"].get("canaryTrafficPercent")
        return None if percent is None else int(percent)

    @property
    def component(self) -> Document:
        return dict((self.status.get("components") or {}).get("predictor") or {})

    def traffic(self) -> dict[str, int]:
        """Knative's revisions that get requests, and how many percent."""
        shares: dict[str, int] = {}
        for each in self.component.get("traffic", []):
            shares[each["revisionName"]] = shares.get(each["revisionName"], 0) + each["percent"]
        return {name: share for name, share in shares.items() if share}

    @one_look
    def go_on(self) -> None:
        """Reconcile until nothing changes any more."""
        for _ in range(3):
            if not self.there() or not self.reconcile():
                return

    @one_look
    def reconcile(self) -> bool:
        """Write the status for the spec as it is, and return whether that is another one."""
        spec = dict(self.service()["spec"]["predictor"])
        spec.pop("canaryTrafficPercent", None)
        if digest_of(spec) != self.seen:
            self.seen, self.count = digest_of(spec), self.count + 1
        newest = f"{self.name}-predictor-{self.count:05}"
        before = self.component
        ready = str(before.get("latestReadyRevision") or "") if self.slow else newest
        rolled_out = str(before.get("latestRolledoutRevision") or "")
        targets = self._asked(rolled_out) if ready else []
        traffic = [{**each, "revisionName": each.get("revisionName") or ready} for each in targets]
        component = {
            "latestCreatedRevision": newest, "latestReadyRevision": ready, "traffic": traffic,
            **self._rolled_out(before, traffic, ready, newest),
        }  # fmt: skip
        happy = ready == newest
        return self.write(component, "True" if happy else "Unknown", "" if happy else "Deploying")

    @one_look
    def write(self, component: Document, ready: str, reason: str = "", **more: Any) -> bool:
        """Write a status, and return whether it is another one."""
        conditions = self.status.get("conditions") or []
        same = [each for each in conditions if (each["type"], each["status"]) == ("Ready", ready)]
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        since = same[0]["lastTransitionTime"] if same else now
        condition = {"type": "Ready", "status": ready, "lastTransitionTime": since}
        if reason:
            condition["reason"] = reason
        url = f"http://{self.name}.example.com"
        status = {"components": {"predictor": component}, "conditions": [condition], "url": url, **more}
        return self.set_status(status)

    @one_look
    def fail(self, message: str) -> None:
        """Find that the newest model cannot be loaded."""
        self.slow = True
        self.reconcile()
        failed = {
            "transitionStatus": "BlockedByFailedLoad",
            "lastFailureInfo": {"reason": "ModelLoadFailed", "message": message},
        }
        self.write(self.component, "Unknown", "RevisionMissing", modelStatus=failed)

    @one_look
    def recover(self) -> None:
        """Load what it is told from now on."""
        self.slow = False
        if self.there():
            loading = {"transitionStatus": "InProgress", "lastFailureInfo": None}
            self.write(self.component, "Unknown", modelStatus=loading)

    def _asked(self, rolled_out: str) -> list[Document]:
        percent = self.percent
        if percent is None or not rolled_out:
            return [{"latestRevision": True, "percent": 100}]
        targets: list[Document] = [{"latestRevision": True, "percent": percent}]
        if percent < 100:
            rest = {
                "revisionName": rolled_out,
                "latestRevision": False,
                "percent": 100 - percent,
                "tag": "prev",
            }
            targets.append(rest)
        return targets

    @staticmethod
    def _rolled_out(before: Document, traffic: list[Document], ready: str, newest: str) -> Document:
        rolled_out = str(before.get("latestRolledoutRevision") or "")
        previous = str(before.get("previousRolledoutRevision") or "")
        shares: dict[str, int] = {}
        for each in traffic:
            shares[each["revisionName"]] = shares.get(each["revisionName"], 0) + each["percent"]
        for each in traffic:
            if each["revisionName"] != ready or not each["latestRevision"]:
                continue
            if rolled_out != ready:
                if each["percent"] == 100:
                    rolled_out, previous = ready, rolled_out
            elif ready == newest and each["percent"] < 100 and shares[ready] == 100 and previous:
                rolled_out = previous
        found = {"latestRolledoutRevision": rolled_out, "previousRolledoutRevision": previous}
        return {name: value for name, value in found.items() if value}
