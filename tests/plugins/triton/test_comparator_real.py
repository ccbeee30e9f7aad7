"""Two real Tritons behind a real Envoy that copies: a wrong candidate is found, and nobody who asks notices it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from shipctl.release.analysis.shadow import Comparisons, ShadowState, judge_shadow
from shipctl.release.metrics import MetricContext
from shipctl.release.rollout import Measurement
from shipctl.release.router import Backend
from shipctl.release.strategy import ShadowOptions
from shipctl.release.traffic import Mirror, Traffic
from shipctl.spec.units import Percentage
from shipctl.stages.verdicts import Outcome
from shipctl_plugins._envoy.config import COMPARATOR
from shipctl_plugins._envoy.proxy import Proxy
from shipctl_plugins._triton.client import asking
from shipctl_plugins._triton.comparator import Comparator
from shipctl_plugins._triton.environment import ensure_server_environment
from shipctl_plugins._triton.server import TritonServer
from shipctl_plugins.metrics.comparison import LAG, Comparison, ComparisonOptions
from support_metrics import CANDIDATE, STABLE

pytestmark = [pytest.mark.triton, pytest.mark.slow]

OPTIONS = ShadowOptions(comparisons=40, differing=Percentage("10%"), top1Agreement=Percentage("90%"))
WEIGHTS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.1, 0.2, 0.3]], np.float32)
CONFIG = """\
name: "m"
backend: "onnxruntime"
max_batch_size: 8
input [{ name: "x", data_type: TYPE_FP32, dims: [4] }]
output [{ name: "y", data_type: TYPE_FP32, dims: [%d] }]
version_policy: { all {} }
"""


def publish(repository: Path, version: int, weights: np.ndarray) -> None:
    """Put a model that multiplies by ``weights`` where a server finds it."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "m",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", weights.shape[1]])],
        [numpy_helper.from_array(weights, "w")],
    )
    folder = repository / "m" / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    opset = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), folder / "model.onnx")
    (repository / "m" / "config.pbtxt").write_text(CONFIG % weights.shape[1])


@dataclass
class Shadow:
    """A stable version 3 behind a door that copies everything, and a candidate 7 that is being compared."""

    stable: TritonServer
    candidate: TritonServer
    door: Proxy
    comparator: Comparator
    ctx: MetricContext

    def become(self, weights: np.ndarray) -> None:
        """Let the candidate be another model."""
        self.candidate.unload("m")
        publish(self.candidate.state.parent / "models", 7, weights)
        self.candidate.load("m")

    def ask(
        self, count: int, protocols: Sequence[str] = ("http", "grpc"), version: int | None = None
    ) -> None:
        """Ask as a client does, with samples of which each class is the largest in turn."""
        for protocol in protocols:
            address = self.door.endpoints[protocol].removeprefix("http://")
            with asking(protocol, address, "m", ["y"], version=version) as ask:  # type: ignore[arg-type]
                for number in range(count // len(protocols)):
                    sample = np.eye(4, dtype=np.float32)[[number % 3]] + np.float32(0.01)
                    outputs, answered = ask({"x": sample})
                    assert answered == "3"
                    np.testing.assert_allclose(outputs["y"], sample @ WEIGHTS, rtol=1e-5)

    def judged(
        self, count: int, options: ShadowOptions = OPTIONS, version: int | None = None
    ) -> tuple[Measurement, Comparisons]:
        """Ask, wait for the comparisons, and judge them as a release does."""
        bounds = ComparisonOptions(maxRelError=options.maxRelError, top1Agreement=options.top1Agreement)
        provider = Comparison(bounds, self.ctx)
        since = time.time()
        self.ask(count, version=version)
        deadline = time.monotonic() + 30
        while True:
            now = time.time()
            found = provider.query(CANDIDATE, since, now - LAG)
            counted = Comparisons.model_validate_json(found.raw)
            if counted.compared >= count or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        _, measurement = judge_shadow(options, ShadowState(), counted)
        return measurement, counted


@pytest.fixture(scope="module")
def shadow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shadow]:
    folder = tmp_path_factory.mktemp("shadow")
    environment = ensure_server_environment(print)
    with ExitStack() as stack:
        servers = []
        for name, version in (("stable", 3), ("candidate", 7)):
            publish(folder / name / "models", version, WEIGHTS)
            server = TritonServer.start(
                environment, repository=folder / name / "models", folder=folder / name, bound=True
            )
            stack.callback(server.stop)
            server.load("m")
            servers.append(server)
        door = Proxy(folder / "door", log=lambda _: None)
        door.ensure()
        stack.callback(door.stop)
        comparator = Comparator(door.folder, log=lambda _: None)
        to = comparator.ensure(
            [backend(servers[0])],
            [backend(servers[1])],
            stable_revision=STABLE,
            candidate_revision=CANDIDATE,
        )
        stack.callback(comparator.stop)
        traffic = Traffic(
            weights={STABLE: 100}, fallback=STABLE, mirror=Mirror(percent=100, candidate=CANDIDATE)
        )
        backends = {STABLE: (backend(servers[0]),), COMPARATOR: (to,)}
        door.set(traffic, backends, etag=door.get().etag, epoch=door.lease.acquire("test", 600))
        ctx = MetricContext(pipeline="p", model="m", versions={}, logs=door.folder)
        yield Shadow(servers[0], servers[1], door, comparator, ctx)


