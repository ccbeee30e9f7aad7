"""A fake scheduler and kubelet: binds pods to a node that does not exist, and says that they run. No container does.

Usage: fake_kubelet.py KUBECONFIG. It waits for the API server, and runs until it is killed.

A pod becomes Ready after 0.2 s, and is gone at once when it is deleted: `preStop` and the grace period are ignored.
Annotations of a pod (template) change that:

- `fake-kubelet/ready-after: "2.5"`: seconds until it is Ready
- `fake-kubelet/never-ready: "true"`: runs, but its readiness probe fails for ever
- `fake-kubelet/waiting: "ImagePullBackOff"`: its containers wait for ever, with that reason
"""

from __future__ import annotations

import heapq
import itertools
import queue
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import urllib3
from kubernetes.client import ApiException

from support_kube import Kube

NODE = "fake-node"
READY_AFTER = 0.2
"""Seconds."""

Pod = dict[str, Any]


class FakeKubelet:
    """Follows all pods of a cluster, and gives each the life that its annotations ask for."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kube = Kube(kubeconfig)
        self._inbox: queue.Queue[tuple[float, int, Callable[[], None]]] = queue.Queue()
        self._numbers = itertools.count(1)
        self._addresses = itertools.count(1)
        self._started: set[str] = set()
        self._killed: set[str] = set()

    def run(self) -> None:
        self._until_answered(self._register_node)
        threading.Thread(target=self._work, daemon=True).start()
        while True:
            self._until_answered(self._follow)

    # -- what to do, and when ------------------------------------------------------------------------------

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        self._inbox.put((time.monotonic() + seconds, next(self._numbers), act))

    def _work(self) -> None:
        due: list[tuple[float, int, Callable[[], None]]] = []
        while True:
            with suppress(queue.Empty):
                wait = max(0.0, due[0][0] - time.monotonic()) if due else None
                heapq.heappush(due, self._inbox.get(timeout=wait))
            while due and due[0][0] <= time.monotonic():
                act = heapq.heappop(due)[2]
                try:
                    act()
                except ApiException as exc:
                    if exc.status not in {404, 409}:  # the pod is gone, or is another by now
                        print("fake kubelet:", exc.status, exc.body, file=sys.stderr, flush=True)

    def _until_answered(self, act: Callable[[], None]) -> None:
        """Do something again and again while the API server does not answer."""
        while True:
            try:
                return act()
            except (ApiException, urllib3.exceptions.HTTPError, OSError) as exc:
                print("fake kubelet: again after", type(exc).__name__, file=sys.stderr, flush=True)
                time.sleep(0.1)

    # -- pods ----------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        for happened, pod in self.kube.watch("Pod"):
            uid = pod["metadata"]["uid"]
            if happened == "DELETED":
                self._started.discard(uid)
                self._killed.discard(uid)
            elif pod["metadata"].get("deletionTimestamp"):
                if uid not in self._killed:
                    self._killed.add(uid)
                    self._after(0, partial(self._kill, pod))
            elif uid not in self._started:
                self._started.add(uid)
                self._after(0, partial(self._start, pod))

    def _start(self, pod: Pod) -> None:
        annotations = pod["metadata"].get("annotations") or {}
        if not pod["spec"].get("nodeName"):
            self._bind(pod)
        number = next(self._addresses)
        address = f"10.244.{number >> 8 & 255}.{number & 255}"
        self._report(pod, address, ready=False)
        if "fake-kubelet/waiting" in annotations or annotations.get("fake-kubelet/never-ready") == "true":
            return
        seconds = float(annotations.get("fake-kubelet/ready-after", READY_AFTER))
        self._after(seconds, partial(self._report, pod, address, ready=True))

    def _bind(self, pod: Pod) -> None:
        name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name, "namespace": namespace},
            "target": {"apiVersion": "v1", "kind": "Node", "name": NODE},
        }
        self.kube.request("POST", f"{self.kube.path('Pod', namespace, name)}/binding", binding)

    def _report(self, pod: Pod, address: str, *, ready: bool) -> None:
        about = pod["metadata"]
        said = {"metadata": {"uid": about["uid"]}, "status": pod_status(pod, address, ready=ready)}
        self.kube.patch(
            "Pod", about["name"], about["namespace"], said, subresource="status", manager="fake-kubelet"
        )

    def _kill(self, pod: Pod) -> None:
        about = pod["metadata"]
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": about["uid"]}}
        self.kube.request("DELETE", self.kube.path("Pod", about["namespace"], about["name"]), options)

    # -- the node ------------------------------------------------------------------------------------------

    def _register_node(self) -> None:
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": NODE, "labels": {"kubernetes.io/hostname": NODE}},
        }
        try:
            self.kube.create(node)
        except ApiException as exc:
            if exc.status != 409:
                raise
        capacity = {"cpu": "64", "memory": "256Gi", "pods": "1000"}
        status = {
            "capacity": capacity,
            "allocatable": capacity,
            "conditions": [
                {**condition("Ready", true=True), "reason": "Fake", "message": "no container runs"}
            ],
        }
        self.kube.patch("Node", NODE, None, {"status": status}, subresource="status")


def pod_status(pod: Pod, address: str, *, ready: bool) -> dict[str, Any]:
    """Return what a kubelet would say of a pod that it has started."""
    waiting = (pod["metadata"].get("annotations") or {}).get("fake-kubelet/waiting")
    state: dict[str, Any] = (
        {"waiting": {"reason": waiting, "message": "fake"}} if waiting else {"running": {"startedAt": now()}}
    )
    return {
        "phase": "Pending" if waiting else "Running",
        "hostIP": "127.0.0.1",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": now(),
        "conditions": [
            condition("PodScheduled", true=True),
            condition("Initialized", true=True),
            condition("ContainersReady", true=ready),
            condition("Ready", true=ready),
        ],
        "containerStatuses": [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": f"fake://{container['image']}",
                "ready": ready,
                "started": not waiting,
                "restartCount": 0,
                "state": state,
            }
            for container in pod["spec"]["containers"]
        ],
    }


def condition(kind: str, *, true: bool) -> dict[str, Any]:
    return {"type": kind, "status": str(true), "lastTransitionTime": now()}


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


if __name__ == "__main__":
    FakeKubelet(Path(sys.argv[1])).run()
