"""A canary on a real API server that moves requests, which are counted.

The control plane runs no containers; the bridge runs a real Triton per Deployment, which reads its repository from the
store, and a real Envoy that obeys the live HTTPRoute. A real Prometheus scrapes the Tritons, and judges.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import support_prometheus
from shipctl_plugins._triton.environment import ensure_server_environment
from support_bridge import Bridge, bridge
from support_cluster import CLUSTER, ControlPlane, Kube
from support_release import Fault, Load, Project, Requests, load
from support_s3 import moto_server

pytestmark = [
    CLUSTER,
    pytest.mark.slow,
    pytest.mark.triton,
    pytest.mark.timeout(400),
    pytest.mark.skipif(support_prometheus.BINARY is None, reason=support_prometheus.MISSING),
]

APP = "m"


@dataclass
class World:
    """A project that releases to the cluster, requests that never end, and what answers them."""

    project: Project
    bridge: Bridge
    load: Load
    options: dict[str, Any]

    def apply(
        self, version: str, fault: Fault | None = None, **changes: Any
    ) -> subprocess.CompletedProcess[str]:
        """Release a version as a canary."""
        self.project.write(version, fault, options={**self.options, **changes}, p95="")
        return self.project.shipctl("apply", "spec.yaml", timeout=200)

    def requests(self) -> Requests:
        """Return what became of the requests so far."""
        return self.load.read()


@pytest.fixture(scope="module")
def world(
    control_plane: ControlPlane,
    kube: Kube,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[World]:
    """Version 1.0.0 serves, and 60 requests a second come."""
    root = tmp_path_factory.mktemp("traffic")
    (root / ".shipctl").mkdir()
    namespace = "traffic"
    kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}, None)
    environment = ensure_server_environment(print)
    with pytest.MonkeyPatch.context() as patch, moto_server() as server:
        for name, value in {**server.environment, "KUBECONFIG": str(control_plane.kubeconfig)}.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint)
        patch.setenv("SHIPCTL_STORE", f"s3://{server.bucket()}/team")
        kube.create(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "store-reader"},
                "stringData": {
                    "AWS_ACCESS_KEY_ID": server.access_key,
                    "AWS_SECRET_ACCESS_KEY": server.secret_key,
                },
            },
            namespace,
        )
        with (
            bridge(kube, namespace, APP, root / "bridge", environment) as running,
            support_prometheus.prometheus(root / "prometheus", [], running.scraped) as prometheus,
        ):
            numbers = {"uses": "prometheus", "with": {"url": prometheus.url, "preset": "error_rate"}}
            options = {
                "target": {
                    "uses": "kubernetes",
                    "with": {
                        "namespace": namespace,
                        "replicas": 1,
                        "router": {"uses": "gateway-api", "with": {"gateways": [{"name": "web"}]}},
                        "credentialsSecret": "store-reader",
                        "podAnnotations": {"fake-kubelet/ready-after": "5"},
                    },
                },
                "steps": [
                    {"setWeight": 10},
                    {"pause": {"duration": "4s"}},
                    {"setWeight": 50},
                    {"pause": {"duration": "4s"}},
                ],
                "analysis": {"provider": numbers, "interval": "2s", "minSamples": 5, "inconclusiveLimit": 40},
                "scaleDownDelay": "3s",
            }
            made = World(Project(root), running, Load(root / "none"), options)
            first = made.apply("1.0.0", analysis=None)  # nobody asks it yet
            assert first.returncode == 0, first.stdout + first.stderr + str(running.problems)
            with load(running.address, root / "requests", rate=60, ones=0.25) as requests:
                made.load = requests
                yield made


def test_weights_of_the_route_move_requests_and_lose_none(world: World) -> None:
    """And the first version, which the load began on, is the one that all went to before."""
    (old,) = world.bridge.weights[-1]
    outcome = world.apply("1.1.0")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    moved = world.bridge.weights
    new = next(iter(moved[-1]))
    assert moved[-1] == {new: 100} != {old: 100}
    assert [step.get(new) for step in moved[1:]] == [10, 50, 100]
    counted = world.bridge.counted()
    assert counted[old] > 100
    assert counted[new] > 100
    assert world.requests().failed == (), world.requests().failed[:3]


def test_one_that_fails_requests_goes_back_by_itself(world: World) -> None:
    """A quarter of the requests hits what the new version cannot do; Prometheus counts it by Triton's own counters."""
    ((before, _),) = world.bridge.weights[-1].items()
    outcome = world.apply("1.2.0", "errors")
    said = outcome.stdout + outcome.stderr
    assert outcome.returncode == 7, said
    assert world.bridge.weights[-1] == {before: 100}
    bad = next(name for step in world.bridge.weights[-2:] for name in step if name != before)
    failed = world.requests().failed
    counted = world.bridge.counted()
    assert 0 < len(failed) <= counted[bad], "only those that the candidate got could fail"
    assert "rolled-back" in said
    serving = json.loads(world.project.shipctl("status", "spec.yaml", "--json").stdout)["targets"][0][
        "serving"
    ]
    assert [item["version"] for item in serving] == ["1.1.0"]
