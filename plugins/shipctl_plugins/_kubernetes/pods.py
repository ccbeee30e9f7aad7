"""What the Deployment of a revision and its pods say: how many serve it, and why the others do not, in one line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from shipctl.release.target import Replicas
from shipctl_plugins._kubernetes.state import Entry

Object = dict[str, Any]

LONG = 300
"""Characters of a message of the cluster's that are shown."""
_IMAGE_REASONS = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
_STARTING = {"ContainerCreating", "PodInitializing"}


def replicas_of(deployment: Object, pods: Sequence[Object], entry: Entry | None) -> Replicas:
    """Return the replicas of a revision, from its Deployment and its pods."""
    wanted = wanted_of(deployment)
    ready = sum(1 for pod in pods if serves(pod, entry))
    labels = deployment["metadata"].get("labels") or {}
    version = (
        entry.version
        if entry is not None
        else labels.get("app.kubernetes.io/version", "of an unknown version")
    )
    problem = None if ready >= wanted else trouble(deployment, pods, entry)
    return Replicas(version=version, wanted=wanted, ready=ready, problem=problem)


def wanted_of(deployment: Object) -> int:
    """Return how many replicas a Deployment asks for."""
    wanted = deployment.get("spec", {}).get("replicas")
    return 1 if wanted is None else int(wanted)


def is_ending(pod: Object) -> bool:
    """Whether a pod is being stopped, or has ended for good."""
    ended = pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}
    return ended or pod["metadata"].get("deletionTimestamp") is not None


def is_ready(pod: Object) -> bool:
    """Whether a pod gets requests: it says that it is ready, and does not end."""
    return not is_ending(pod) and _condition(pod, "Ready").get("status") == "True"


def serves(pod: Object, entry: Entry | None) -> bool:
    """Whether a pod is ready, and was started with this revision's repository and image."""
    return is_ready(pod) and (entry is None or _other_than(pod, entry) is None)


def trouble(deployment: Object, pods: Sequence[Object], entry: Entry | None) -> str | None:
    """Say in one line what is wrong with a revision's replicas; None while nothing is known to be."""
    alive = [pod for pod in pods if not is_ending(pod)]
    found = [
        _not_created(deployment),
        _first(_container_trouble(pod) for pod in alive),
        _first(_unschedulable(pod) for pod in alive),
        _first(_other_than(pod, entry) for pod in alive) if entry is not None else None,
        _paused(deployment),
        _too_late(deployment),
    ]
    return _first(found)


def _first(texts: Iterable[str | None]) -> str | None:
    text = next((text for text in texts if text), None)
    return None if text is None else _one_line(text)


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONG else f"{line[: LONG - 1]}…"


def _conditions(found: Object) -> dict[str, Object]:
    return {one["type"]: one for one in found.get("status", {}).get("conditions") or ()}


def _condition(found: Object, kind: str) -> Object:
    return _conditions(found).get(kind, {})


def _not_created(deployment: Object) -> str | None:
    """Pods that a quota or an admission controller does not let be; the controller says it in its own status."""
    failure = _condition(deployment, "ReplicaFailure")
    if failure.get("status") != "True":
        return None
    return f"pods are not created: {failure.get('message') or failure.get('reason')}"


def _container_trouble(pod: Object) -> str | None:
    status = pod.get("status", {})
    images = {one["name"]: one.get("image") for one in _containers(pod)}
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason = waiting.get("reason", "")
        if reason in _IMAGE_REASONS:
            image = images.get(container["name"]) or container.get("image")
            return f"{reason}: image {image}" + (f" ({waiting['message']})" if waiting.get("message") else "")
        if reason == "CrashLoopBackOff":
            return f"CrashLoopBackOff{_ended(container)}; see `kubectl logs --previous {pod['metadata']['name']}`"
        if reason and reason not in _STARTING:
            return f"{reason}: {waiting.get('message') or 'no more is said'}"
        if container.get("restartCount") and not container.get("ready"):
            return f"it was started {container['restartCount'] + 1} times{_ended(container)}"
    return None


def _ended(container: Object) -> str:
    last = (container.get("lastState") or {}).get("terminated") or {}
    if not last:
        return ""
    reason = f" ({last['reason']})" if last.get("reason") not in {None, "", "Error"} else ""
    return f", it ended with exit code {last.get('exitCode')}{reason}"


def _unschedulable(pod: Object) -> str | None:
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("status") != "False":
        return None
    return f"{scheduled.get('reason', 'Unschedulable')}: {scheduled.get('message') or 'no node fits'}"


def _paused(deployment: Object) -> str | None:
    if not deployment.get("spec", {}).get("paused"):
        return None
    return f"the Deployment is paused; `kubectl rollout resume deployment/{deployment['metadata']['name']}`"


def _too_late(deployment: Object) -> str | None:
    """A condition counts only once the controller has seen the newest spec: an older one is of another rollout."""
    status = deployment.get("status", {})
    if status.get("observedGeneration", 0) < deployment["metadata"].get("generation", 0):
        return None
    progress = _condition(deployment, "Progressing")
    if progress.get("status") == "False" and progress.get("reason") == "ProgressDeadlineExceeded":
        return f"ProgressDeadlineExceeded: {progress.get('message') or 'pods do not become ready'}"
    return None


# -- what a pod serves ----------------------------------------------------------------------------------------


def _containers(pod: Object) -> list[Object]:
    spec = pod.get("spec", {})
    return [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]


def _other_than(pod: Object, entry: Entry) -> str | None:
    """Say what a pod serves in place of a revision; None if it serves that."""
    server = next((one for one in _containers(pod) if _repository(one) is not None), None)
    name = pod["metadata"]["name"]
    advice = "somebody has changed the Deployment; see `kubectl get deployment --show-managed-fields`"
    if server is None:
        return f"pod {name} was started without a model repository: {advice}"
    if _repository(server) != entry.repository:
        return f"pod {name} serves {_repository(server)} and not {entry.repository}: {advice}"
    if not _same_image(server.get("image", ""), entry.image):
        return f"pod {name} runs the image {server.get('image')} and not {entry.image}: {advice}"
    return None


def _repository(container: Object) -> str | None:
    arguments = [*(container.get("command") or ()), *(container.get("args") or ())]
    flag = "--model-repository="
    return next((one.removeprefix(flag) for one in arguments if one.startswith(flag)), None)


def _same_image(found: str, rendered: str) -> bool:
    """Whether two images are one, but for the registry: clusters pull through mirrors that rewrite it."""
    return found == rendered or found.endswith("/" + _without_registry(rendered))


def _without_registry(image: str) -> str:
    first, _, rest = image.partition("/")
    return rest if rest and ("." in first or ":" in first or first == "localhost") else image
