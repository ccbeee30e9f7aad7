"""Triton's counters: two looks at each replica, servers that were started anew, and a real one."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shipctl.errors import StageError
from shipctl.release.metrics import MetricContext
from shipctl.testing.metrics import MetricProviderConformance
from shipctl.testing.samples import tiny_onnx_model
from shipctl_plugins._metrics.exposition import Series, grown, read_counters
from shipctl_plugins._triton.environment import ensure_server_environment
from shipctl_plugins._triton.server import TritonServer
from shipctl_plugins.metrics.triton_metrics import FAILURE, SUCCESS, Look, Looks, TritonMetrics, TritonOptions
from support_metrics import CANDIDATE, STABLE, Asked, Web, elapsed, serving

pytestmark = pytest.mark.slow

DURATION, QUEUE = "nv_inference_request_duration_us", "nv_inference_queue_duration_us"


@dataclass
class Replica:
    """What a Triton shows of one version of a model, and of others."""

    version: str = "4"
    done: int = 0
    failed: dict[str, int] = field(default_factory=lambda: {"OTHER": 0, "BACKEND": 0})
    microseconds: int = 0

    def serve(self, requests: int, errors: int = 0) -> None:
        self.done += requests - errors
        self.failed["BACKEND"] += errors
        self.microseconds += (requests - errors) * 4000

    def restart(self) -> None:
        self.__init__(self.version)  # type: ignore[misc]

    def text(self, _: Asked) -> tuple[int, str] | None:
        labels = f'{{model="digits",version="{self.version}"}}'
        return 200, "\n".join(
            [
                f"# HELP {SUCCESS} Number of successful inference requests, all batch sizes",
                f"# TYPE {SUCCESS} counter",
                f"{SUCCESS}{labels} {self.done}",
                f'{SUCCESS}{{model="digits",version="1"}} 1000000',
                f'{SUCCESS}{{model="other",version="{self.version}"}} 1000000',
                *(
                    f'{FAILURE}{{model="digits",reason="{reason}",version="{self.version}"}} {count}'
                    for reason, count in self.failed.items()
                ),
                f"{DURATION}{labels} {self.microseconds}",
                f"{QUEUE}{labels} {self.microseconds // 10}",
                "nv_cpu_utilization nan",
            ]
        )


@pytest.fixture
def replicas(ctx: MetricContext) -> Iterator[tuple[MetricContext, list[Replica], list[Web]]]:
    """Two replicas of the candidate and one of the stable revision."""
    made = [Replica(), Replica(), Replica(version="3")]
    with (
        serving(Web(answer=made[0].text)) as one,
        serving(Web(answer=made[1].text)) as two,
        serving(Web(answer=made[2].text)) as stable,
    ):
        endpoints = {
            **ctx.endpoints,
            f"metrics/{CANDIDATE[:12]}/1": f"{one.url}/metrics",
            f"metrics/{CANDIDATE[:12]}/2": f"{two.url}/metrics",
            f"metrics/{STABLE[:12]}/1": f"{stable.url}/metrics",
        }
        yield replace(ctx, endpoints=endpoints), made, [one, two, stable]


def provider(ctx: MetricContext, **options: Any) -> TritonMetrics:
    return TritonMetrics(TritonOptions.model_validate(options), ctx)


Replicas = tuple[MetricContext, list[Replica], list[Web]]


def test_what_happened_between_two_looks(replicas: Replicas) -> None:
    ctx, (one, two, _), _ = replicas
    one.serve(1000, 100)  # before anybody looked
    asked = {value: provider(ctx, value=value) for value in ("latency_mean", "queue_time", "error_rate")}
    since = time.time()
    first = {value: each.query(CANDIDATE, since, since) for value, each in asked.items()}
    one.serve(30, 2)
    two.serve(10)
    time.sleep(0.2)
    until = time.time()
    found = {value: each.query(CANDIDATE, since, until) for value, each in asked.items()}
    for value, each in asked.items():
        assert (first[value].requests, first[value].coverage, first[value].value) == (0, 0.0, None)
        assert (found[value].requests, found[value].errors, found[value].coverage) == (40, 2, 1.0)
        assert found[value].durations is None
        assert each.query(STABLE, since, until).requests == 0
    assert found["latency_mean"].value == pytest.approx(0.004)
    assert found["queue_time"].value == pytest.approx(0.0004)
    assert found["error_rate"].value == pytest.approx(2 / 40)
    assert found["queue_time"].query.startswith('{model="digits",version="4"} of http://127.0.0.1:')
    assert found["queue_time"].raw == (f"{QUEUE} +15200, {DURATION} +152000, {FAILURE} +2, {SUCCESS} +38")


def test_the_first_window_is_not_covered(replicas: Replicas) -> None:
    ctx, (one, _, _), _ = replicas
    one.serve(10)
    now = time.time()
    found = provider(ctx).query(CANDIDATE, now - 15, now)
    assert (found.requests, found.coverage, found.value) == (0, 0.0, None)


def test_a_look_long_before_the_window_does_not_stand_for_its_begin(replicas: Replicas) -> None:
    """What came between them may have had other weights."""
    ctx, (one, _, _), _ = replicas
    asked = provider(ctx)
    now = time.time()
    asked.query(CANDIDATE, now, now)
    for looks in asked._looks.values():
        looks.seen[0] = Look(now - 60, looks.seen[0].counters)
    one.serve(10)
    found = asked.query(CANDIDATE, now - 15, now)
    assert (found.requests, found.coverage) == (0, 0.0)


def test_a_replica_that_was_started_anew_is_not_vouched_for(replicas: Replicas) -> None:
    ctx, (one, two, _), _ = replicas
    asked = provider(ctx)
    one.serve(100)
    two.serve(100)
    since = time.time()
    asked.query(CANDIDATE, since, since)
    one.serve(10)
    one.restart()
    one.serve(7)
    two.serve(5)
    time.sleep(0.1)
    found = asked.query(CANDIDATE, since, time.time())
    assert (found.requests, found.coverage) == (12, 0.5)


COUNTS = st.integers(min_value=0, max_value=1000)


@given(st.lists(st.tuples(COUNTS, st.booleans()), min_size=1, max_size=20))
def test_never_more_than_happened_and_never_less_without_a_restart(steps: list[tuple[int, bool]]) -> None:
    """Looks at a counter that is started anew at times; a restart may only go unseen if the counter caught up."""
    series: Series = (SUCCESS, (("model", "digits"),))
    looks = Looks()
    counter = happened = 0
    restarts = seen = 0
    looks.seen.append(Look(0.0, {series: 0}))
    for at, (requests, restart) in enumerate(steps, 1):
        before = counter
        counter = requests if restart else counter + requests
        happened += requests
        restarts += restart
        seen += restart and counter < before
        looks.seen.append(Look(float(at), {series: counter}))
    growth = looks.between(0.0, float(len(steps)))
    assert growth is not None
    counted = growth.counts[SUCCESS]
    assert 0 <= counted <= happened
    assert growth.whole == (seen == 0)
    if not restarts or seen == restarts:
        assert counted == happened


@given(
    st.dictionaries(st.text("abc", min_size=1), COUNTS), st.dictionaries(st.text("abc", min_size=1), COUNTS)
)
def test_a_process_has_one_life(before: dict[str, int], after: dict[str, int]) -> None:
    """If one of its counters began anew, all have: what they show is what was counted since."""
    old: dict[Series, float] = {(name, ()): count for name, count in before.items()}
    new: dict[Series, float] = {(name, ()): count for name, count in after.items()}
    growth, anew = grown(old, new)
    assert all(0 <= count <= new[series] for series, count in growth.items())
    if anew:
        assert growth == new
    else:
        assert all(new[series] - old.get(series, 0) == count for series, count in growth.items())
        assert set(old) <= set(new)


def test_a_replica_that_cannot_be_asked_makes_the_whole_an_error(replicas: Replicas) -> None:
    """The other one's numbers would be another number."""
    ctx, _, (_, two, _) = replicas
    asked = provider(ctx, timeout="300ms")
    now = time.time()
    asked.query(CANDIDATE, now, now)
    for answer, said in (
        (lambda _: None, "/metrics did not answer within 0.3 s"),
        (lambda _: (500, "oops"), "/metrics answered with status 500, not with metrics: oops"),
        (
            lambda _: (200, "<html>"),
            "/metrics did not answer with metrics: line 1 is not in Prometheus' text format",
        ),
        (lambda _: (200, ""), "/metrics did not answer with metrics: there is no metric in it"),
        (
            lambda _: (200, "nv_cpu_utilization 0.5"),
            f"shows no {QUEUE}, {DURATION}, {FAILURE}, {SUCCESS} of version",
        ),
    ):
        two.answer = answer
        for _ in range(2):
            with pytest.raises(StageError) as caught:
                asked.query(CANDIDATE, now, time.time())
            assert said in str(caught.value)


