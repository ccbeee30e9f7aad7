"""PromQL on a real Prometheus, and everything that may answer in its place."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs

import pytest

from shipctl.errors import SpecError, StageError, UnavailableError
from shipctl.release.metrics import MetricContext
from shipctl.release.references import validated
from shipctl.stages.context import CheckContext
from shipctl.testing.metrics import MetricProviderConformance
from shipctl_plugins.metrics.prometheus import Prometheus, PrometheusOptions, Server
from support_metrics import CANDIDATE, STABLE, Asked, Web, elapsed, serving
from support_prometheus import BINARY, INTERVAL, MISSING
from support_prometheus import Prometheus as Running
from support_prometheus import prometheus as running_prometheus

real = pytest.mark.skipif(BINARY is None, reason=MISSING)
TOKEN = "prom-token-77"


@dataclass
class Exporter:
    """Counters of one version of a model, as Triton exports them, and a histogram as Envoy does."""

    done: int = 0
    failed: int = 0
    microseconds: int = 0
    queued: int = 0
    buckets: dict[str, int] = field(default_factory=lambda: {"5": 0, "10": 0, "25": 0, "+Inf": 0})
    down: bool = False

    def serve(self, requests: int, errors: int = 0, seconds: float = 0.008) -> None:
        self.done += requests - errors
        self.failed += errors
        self.microseconds += round((requests - errors) * seconds * 1e6)
        self.queued += round((requests - errors) * seconds * 1e5)
        for bound in self.buckets:
            self.buckets[bound] += requests if float(bound) >= seconds * 1000 else 0

    def text(self, asked: Asked) -> tuple[int, str] | None:
        labels = '{model="digits",version="4"}'
        cluster = f'envoy_cluster_name="http-{CANDIDATE[:12]}"'
        lines = [
            f"nv_inference_request_success{labels} {self.done}",
            f'nv_inference_request_failure{{model="digits",reason="OTHER",version="4"}} {self.failed}',
            f"nv_inference_request_duration_us{labels} {self.microseconds}",
            f"nv_inference_queue_duration_us{labels} {self.queued}",
            *(
                f'envoy_cluster_upstream_rq_time_bucket{{{cluster},le="{bound}"}} {count}'
                for bound, count in self.buckets.items()
            ),
            f"envoy_cluster_upstream_rq_completed{{{cluster}}} {self.done + self.failed}",
        ]
        return (503, "") if self.down else (200, "\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def scraping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Exporter]]:
    exporter = Exporter()
    with (
        serving(Web(answer=exporter.text)) as web,
        running_prometheus(tmp_path_factory.mktemp("prometheus"), [f"127.0.0.1:{web.port}"]) as server,
    ):
        yield server, exporter


@pytest.fixture
def source(scraping: tuple[Running, Exporter]) -> tuple[Running, Exporter]:
    server, exporter = scraping
    exporter.down = False
    server.scraped("nv_inference_request_success")
    return scraping


def window(
    exporter: Exporter, *, requests: int, errors: int = 0, seconds: float = 0.008
) -> tuple[float, float]:
    """Make a window of about two seconds with so many requests spread over it."""
    time.sleep(2 * INTERVAL)
    since = time.time()
    for part in range(10):
        exporter.serve(
            requests * (part + 1) // 10 - requests * part // 10,
            errors * (part + 1) // 10 - errors * part // 10,
            seconds,
        )
        time.sleep(0.2)
    return since, time.time()


def provider(ctx: MetricContext, url: str, **options: Any) -> Prometheus:
    return Prometheus(PrometheusOptions.model_validate({"url": url, **options}), ctx)


@real
@pytest.mark.slow
def test_presets_give_what_happened(ctx: MetricContext, source: tuple[Running, Exporter]) -> None:
    """Within what Prometheus extrapolates to the borders of the window."""
    server, exporter = source
    since, until = window(exporter, requests=200, errors=20)
    found = {
        preset: provider(ctx, server.url, preset=preset).query(CANDIDATE, since, until)
        for preset in ("error_rate", "latency_mean", "queue_time")
    }
    assert found["error_rate"].value == pytest.approx(0.1, rel=0.2)
    assert found["latency_mean"].value == pytest.approx(0.008, rel=0.05)
    assert found["queue_time"].value == pytest.approx(0.0008, rel=0.05)
    for each in found.values():
        assert each.requests == pytest.approx(200, rel=0.25)
        assert each.errors == pytest.approx(20, rel=0.4)
        assert each.coverage == pytest.approx(1.0, abs=0.25)
        assert f'model="digits",version="4"}}[{round((until - since) * 1000)}ms]' in each.query


@real
@pytest.mark.slow
def test_a_histogram_gives_a_quantile_in_seconds(
    ctx: MetricContext, source: tuple[Running, Exporter]
) -> None:
    """8 ms lie between the bounds 5 and 10, which is all that a histogram knows."""
    server, exporter = source
    since, until = window(exporter, requests=200)
    options = {"preset": "envoy_latency", "quantile": 0.5, "cluster": "http-" + CANDIDATE[:12]}
    found = provider(ctx, server.url, **options).query(CANDIDATE, since, until)
    assert found.value == pytest.approx(0.0075, rel=0.01)
    assert found.requests == pytest.approx(200, rel=0.25)
    assert found.errors == 0


@real
@pytest.mark.slow
def test_a_scrape_that_fails_is_not_covered(ctx: MetricContext, source: tuple[Running, Exporter]) -> None:
    server, exporter = source
    since = time.time()
    time.sleep(1.5)
    exporter.down = True
    time.sleep(1.5)
    until = time.time()
    found = provider(ctx, server.url, preset="error_rate").query(CANDIDATE, since, until)
    assert found.coverage == pytest.approx(0.5, abs=0.2)
    exporter.down = False


@real
@pytest.mark.slow
def test_what_is_no_number_is_no_value(ctx: MetricContext, source: tuple[Running, Exporter]) -> None:
    server, _ = source
    until = time.time()

    def asked(query: str) -> tuple[float | None, float]:
        found = provider(ctx, server.url, query=query).query(CANDIDATE, until - 2, until)
        return found.value, found.coverage

    assert asked("vector(0) / vector(0)") == (None, 0.0)
    assert asked("vector(1) / vector(0)") == (None, 0.0)
    assert asked('no_such_metric{model="{{ model }}"}') == (None, 0.0)
    assert asked("scalar(vector(3))") == (3.0, 1.0)
    assert asked("nv_inference_request_success{version='{{ version }}'} * 0 + 2") == (2.0, 1.0)
    with pytest.raises(StageError, match=r"gives 4 numbers, not one; put sum\(\) around it"):
        asked("envoy_cluster_upstream_rq_time_bucket")
    with pytest.raises(StageError, match="gives a string, not a number"):
        asked('"text"')


@real
@pytest.mark.slow
def test_a_query_of_ones_own_may_say_what_it_stands_on(
    ctx: MetricContext, source: tuple[Running, Exporter]
) -> None:
    server, exporter = source
    since, until = window(exporter, requests=100, errors=10)
    labels = '{model="{{ model }}",version="{{ version }}"}'
    found = provider(
        ctx,
        server.url,
        query="vector({{ until }} - {{ since }})",
        requests=f"sum(increase(nv_inference_request_success{labels}[{{{{window}}}}]))",
        errors=f"sum(increase(nv_inference_request_failure{labels}[{{{{window}}}}]))",
        series=f"nv_inference_request_success{labels}",
    ).query(CANDIDATE, since, until)
    assert found.value == pytest.approx(until - since, abs=0.01)
    assert found.requests == pytest.approx(90, rel=0.25)
    assert found.errors == pytest.approx(10, rel=0.4)
    assert found.coverage > 0.7


@real
@pytest.mark.slow
def test_a_plan_has_the_server_understand_the_queries(
    source: tuple[Running, Exporter], check_ctx: CheckContext
) -> None:
    server, _ = source

    def check(**options: Any) -> None:
        Prometheus.check(PrometheusOptions.model_validate({"url": server.url, **options}), check_ctx)

    for preset in ("error_rate", "latency_mean", "queue_time", "envoy_latency"):
        check(preset=preset, labels={"namespace": 'a"b'})
    check(preset="first_response", triton="2.60")
    with pytest.raises(SpecError) as caught:
        check(query="sum(rate(x[{{ window }}])")
    assert str(caught.value) == (
        f"{server.url} refused the query sum(rate(x[60000ms]): invalid parameter "
        '"query": 1:21: parse error: unclosed left parenthesis'
    )
    with pytest.raises(SpecError, match="gives a matrix, not a number"):
        check(query="up[1m]")


@real
@pytest.mark.slow
def test_a_prometheus_that_dies_or_hangs_is_an_error_each_time(
    ctx: MetricContext, tmp_path: Path, check_ctx: CheckContext
) -> None:
    exporter = Exporter()
    with (
        serving(Web(answer=exporter.text)) as web,
        running_prometheus(tmp_path / "p", [f"127.0.0.1:{web.port}"]) as server,
    ):
        server.scraped("nv_inference_request_success")
        since, until = window(exporter, requests=50)
        asked = provider(ctx, server.url, preset="error_rate", timeout="500ms")
        assert asked.query(CANDIDATE, since, until).requests > 0
        with server.suspended():
            for _ in range(2):
                with pytest.raises(StageError, match=r"/api/v1/query did not answer within 0\.5 s"):
                    asked.query(CANDIDATE, since, until)
        assert asked.query(CANDIDATE, since, until).requests > 0
        server.kill()
        for _ in range(2):
            with pytest.raises(StageError, match="cannot be asked: connection refused"):
                asked.query(CANDIDATE, since, until)
        with pytest.raises(UnavailableError, match="cannot be asked: connection refused"):
            Prometheus.check(PrometheusOptions(url=server.url, preset="error_rate"), check_ctx)


def success(result: object, kind: str = "vector") -> str:
    return json.dumps({"status": "success", "data": {"resultType": kind, "result": result}})


def speaking(web: Web, answers: dict[str, str], clock: float = 0.0) -> list[dict[str, str]]:
    """Let the server answer queries by what they contain; return the fields that it was asked with."""
    fields: list[dict[str, str]] = []

    def answer(asked: Asked) -> tuple[int, str]:
        field = {name: values[0] for name, values in parse_qs(asked.body).items()}
        fields.append(field)
        if field["query"] == "time()":
            return 200, success([0, str(time.time() + clock)], "scalar")
        return 200, next(text for part, text in answers.items() if part in field["query"])

    web.answer = answer
    return fields


def test_the_window_ends_by_the_servers_clock(ctx: MetricContext, web: Web) -> None:
    """One that runs an hour ahead has stamped its samples so."""
    fields = speaking(web, {"": success([{"metric": {}, "value": [0, "5"]}])}, clock=3600)
    until = time.time()
    found = provider(ctx, web.url, query="x{a='{{ since }}',b='{{ until }}'}").query(
        CANDIDATE, until - 10, until
    )
    assert float(fields[1]["time"]) == pytest.approx(until + 3600, abs=0.5)
    begin, end = re.fullmatch(r"x\{a='([\d.]+)',b='([\d.]+)'\}", fields[1]["query"]).groups()  # type: ignore[union-attr]
    assert float(begin) == pytest.approx(until + 3600 - 10, abs=0.5)
    assert float(end) == pytest.approx(until + 3600, abs=0.5)
    assert (found.since, found.until) == (until - 10, until)


def test_names_are_quoted_and_labels_added(ctx: MetricContext, web: Web) -> None:
    fields = speaking(web, {"sum(": success([]), "": success([], "matrix")})
    odd = replace(ctx, model='a"b\\c')
    provider(odd, f"{web.url}/prom/", preset="error_rate", labels={"namespace": "x"}).query(CANDIDATE, 0, 1)
    assert web.asked[0].path == "/prom/api/v1/query"
    assert (
        'nv_inference_request_failure{model="a\\"b\\\\c",version="4",namespace="x"}[1000ms]'
        in fields[1]["query"]
    )


def test_a_token_goes_with_each_question(
    ctx: MetricContext, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROM", TOKEN)
    speaking(web, {"": success([{"metric": {"t": TOKEN}, "value": [0, "5"]}])})
    found = provider(ctx, web.url, query="up", token_env="PROM").query(CANDIDATE, 0, 1)
    assert [asked.headers["authorization"] for asked in web.asked] == [f"Bearer {TOKEN}"] * 2
    assert TOKEN not in found.raw + found.query
    assert "***" in found.raw


@pytest.mark.parametrize(
    ("status", "text", "said"),
    [
        (200, "<html>Sign in</html>", "answered with status 200 and <html>Sign in</html>, not as Prometheus does"),
        (200, "", "answered with status 200 and no text, not as Prometheus does"),
        (200, "[]", "answered with status 200 and [], not as Prometheus does"),
        (200, '{"status": "success"}', "not as Prometheus does"),
        (200, '{"status": "success", "data": 5}', "answered with no data"),
        (200, success("x"), "answered with what is no vector"),
        (200, success([{"metric": {}, "value": [0]}]), "answered with what is no vector"),
        (200, success([{"metric": {}, "value": [0, "five"]}]), "answered with what is no vector"),
        (200, success([], "streams"), "gives a streams, not a number"),
        (302, "", "answered with status 302 and no text, not as Prometheus does"),
        (401, "Unauthorized", "answered with status 401 and Unauthorized, not as Prometheus does"),
        (503, '{"status": "error", "error": "shutting down"}', "refused the query up: shutting down"),
        (422, '{"status": "error", "error": "many-to-many"}', "refused the query up: many-to-many"),
    ],
)  # fmt: skip
def test_garbage_is_an_error(ctx: MetricContext, web: Web, status: int, text: str, said: str) -> None:
    now = success([0, "1000"], "scalar")
    web.answer = lambda asked: (200, now) if "time%28" in asked.body else (status, text)
    with pytest.raises(StageError) as caught:
        provider(ctx, web.url, query="up").query(CANDIDATE, 0, 1)
    assert said in str(caught.value)


def test_no_time_is_an_error(ctx: MetricContext, web: Web) -> None:
    web.answer = lambda _: (200, success([]))
    with pytest.raises(StageError, match="did not say what time it is"):
        provider(ctx, web.url, query="up").query(CANDIDATE, 0, 1)


def test_a_server_that_drips_is_left_in_time(ctx: MetricContext, web: Web) -> None:
    web.answer = lambda _: (200, success([0, "1000"], "scalar"))
    web.drip = 0.1

    def ask() -> None:
        with pytest.raises(StageError, match=r"did not answer within 0\.4 s"):
            provider(ctx, web.url, query="up", timeout="400ms").query(CANDIDATE, 0, 1)

    assert elapsed(ask) < 1.5


@pytest.mark.parametrize(
    ("times", "share"),
    [
        ([], 0.0),
        ([5.0], 0.0),
        ([0.5, 2.5, 4.5, 6.5, 8.5], 1.0),
        ([0.5, 2.5, 4.5], 0.65),
        ([6.5, 8.5], 0.55),
        ([0.5, 2.5, 8.5, 9.5], 0.8),
    ],
)
def test_how_much_scrapes_cover(ctx: MetricContext, web: Web, times: list[float], share: float) -> None:
    """Of a window of ten seconds; up to one usual distance to its borders is nothing missing."""
    series = [{"metric": {}, "values": [[100 + at, "1"] for at in times]}] if times else []
    speaking(web, {"": success(series, "matrix")})
    server = Server(web.url, PrometheusOptions(url=web.url, query="x").caller(Path()))
    assert server.coverage("x", 110.0, 10.0) == pytest.approx(share)


def test_a_revision_that_is_not_on_the_target_is_an_error(ctx: MetricContext, web: Web) -> None:
    with pytest.raises(StageError, match="revision cccccccccccc has no version in Triton"):
        provider(ctx, web.url, query="up").query("c" * 64, 0, 1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "give either `preset` or `query`"),
        ({"preset": "error_rate", "query": "up"}, "give either `preset` or `query`"),
        ({"preset": "eror_rate"}, "; did you mean 'error_rate'?"),
        ({"preset": "error_rate", "series": "up"}, "`requests`, `errors` and `series` belong to a `query`"),
        ({"query": "up", "errors": "up"}, "`errors` says little without `requests`; give both"),
        ({"query": "x{{ modle }}"}, "{{ modle }} is not known in a query; did you mean 'model'?"),
        ({"query": "x{{ 7**7 }}"}, "{{ 7**7 }} is not known in a query; there are model, version, revision,"),
        ({"preset": "first_response"}, "which came with 2.53; there are error_rate, latency_mean, queue_time, envoy"),
        ({"query": "up", "labels": {"a-b": "x"}}, "'a-b' is not the name of a label, such as namespace"),
        ({"preset": "error_rate", "triton": "24.10-py3"}, "'24.10-py3' is not a version such as 2.51"),
        ({"query": "up", "quantile": 1.0}, "less than 1"),
    ],
)  # fmt: skip
def test_wrong_options_are_told(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        validated(PrometheusOptions, {"url": "http://p:9090", **options}, "metric provider 'prometheus'")
    assert said in str(caught.value)


@real
@pytest.mark.slow
class TestConformance(MetricProviderConformance):
    """The kit's promises on the real thing; what it counts is extrapolated."""

    name, plugin, revision, other, counts = "prometheus", Prometheus, CANDIDATE, STABLE, False
    secret: ClassVar[str | None] = TOKEN

    @pytest.fixture
    def provider(
        self, ctx: MetricContext, source: tuple[Running, Exporter], monkeypatch: pytest.MonkeyPatch
    ) -> Prometheus:
        server, self.exporter = source
        monkeypatch.setenv("PROM", TOKEN)
        self.options = {"preset": "error_rate", "timeout": "500ms", "token_env": "PROM"}
        return provider(ctx, server.url, **self.options)

    def happen(self, provider: Any, requests: int, errors: int) -> tuple[float, float]:
        return window(self.exporter, requests=requests, errors=errors)

    def take_away(self, provider: Any) -> None:
        """The server stays for the other tests; nobody listens where this one asks."""
        provider._server = Server("http://127.0.0.1:1", provider.options.caller(Path()))
