"""What an app remembers, from its live objects: for when somebody has deleted the ConfigMap that had it.

What is stable decides where requests go when a release is given up, so it is never guessed: the object that divides
requests names it, or nobody does.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from shipctl.errors import StageError
from shipctl.release.router import TrafficRouter
from shipctl_plugins._kubernetes.app import (
    ANNOTATION_AUTOSCALED,
    ANNOTATION_MODEL,
    ANNOTATION_NUMBER,
    ANNOTATION_REPOSITORY,
    Place,
    short,
)
from shipctl_plugins._kubernetes.objects import SCALERS, ours, revision_label
from shipctl_plugins._kubernetes.state import RECALLED, Entry, ModelState
from shipctl_plugins._kubernetes.traffic.reducing import whole_of
from shipctl_plugins._kubernetes.traffic.routing import ClusterRouter

Object = dict[str, Any]

_FLAG = "--model-repository="


def recalled(place: Place, router: TrafficRouter, deployments: Mapping[str, Object]) -> ModelState:
    """Return the state that these Deployments (by revision) and the traffic tell of; empty without Deployments.

    :raises StageError: if nothing says which of them is stable
    """
    if not deployments:
        return ModelState()
    stable = _stable(place, router, deployments)
    scaled = {revision_label(each) for each in ours(place, SCALERS)}
    entries = {
        name: _entry(place, name, found, scaled=short(name) in scaled) for name, found in deployments.items()
    }
    return ModelState(stable=stable, entries=entries, ports=(place.http_port, place.grpc_port))


def _stable(place: Place, router: TrafficRouter, deployments: Mapping[str, Object]) -> str | None:
    asked = router.asked() if isinstance(router, ClusterRouter) else None
    if asked is not None and asked.fallback is not None:
        return asked.fallback
    shares = {name: weight for name, weight in router.get().traffic.weights.items() if weight}
    if len(shares) == 1 and set(shares) <= set(deployments):
        return next(iter(shares))
    if not shares and (asked is not None or len(deployments) == 1):
        return None  # the door was never opened, or was closed
    listed = ", ".join(f"{name[:12]} ({shares.get(name, 0)} %)" for name in sorted({*deployments, *shares}))
    message = (
        f"the ConfigMap {place.app.kept} of {place.app.namespace}, which says what is stable, is gone, and what "
        f"divides the requests does not say it either: {listed}; traffic is left as it is. Restore the ConfigMap, or "
        "give one revision all requests by hand and run again, or `shipctl down` and begin anew"
    )
    raise StageError(message)


def _entry(place: Place, revision: str, deployment: Object, *, scaled: bool) -> Entry:
    """Return what a Deployment tells of its revision; what it does not tell, as one from before does, is the usual.

    ``scaled``: there is an autoscaler for it.
    """
    told = deployment["metadata"].get("annotations") or {}
    number = told.get(ANNOTATION_NUMBER, "")
    template = deployment["spec"]["template"]
    notes = template["metadata"].get("annotations") or {}
    labels = deployment["metadata"].get("labels") or {}
    containers = template["spec"].get("containers") or [{}]
    server = next((one for one in containers if one.get("name") == "triton"), containers[0])
    flags = [flag.removeprefix(_FLAG) for flag in server.get("args") or () if flag.startswith(_FLAG)]
    created = deployment["metadata"].get("creationTimestamp") or "1970-01-01T00:00:00Z"
    return Entry(
        revision=revision,
        version=labels.get("app.kubernetes.io/version") or "of an unknown version",
        model=told.get(ANNOTATION_MODEL) or place.app.pipeline,
        digest=notes.get(ANNOTATION_REPOSITORY, ""),
        repository=(flags[0] if flags else "").replace("$$(", "$("),
        image=server.get("image", ""),
        number=int(number) if number.isascii() and number.isdigit() and int(number) else 1,
        replicas=whole_of(deployment),
        autoscaled=scaled or told.get(ANNOTATION_AUTOSCALED) == "true",
        rendered=RECALLED,
        since=datetime.fromisoformat(created).timestamp(),
    )
