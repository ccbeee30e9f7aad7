"""The part of a cluster that a control plane alone has not: pods that serve, and a gateway that obeys its route.

For each Deployment of an app one real Triton is started, with the flags and the environment of its container (ports
and addresses apart), so that it takes its repository from the store itself; where there is a comparator, its process,
too. A real Envoy is told what the rules of the live HTTPRoute say, and nothing else of shipctl's.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kubernetes.client import ApiException

from shipctl.release.router import Backend
from shipctl.release.traffic import Traffic
from shipctl_plugins._envoy.config import COMPARATOR
from shipctl_plugins._envoy.proxy import Proxy
from shipctl_plugins._triton.api import LOOPBACK
from shipctl_plugins._triton.environment import ServerEnvironment
from shipctl_plugins._triton.processes import Ports
from support_bridge_comparator import ComparatorPod
from support_bridge_routes import traffic_of
from support_kube import Kube

INTERVAL = 0.4
"""Seconds between two looks at the cluster."""
INSTANCE = "app.kubernetes.io/instance"
COMPONENT = "app.kubernetes.io/component"
DIGEST = "shipctl.dev/revision-digest"


@dataclass
class Pod:
    """A Triton, as its Deployment wants it."""

    revision: str
    ports: Ports
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def backend(self) -> Backend:
        """As the gateway reaches it."""
        return Backend(
            name=self.revision[:10],
            http=f"{LOOPBACK}:{self.ports.http}",
            grpc=f"{LOOPBACK}:{self.ports.grpc}",
        )

    def ready(self) -> bool:
        """Whether the readiness probe of its container would pass."""
        import urllib.request

        address = f"http://{LOOPBACK}:{self.ports.http}/v2/health/ready"
        with suppress(OSError), urllib.request.urlopen(address, timeout=1) as answer:
            return bool(answer.status == 200)
        return False

    def inferences(self) -> int:
        """Return how many requests it has answered, by its own counters."""
        import urllib.request

        with urllib.request.urlopen(f"http://{LOOPBACK}:{self.ports.metrics}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return sum(
            int(float(line.split()[-1])) for line in lines if line.startswith("nv_inference_request_success{")
        )

    def stop(self) -> None:
        """Stop it as the kubelet does."""
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass
class Bridge:
    """Follows one app of one namespace until it is stopped."""

    kube: Kube
    namespace: str
    app: str
    folder: Path
    environment: ServerEnvironment
    pods: dict[str, Pod] = field(default_factory=dict)
    """By the name of the Deployment."""
    weights: list[dict[str, int]] = field(default_factory=list)
    """The weights that Envoy was told, one after the other, by the revisions' first ten digits."""
    traffic: Traffic = field(default_factory=Traffic)
    """What it is told now."""
    problems: list[str] = field(default_factory=list)
    end: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.door = Proxy(self.folder / "door", log=lambda _line: None)
        self.comparator = ComparatorPod(self.kube, self.namespace, self.folder)

    @property
    def address(self) -> str:
        """host:port of the gateway."""
        return self.door.endpoints["http"].removeprefix("http://")

    @property
    def scraped(self) -> Path:
        """Targets for Prometheus (file_sd), labelled as a PodMonitor's relabelling does."""
        return self.folder / "targets.json"

    def counted(self, segment: str | None = None) -> dict[str, int]:
        """Return how many inferences each revision was chosen for, by Envoy's access log; all, or a segment's."""
        found: dict[str, int] = {}
        for line in self.door.access_log.read_text().splitlines():
            entry = json.loads(line)
            if str(entry["path"]).endswith("/infer") and segment in {None, entry["segment"]}:
                arm = str(entry["arm"])[:10]
                found[arm] = found.get(arm, 0) + 1
        return found

    def run(self) -> None:
        """Look and follow, again and again."""
        while not self.end.wait(INTERVAL):
            try:
                self.follow()
            except Exception as exc:  # noqa: BLE001  (whatever it is: the next look may go better)
                self.problems.append(f"{type(exc).__name__}: {exc}")

    def follow(self) -> None:
        """Do what the cluster wants now."""
        wanted = [
            item
            for item in self.kube.list("Deployment", self.namespace, f"{INSTANCE}={self.app}")
            if item["spec"].get("replicas")
        ]
        by_component = {
            kind: {
                item["metadata"]["name"]: item
                for item in wanted
                if item["metadata"]["labels"].get(COMPONENT) == kind
            }
            for kind in ("server", "comparator")
        }
        deployments = by_component["server"]
        for name in self.pods.keys() - deployments.keys():
            self.route(without=name)
            self.pods.pop(name).stop()
        for name in deployments.keys() - self.pods.keys():
            self.pods[name] = self.start(deployments[name])
        targets = [
            {
                "targets": [f"{LOOPBACK}:{pod.ports.metrics}"],
                "labels": {"shipctl_dev_revision": pod.revision[:10]},
            }
            for pod in self.pods.values()
        ]
        if not self.scraped.exists() or json.loads(self.scraped.read_text()) != targets:
            new = self.scraped.with_suffix(".new")
            new.write_text(json.dumps(targets))
            new.replace(self.scraped)
        self.tell_ready()
        self.comparator.follow(
            next(iter(by_component["comparator"].values()), None),
            {pod.revision: pod.backend for pod in self.pods.values()},
        )
        self.route()

    def tell_ready(self) -> None:
        """Say that pods are ready whose server is, where the fake kubelet is told to say so of none (`never-ready`)."""
        waiting = [
            pod
            for pod in self.kube.list("Pod", self.namespace, f"{INSTANCE}={self.app},{COMPONENT}=server")
            if pod["metadata"]["annotations"].get("fake-kubelet/never-ready") == "true"
            and {"type": "Ready", "status": "False"}.items() <= _condition(pod).items()
        ]
        for pod in waiting:
            server = next(
                (one for one in self.pods.values() if one.revision == pod["metadata"]["annotations"][DIGEST]),
                None,
            )
            if server is None or not server.ready():
                continue
            status = {
                "conditions": [{**each, "status": "True"} for each in pod["status"]["conditions"]],
                "containerStatuses": [{**each, "ready": True} for each in pod["status"]["containerStatuses"]],
            }
            self.kube.set_status("Pod", pod["metadata"]["name"], self.namespace, status)

    def start(self, deployment: dict[str, Any]) -> Pod:
        """Run what its container says."""
        template = deployment["spec"]["template"]
        (container,) = template["spec"]["containers"]
        ports = Ports().chosen()
        here = {
            "http-port": ports.http,
            "grpc-port": ports.grpc,
            "metrics-port": ports.metrics,
            **dict.fromkeys(("http-address", "grpc-address", "metrics-address"), LOOPBACK),
            "backend-directory": self.environment.backends,
            "cache-directory": self.environment.caches,
            "allow-gpu-metrics": "false",
        }
        flags = [flag for flag in container["args"] if flag[2:].partition("=")[0] not in here]
        revision = template["metadata"]["annotations"][DIGEST]
        log = self.folder / f"{deployment['metadata']['name']}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [
                    str(self.environment.binary),
                    *flags,
                    *(f"--{name}={value}" for name, value in here.items()),
                ],
                env=self.environ(container),
                stdout=output,
                stderr=output,
            )
        return Pod(revision, ports, process, log)

    def environ(self, container: dict[str, Any]) -> dict[str, str]:
        """Return the container's environment, with what Secrets of the namespace have."""
        given = {**os.environ, **self.environment.environ()}
        found = {name: value for name, value in given.items() if value is not None}
        for item in container.get("env", ()):
            source = item.get("valueFrom", {}).get("secretKeyRef")
            if source is None:
                if item["name"] != "HOME":
                    found[item["name"]] = str(item["value"])
                continue
            data = self.kube.get("Secret", source["name"], self.namespace).get("data", {})
            if source["key"] in data:
                found[item["name"]] = base64.b64decode(data[source["key"]]).decode()
        return found

    def route(self, without: str = "") -> None:
        """Tell Envoy what the live route says; who is not ready waits, as behind a Service without endpoints."""
        try:
            route = self.kube.get("HTTPRoute", self.app, self.namespace)
        except ApiException as exc:
            if exc.status != 404:
                raise
            return
        there = {pod.revision: pod for name, pod in self.pods.items() if name != without}
        try:
            traffic = traffic_of(
                route, {name: self.pods[name].revision for name in self.pods if name != without}
            )
        except KeyError:
            return
        if traffic is None or traffic == self.traffic:
            return
        named = traffic.model_copy(update={"mirror": None}).revisions
        if not all(there[revision].ready() for revision in named):
            return
        backends = {revision: (there[revision].backend,) for revision in sorted(named)}
        if traffic.mirror is not None:
            if not self.comparator.ready or self.comparator.name != traffic.mirror.candidate:
                return
            backends[COMPARATOR] = (self.comparator.backend,)
        epoch = self.door.lease.acquire("bridge", 3600)
        self.door.set(traffic, backends, etag=self.door.get().etag, epoch=epoch)
        self.traffic = traffic
        plainly = {revision[:10]: weight for revision, weight in sorted(traffic.weights.items())}
        if not self.weights or self.weights[-1] != plainly:
            self.weights.append(plainly)


def _condition(pod: dict[str, Any]) -> dict[str, Any]:
    """Return what is said of a pod's readiness; nothing before the kubelet has seen it."""
    found = pod.get("status", {}).get("conditions") or ()
    return next((dict(each) for each in found if each["type"] == "Ready"), {})


@contextmanager
def bridge(
    kube: Kube, namespace: str, app: str, folder: Path, environment: ServerEnvironment
) -> Iterator[Bridge]:
    """Follow an app until the block ends."""
    folder.mkdir(parents=True)
    running = Bridge(kube, namespace, app, folder, environment)
    running.scraped.write_text("[]")
    running.door.lease.acquire("bridge", 3600)
    running.door.ensure()
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        yield running
    finally:
        running.end.set()
        thread.join()
        running.door.stop()
        running.comparator.stop()
        for pod in running.pods.values():
            pod.stop()


def until(check: Any, seconds: float = 30) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.05)