def test_a_replica_that_hangs_is_left_in_time(replicas: Replicas) -> None:
    ctx, _, (one, _, _) = replicas
    one.drip = 0.1

    def ask() -> None:
        with pytest.raises(StageError, match="did not answer within"):
            provider(ctx, timeout="300ms").query(CANDIDATE, 0, 1)

    assert elapsed(ask) < 1.5


def test_a_revision_without_replicas_is_an_error(ctx: MetricContext) -> None:
    with pytest.raises(StageError) as caught:
        provider(ctx).query(CANDIDATE, 0, 1)
    assert str(caught.value) == (
        "the target shows no metrics of revision bbbbbbbbbbbb: none of its replicas is known"
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('c{a="1"} 5', {"a": "1"}),
        ('c {a="1",} 5 1395066363000', {"a": "1"}),
        ('  c{ a = "1" , b="2" } 5e0  ', {"a": "1", "b": "2"}),
        ('c{a="1",b="x\\"y\\\\z\\n}"} 5', {"a": "1", "b": 'x"y\\z\n}'}),
    ],
)
def test_the_text_format_is_read(text: str, found: dict[str, str]) -> None:
    """Source: Prometheus' description of its text format, version 0.0.4."""
    assert read_counters(text, {"c"}, {"a": "1"}) == {("c", tuple(sorted(found.items()))): 5.0}
    assert read_counters(text, {"c"}, {"a": "2"}) == {}
    assert read_counters(f"# TYPE c counter\n\n{text}\nd NaN\ne +Inf\n", {"c"}, {"a": "1"})