def backend(server: TritonServer) -> Backend:
    ports = server.record.ports
    return Backend(name="r", http=f"127.0.0.1:{ports.http}", grpc=f"127.0.0.1:{ports.grpc}")


def test_an_equal_candidate_passes_over_both_protocols_whatever_the_version(shadow: Shadow) -> None:
    """Clients name version 3, which the candidate does not have."""
    _, named = shadow.judged(4, version=3)
    assert (named.compared, named.differing) == (4, 0)
    found, counted = shadow.judged(60)
    assert (found.outcome, found.conclusive) == (Outcome.PASS, True), found.summary
    assert (counted.compared, counted.samples, counted.agreeing, counted.max_abs) == (60, 60, 60, 0.0)
    lines = shadow.comparator.comparisons.read_text()
    assert lines.count('"protocol":"http"') == lines.count('"protocol":"grpc"') == 32


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        (WEIGHTS * np.float32(1.1), "relative error above 0.05"),
        (
            np.where(WEIGHTS == 1, np.float32(np.nan), WEIGHTS),
            "y: 3 of 3 values are NaN or infinite on one side only",
        ),
        (np.hstack([WEIGHTS, WEIGHTS[:, :1]]), "y: shape 1×4 instead of 1×3"),
    ],
    ids=["other weights", "nan", "shape"],
)
def test_a_wrong_candidate_fails_and_says_why(shadow: Shadow, weights: np.ndarray, reason: str) -> None:
    shadow.become(weights)
    found, counted = shadow.judged(40)
    assert (found.outcome, found.conclusive) == (Outcome.FAIL, True)
    assert counted.reasons == {reason: 40}


def test_another_class_is_found_where_values_may_differ_as_they_like(shadow: Shadow) -> None:
    """Two of three classes have changed places."""
    options = OPTIONS.model_copy(update={"maxRelError": None})
    shadow.become(WEIGHTS[:, [1, 0, 2]])
    found, counted = shadow.judged(60, options)
    assert (found.outcome, found.conclusive) == (Outcome.FAIL, True)
    assert found.summary == "40 of 60 samples have another class (66.7 %), 10 % may"
    assert (counted.differing, counted.agreeing) == (0, 20)


def test_a_dead_candidate_fails_and_nobody_notices(shadow: Shadow) -> None:
    shadow.become(WEIGHTS)
    shadow.candidate.stop()
    found, counted = shadow.judged(40)
    assert (found.outcome, found.conclusive) == (Outcome.FAIL, True)
    assert (counted.compared, counted.failed) == (40, 40)
    assert all(reason.startswith("the candidate failed: ") for reason in counted.reasons)


def test_it_ends_with_the_door(shadow: Shadow) -> None:
    shadow.door.stop()
    assert until(lambda: not shadow.comparator.running)


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
