"""The pod of the comparator for the tests' bridge: the process that its Deployment wants, started as the kubelet would.

What a cluster does for it beside that: names of Services lead to Tritons (said by `--at`), and the API server's proxy
finds the process, by the endpoints of its Service.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kubernetes.client import ApiException

from shipctl.release.router import Backend
from support_kube import Kube
from support_s3 import free_port

PORTS = ("http", "grpc", "results")


def own_address() -> str | None:
    """Return an address of this machine that an endpoint may have; None if it has loopback alone."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        try:
            probe.connect(("192.0.2.254", 9))  # nothing is sent
        except OSError:
            return None
        found: str = probe.getsockname()[0]
        return None if found.startswith("127.") else found


@dataclass
class ComparatorPod:
    """At most one process."""

    kube: Kube
    namespace: str
    folder: Path
    name: str = ""
    """Of the Deployment, and of the Service."""
    ports: dict[str, int] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    """How often it was started."""
    _servers: dict[str, Backend] = field(default_factory=dict)
    _ready: bool = False

    @property
    def log(self) -> Path:
        """What it has said."""
        return self.folder / "comparator.log"

    @property
    def backend(self) -> Backend:
        """Where copies go."""
        host = own_address()
        return Backend(
            name=self.name, http=f"{host}:{self.ports['http']}", grpc=f"{host}:{self.ports['grpc']}"
        )

    @property
    def ready(self) -> bool:
        """Whether the readiness probe of its container would pass."""
        if self.process is None or self.process.poll() is not None:
            return False
        if not self._ready:
            with suppress(OSError), socket.create_connection((own_address(), self.ports["http"]), 1):
                self._ready = True
        return self._ready

    def follow(self, deployment: dict[str, Any] | None, servers: Mapping[str, Backend]) -> None:
        """Have it run as the Deployment says; ``servers`` are by revision what names of Services lead to."""
        if deployment is None:
            self.stop()
            return
        if self.process is None or servers != self._servers:
            self.stop()
            self.start(deployment, servers)
        self.point(deployment)

    def start(self, deployment: dict[str, Any], servers: Mapping[str, Backend]) -> None:
        """Run what its container says, in that one's environment: it has no kubeconfig and no secrets."""
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        program, *rest = container["command"]
        assert program == "python"
        self.name = deployment["metadata"]["name"]
        self.ports = {port["name"]: free_port() for port in container["ports"]}
        self._servers = dict(servers)
        command = [sys.executable, *rest, "--folder", str(self.folder / "comparisons")]
        command += ["--host", str(own_address())]
        for name in PORTS:
            command += [f"--{name}", str(self.ports[name])]
        for revision, backend in servers.items():
            command += ["--at", f"{revision}={backend.http},{backend.grpc}"]
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        environment = {**kept, **{item["name"]: item["value"] for item in container["env"]}}
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        self.starts += 1

    def point(self, deployment: dict[str, Any]) -> None:
        """Have the API server's proxy find it at its own address, or nowhere while it is not ready.

        The proxy goes to addresses of pods only, so that of the pod that stands for it is said to be this one's.
        """
        labels = deployment["spec"]["selector"]["matchLabels"]
        selector = ",".join(f"{name}={value}" for name, value in labels.items())
        pods = [
            pod
            for pod in self.kube.list("Pod", self.namespace, selector)
            if "deletionTimestamp" not in pod["metadata"]
        ]
        wanted: list[dict[str, Any]] = []
        if self.ready and pods:
            ip, metadata = own_address(), pods[0]["metadata"]
            if pods[0].get("status", {}).get("podIP") != ip:
                status = {"podIP": ip, "podIPs": [{"ip": ip}]}
                self.kube.set_status("Pod", metadata["name"], self.namespace, status)
            target = {"kind": "Pod", "namespace": self.namespace, "name": metadata["name"]}
            ports = [
                {"name": name, "port": port, "protocol": "TCP"} for name, port in sorted(self.ports.items())
            ]
            wanted = [{"addresses": [{"ip": ip, "targetRef": target}], "ports": ports}]
        try:
            live = self.kube.get("Endpoints", self.name, self.namespace).get("subsets") or []
        except ApiException as exc:
            if exc.status != 404:
                raise
            return
        for subset in live:
            subset["ports"] = sorted(subset.get("ports") or (), key=lambda port: str(port["name"]))
        if live != wanted:
            self.kube.patch("Endpoints", self.name, self.namespace, {"subsets": wanted})

    def stop(self) -> None:
        """Stop it as the kubelet does."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process, self._ready = None, False