@pytest.mark.parametrize(
    "text", ["c", 'c{a="1} 5', "c{a=1} 5", 'c{a="1"} five', "c NaN", "c -1", "c +Inf", "{} 5", "\x00"]
)
def test_what_is_no_counter_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"line|float|metric"):
        read_counters(text, {"c"}, {})


class TestConformance(MetricProviderConformance):
    """The kit's promises, of replicas that count as Triton does."""

    name, plugin, revision, other = "triton", TritonMetrics, CANDIDATE, STABLE

    @pytest.fixture
    def provider(self, replicas: Replicas) -> TritonMetrics:
        ctx, self.made, self.webs = replicas
        made = provider(ctx, timeout="2s")
        now = time.time()
        made.query(CANDIDATE, now, now)
        return made

    def happen(self, provider: Any, requests: int, errors: int) -> tuple[float, float]:
        since = time.time()
        provider.query(CANDIDATE, since, since)
        self.made[0].serve(requests - requests // 2, errors - errors // 2)
        self.made[1].serve(requests // 2, errors // 2)
        time.sleep(2.2)
        return since, time.time()

    def take_away(self, provider: Any) -> None:
        self.webs[1].answer = lambda _: None


CONFIG = """
backend: "onnxruntime"
max_batch_size: 8
input [{ name: "x" data_type: TYPE_FP32 dims: [4] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [3] }]
"""


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("triton")
    version = folder / "models" / "digits" / "4"
    version.mkdir(parents=True)
    model = tiny_onnx_model(folder / "made")
    (version / "model.onnx").write_bytes(model.root.read_bytes())
    (version.parent / "config.pbtxt").write_text(f'name: "digits"{CONFIG}')
    server = TritonServer.start(
        ensure_server_environment(print),
        repository=folder / "models",
        folder=folder / "server",
        bound=True,
        models=["digits"],
    )
    deadline = time.monotonic() + 60
    while not server.api.model_ready("digits"):
        assert time.monotonic() < deadline, server.log_tail()
        time.sleep(0.1)
    yield server
    server.stop()


def infer(server: TritonServer, features: int = 4) -> int:
    body = {"inputs": [{"name": "x", "shape": [1, features], "datatype": "FP32", "data": [1.0] * features}]}
    address = f"{server.endpoints['http']}/v2/models/digits/infer"
    try:
        with urllib.request.urlopen(address, json.dumps(body).encode(), timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.mark.triton
@pytest.mark.slow
def test_a_real_triton_is_counted(ctx: MetricContext, triton: TritonServer) -> None:
    endpoints = {f"metrics/{CANDIDATE[:12]}/1": triton.endpoints["metrics"]}
    asked = provider(replace(ctx, endpoints=endpoints))
    infer(triton)
    since = time.time()
    asked.query(CANDIDATE, since, since)
    assert {infer(triton) for _ in range(20)} == {200}
    time.sleep(0.1)
    until = time.time()
    found = asked.query(CANDIDATE, since, until)
    assert (found.requests, found.errors, found.coverage) == (20, 0, 1.0)
    assert found.value is not None
    assert 0 < found.value < (until - since) / 20
    queue = provider(replace(ctx, endpoints=endpoints), value="queue_time")
    assert queue.query(CANDIDATE, since, until).value is None
    time.sleep(2.1)
    since = time.time()
    asked.query(CANDIDATE, since, since)
    time.sleep(0.1)
    assert asked.query(CANDIDATE, since, time.time()).value is None
    with pytest.raises(
        StageError, match=r"shows no .* of version 3 of digits; see whether the replica has it loaded"
    ):
        provider(replace(ctx, endpoints={f"metrics/{STABLE[:12]}/1": triton.endpoints["metrics"]})).query(
            STABLE, since, until
        )


@pytest.mark.triton
@pytest.mark.slow
def test_a_real_triton_that_dies_is_an_error_each_time(
    ctx: MetricContext, triton: TritonServer, tmp_path: Path
) -> None:
    endpoints = {f"metrics/{CANDIDATE[:12]}/1": triton.endpoints["metrics"]}
    asked = provider(replace(ctx, endpoints=endpoints))
    since = time.time()
    asked.query(CANDIDATE, since, since)
    infer(triton)
    triton.stop()
    for _ in range(3):
        with pytest.raises(StageError, match="/metrics cannot be asked: connection refused"):
            asked.query(CANDIDATE, since, time.time())
