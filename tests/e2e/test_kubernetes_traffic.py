"""Releases on a real API server that move requests, which are counted.

The control plane runs no containers; the bridge runs a real Triton per Deployment, which reads its repository from the
store, the comparator's process, and a real Envoy that obeys the live HTTPRoute. A real Prometheus scrapes the Tritons,
and judges. One after the other, as releases come: each begins with what the one before has left.
"""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest

import support_prometheus
from shipctl_plugins._triton.environment import ensure_server_environment
from support_bridge import Bridge, bridge
from support_bridge_client import Client
from support_bridge_comparator import own_address
from support_bridge_routes import make_experimental
from support_cluster import CLUSTER, Kube
from support_control_plane import control_plane_in, why_no_control_plane
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
STEPS = [
    {"setWeight": 25},
    {"pause": {"duration": "2s"}},
    {"setWeight": 50},
    {"pause": {"duration": "2s"}},
]
USERS: dict[str, Any] = {
    "weight": 50,
    "sticky": {"kind": "cookie", "name": "arm"},
    "segments": [
        {"name": "staff", "header": "x-team", "values": ["vision", "speech"], "revision": "candidate"},
        {"name": "partners", "header": "x-client", "values": ["bank"], "revision": "stable"},
    ],
    "test": {"goal": "error_rate", "minimumEffect": "5%", "confidence": "80%"},
    "duration": "120s",
}
"""Of an A/B test."""
COPIES: dict[str, Any] = {
    "percent": "50%",
    "compare": {"comparisons": 100, "differing": "5%", "top1Agreement": "95%"},
    "duration": "60s",
}
"""Of a shadow."""


@dataclass
class Outcome:
    """How a release ended."""

    code: int
    said: str


@dataclass
class Releasing:
    """A release under way."""

    process: subprocess.Popen[str]
    bridge: Bridge

    def wait_for(self, condition: Callable[[], object], what: str, seconds: float = 60) -> None:
        """Wait for something that happens before it ends."""
        until = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None or time.monotonic() > until:
                self.process.terminate()
                pytest.fail(f"not seen that {what}: {self.bridge.problems[-3:]} {self.end().said}")
            time.sleep(0.1)

    def end(self) -> Outcome:
        """Wait for its end."""
        said, _ = self.process.communicate(timeout=200)
        print(said)
        return Outcome(self.process.returncode, said)


@dataclass
class World:
    """A project that releases to the cluster, requests that never end, and what answers them."""

    project: Project
    bridge: Bridge
    load: Load
    target: dict[str, Any]
    analysis: dict[str, Any]

    def begin(
        self, version: str, fault: Fault | None = None, *, strategy: str = "canary", **options: Any
    ) -> Releasing:
        """Begin to release a version."""
        comparator = {"comparator": {"image": "shipctl:1"}} if strategy == "shadow" else {}
        given = {
            "target": {"uses": "kubernetes", "with": {**self.target, **comparator}},
            "analysis": self.analysis,
            "scaleDownDelay": "3s",
            **({"steps": STEPS} if strategy == "canary" else {}),
            **options,
        }
        self.project.write(version, fault, strategy=strategy, options=given, p95="")
        return Releasing(self.project.start("apply", "spec.yaml"), self.bridge)

    def apply(self, version: str, fault: Fault | None = None, **options: Any) -> Outcome:
        """Release a version."""
        return self.begin(version, fault, **options).end()

    def requests(self) -> Requests:
        """Return what became of the requests so far."""
        return self.load.read()

    def client(self) -> Client:
        """Return one who asks which version it is that answers."""
        return Client(self.bridge.address)

    def serving(self) -> str:
        """Return the version that `shipctl status` says is stable."""
        (item,) = self.project.status()
        return str(item["version"])

    def stable(self) -> str:
        """Return the first digits of the revision that answers everything."""
        (only,) = self.bridge.weights[-1]
        return only

    def rest(self) -> None:
        """Wait until the route is as simple as after every release."""
        support_prometheus.wait(
            lambda: (
                self.bridge.traffic
                == self.bridge.traffic.model_copy(update={"segments": (), "mirror": None, "sticky": None})
            ),
            5,
            "rules of the release are left",
        )


