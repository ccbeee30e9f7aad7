"""The part of a cluster that a control plane alone has not: pods that serve, and a gateway that obeys its route.

For each Deployment of an app one real Triton is started, with the flags and the environment of its container (ports and
addresses apart), so that it takes its repository from the store itself. A real Envoy gets the weights that the live
HTTPRoute has, and nothing else of shipctl's.
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

from shipctl.errors import ShipctlError
from shipctl.release.router import Backend
from shipctl.release.traffic import Traffic
from shipctl_plugins._envoy.proxy import Proxy
from shipctl_plugins._triton.api import LOOPBACK
from shipctl_plugins._triton.environment import ServerEnvironment
from shipctl_plugins._triton.processes import Ports
from support_kube import Kube

INTERVAL = 0.1
"""Seconds between two looks at the cluster."""
INSTANCE = "app.kubernetes.io/instance"
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
    """What Envoy was told, one after the other, by the revisions' first ten digits."""
    problems: list[str] = field(default_factory=list)
    end: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.door = Proxy(self.folder / "door", log=lambda _line: None)

    @property
    def address(self) -> str:
        """host:port of the gateway."""
        return self.door.endpoints["http"].removeprefix("http://")

    @property
    def scraped(self) -> Path:
        """Targets for Prometheus (file_sd), labelled as a PodMonitor's relabelling does."""
        return self.folder / "targets.json"

    def counted(self) -> dict[str, int]:
        """Return how many inferences each revision was chosen for, by Envoy's access log."""
        found: dict[str, int] = {}
        for line in self.door.access_log.read_text().splitlines():
            entry = json.loads(line)
            if str(entry["path"]).endswith("/infer"):
                arm = str(entry["arm"])[:10]
                found[arm] = found.get(arm, 0) + 1
        return found

    def run(self) -> None:
        """Look and follow, again and again."""
        while not self.end.wait(INTERVAL):
            try:
                self.follow()
            except (ApiException, ShipctlError, OSError) as exc:
                self.problems.append(f"{type(exc).__name__}: {exc}")

    def follow(self) -> None:
        """Do what the cluster wants now."""
        deployments = {
            item["metadata"]["name"]: item
            for item in self.kube.list("Deployment", self.namespace, f"{INSTANCE}={self.app}")
            if item["spec"].get("replicas")
        }
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
        self.route()

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
        """Give Envoy the weights of the live route; who is not ready waits, as behind a Service without endpoints."""
        try:
            route = self.kube.get("HTTPRoute", self.app, self.namespace)
        except ApiException as exc:
            if exc.status != 404:
                raise
            return
        plain = [
            rule
            for rule in route["spec"]["rules"]
            if not any(match.get("headers") for match in rule.get("matches", ()))
        ]
        if not plain:
            return
        shares = {
            ref["name"]: int(ref.get("weight", 1))
            for ref in plain[-1].get("backendRefs", ())
            if ref["name"] != without
        }
        total = sum(shares.values())
        wanted = {name: weight for name, weight in shares.items() if weight}
        if not total or any(name not in self.pods or not self.pods[name].ready() for name in wanted):
            return
        weights = {self.pods[name].revision: round(100 * weight / total) for name, weight in wanted.items()}
        plainly = {revision[:10]: weight for revision, weight in sorted(weights.items())}
        if self.weights and self.weights[-1] == plainly:
            return
        epoch = self.door.lease.acquire("bridge", 3600)
        backends = {self.pods[name].revision: (self.pods[name].backend,) for name in wanted}
        self.door.set(Traffic(weights=weights), backends, etag=self.door.get().etag, epoch=epoch)
        self.weights.append(plainly)


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
        for pod in running.pods.values():
            pod.stop()


def until(check: Any, seconds: float = 30) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.05)