@pytest.fixture(scope="module")
def kube(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    """A cluster of these tests' own, with the experimental channel of the Gateway API."""
    reason = why_no_control_plane()
    if reason:
        pytest.skip(reason)
    with (
        control_plane_in(tmp_path_factory.mktemp("plane") / "plane") as plane,
        Kube(plane.kubeconfig) as kube,
    ):
        make_experimental(kube)
        yield kube


@pytest.fixture(scope="module")
def world(kube: Kube, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Version 1.0.0 serves, which fails a quarter of the 40 requests that come every second."""
    root = tmp_path_factory.mktemp("traffic")
    (root / ".shipctl").mkdir()
    namespace = "traffic"
    kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}, None)
    environment = ensure_server_environment(print)
    with pytest.MonkeyPatch.context() as patch, moto_server() as server:
        for name, value in {**server.environment, "KUBECONFIG": str(kube.kubeconfig)}.items():
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
            target = {
                "namespace": namespace,
                "replicas": 1,
                "router": {"uses": "gateway-api", "with": {"gateways": [{"name": "web"}]}},
                "credentialsSecret": "store-reader",
                "podAnnotations": {"fake-kubelet/never-ready": "true"},  # the bridge says when
            }
            analysis = {
                "provider": {"uses": "prometheus", "with": {"url": prometheus.url, "preset": "error_rate"}},
                "interval": "1s",  # ten windows say something where errors have no times
                "minSamples": 5,
                "inconclusiveLimit": 40,
                "errorTolerance": "2%",
                "errorLimit": "15%",  # which a few seconds of a quarter of the requests can rule out
            }
            made = World(Project(root), running, Load(root / "none"), target, analysis)
            first = made.apply("1.0.0", "errors", analysis=None)  # nobody asks it yet
            assert first.code == 0, first.said + str(running.problems)
            with load(running.address, root / "requests", rate=40, ones=0.25) as requests:
                made.load = requests
                yield made


def test_of_two_versions_for_users_the_better_one_stays(world: World) -> None:
    """The load began on the worse one."""
    old = world.stable()
    outcome = world.apply("1.1.0", strategy="ab-test", **USERS)
    assert outcome.code == 0, outcome.said
    assert "ab-test passed: error_rate: the candidate is better, -" in outcome.said
    world.rest()
    assert world.stable() != old
    assert world.serving() == "1.1.0"
    headers: list[dict[str, str]] = [{}, {"x-team": "vision"}, {"x-client": "bank"}, {"cookie": "arm=7"}]
    for header in headers:
        assert Counter(world.client().answered_by(header) for _ in range(10)) == {"1.1.0": 10}


def test_weights_of_the_route_move_requests_and_lose_none(world: World) -> None:
    (old,) = world.bridge.weights[-1]
    before, failed = len(world.bridge.weights), len(world.requests().failed)
    outcome = world.apply("1.2.0")
    assert outcome.code == 0, outcome.said
    moved = world.bridge.weights[before:]
    new = next(iter(moved[-1]))
    assert moved[-1] == {new: 100} != {old: 100}
    assert [step.get(new) for step in moved] == [25, 50, 100]
    counted = world.bridge.counted()
    assert counted[old] > 100
    assert counted[new] > 100
    assert world.requests().failed[failed:] == (), world.requests().failed[failed:][:3]


def test_one_that_fails_requests_goes_back_by_itself(world: World) -> None:
    """A quarter of the requests hits what the new version cannot do; Prometheus counts it by Triton's own counters."""
    ((before, _),) = world.bridge.weights[-1].items()
    failed_before = len(world.requests().failed)
    outcome = world.apply("1.3.0", "errors")
    assert outcome.code == 7, outcome.said
    assert world.bridge.weights[-1] == {before: 100}
    bad = next(name for step in world.bridge.weights[-2:] for name in step if name != before)
    failed = world.requests().failed[failed_before:]
    counted = world.bridge.counted()
    assert 0 < len(failed) <= counted[bad], "only those that the candidate got could fail"
    assert "rolled-back" in outcome.said
    assert world.serving() == "1.2.0"


# -- copies ---------------------------------------------------------------------------------------------------


needs_address = pytest.mark.skipif(
    own_address() is None, reason="this machine has no address but loopback, which no endpoint may have"
)


def shadowed(world: World, version: str, fault: Fault | None = None) -> tuple[Outcome, int]:
    """Shadow a version; return how that ended, and how many copies the candidate was asked."""
    stable, serving = world.stable(), world.client().answered_by()
    failed = len(world.requests().failed)
    before = world.bridge.counted()
    releasing = world.begin(version, fault, strategy="shadow", **COPIES)
    releasing.wait_for(lambda: world.bridge.traffic.mirror, "requests were copied")
    assert world.bridge.traffic.mirror is not None
    assert world.bridge.traffic.mirror.percent == 50
    (candidate,) = (pod for pod in world.bridge.pods.values() if not pod.revision.startswith(stable))
    users = Counter(world.client().answered_by() for _ in range(20))
    asked = 0
    while releasing.process.poll() is None:
        with suppress(OSError):  # it is stopped before the release ends
            asked = max(asked, candidate.inferences())
        time.sleep(0.2)
    outcome = releasing.end()
    world.rest()
    assert users == {serving: 20}
    after = world.bridge.counted()
    assert after.keys() == before.keys(), "nobody's request went to the candidate"
    assert asked >= 30
    assert after[stable] - before[stable] > 1.2 * asked, "half of the requests were copied"
    assert world.stable() == stable
    assert len(world.requests().failed) == failed
    return outcome, asked


@needs_address
def test_a_shadow_that_answers_alike_passes_and_gets_no_requests(world: World) -> None:
    outcome, _ = shadowed(world, "1.4.0")
    assert outcome.code == 0, outcome.said
    assert "shadow passed: 0 of " in outcome.said
    assert "keeps serving; shadow passed" in outcome.said


@needs_address
def test_a_shadow_that_answers_otherwise_is_rejected(world: World) -> None:
    """A quarter of the requests is answered otherwise; no golden sample is."""
    outcome, _ = shadowed(world, "1.5.0", "differs")
    assert outcome.code == 4, outcome.said
    assert " answers differ (" in outcome.said
    assert "relative error above 0.05" in outcome.said


# -- users ----------------------------------------------------------------------------------------------------


def asked_by_users(world: World, old: str, new: str) -> None:
    """Ask as users of all kinds do, while both versions serve, and see that each gets the version that is his."""
    client = world.client()
    for header, version in (
        ({"x-team": "vision"}, new),
        ({"X-Team": "speech"}, new),
        ({"x-client": "bank"}, old),
        ({"x-client": "bank", "cookie": "arm=7"}, old),
    ):
        assert Counter(client.answered_by(header) for _ in range(10)) == {version: 10}, header
    users = {user: {client.answered_by({"cookie": f"arm={user}"}) for _ in range(3)} for user in range(40)}
    assert all(len(versions) == 1 for versions in users.values()), "users stay with their version"
    shares = Counter(version for versions in users.values() for version in versions)
    assert set(shares) == {old, new}
    assert min(shares.values()) >= 8
    assert min(Counter(client.answered_by() for _ in range(60)).values()) >= 12
    staff = world.bridge.counted("x-team=vision,speech")
    assert list(staff.values()) == [20]


def test_of_two_versions_for_users_the_worse_one_goes(world: World) -> None:
    old, serving = world.stable(), world.client().answered_by()
    releasing = world.begin("1.6.0", "errors", strategy="ab-test", **USERS)
    releasing.wait_for(lambda: world.bridge.traffic.segments, "users were divided")
    asked_by_users(world, serving, "1.6.0")
    outcome = releasing.end()
    assert outcome.code == 7, outcome.said
    assert "error_rate: the candidate is worse, +" in outcome.said
    assert "rolled-back" in outcome.said
    world.rest()
    assert world.stable() == old
    assert Counter(world.client().answered_by({"x-team": "vision"}) for _ in range(20)) == {serving: 20}
