"""Requests counted from the door's log: whose they were, what failed, rotation, half-written lines, coverage."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shipctl.errors import StageError
from shipctl.release.metrics import MetricContext
from shipctl.release.router import Backend
from shipctl.release.traffic import Traffic
from shipctl.testing.metrics import MetricProviderConformance
from shipctl_plugins._envoy.access_log import Entry
from shipctl_plugins._envoy.config import Table, routes_response
from shipctl_plugins.metrics.access_log import AccessLog, AccessLogOptions
from support_metrics import CANDIDATE, STABLE

pytestmark = pytest.mark.slow

NOW = 1_700_000_000.0
STABLE_HOST, CANDIDATE_HOST = "127.0.0.1:8000", "127.0.0.1:8100"


def line(end: float, meant: str = CANDIDATE, **fields: Any) -> str:
    duration = fields.pop("duration", 0.01)
    host = fields.pop("host", CANDIDATE_HOST if meant == CANDIDATE else STABLE_HOST)
    entry = {
        "start": f"{end - (duration or 0):.6f}",
        "duration_us": None if duration is None else round(duration * 1e6),
        "arm": meant[:12],
        "cluster": f"http-{meant[:12]}-first",
        "host": host,
        "hosts_attempted": host,
        "attempts": 1,
        "code": 200,
        "grpc_status": None,
        "flags": None,
        "path": "/v2/models/digits/infer",
        "segment": None,
        "protocol": "http",
        **fields,
    }
    return json.dumps(entry) + "\n"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "access.jsonl"
    path.touch()
    return path


def add(log: Path, *lines: str) -> None:
    with log.open("a") as file:
        file.writelines(lines)


def provider(ctx: MetricContext, now: float = NOW + 1000, **options: Any) -> AccessLog:
    """All lines are from around NOW, which is long ago when they are asked for."""
    return AccessLog(AccessLogOptions.model_validate(options), ctx, now=lambda: now)


def test_requests_are_counted_for_whom_they_were_meant(ctx: MetricContext, log: Path) -> None:
    add(log, line(NOW + 1, duration=0.25), line(NOW + 2, STABLE), line(NOW + 3, duration=0.5))
    asked = provider(ctx)
    mine = asked.query(CANDIDATE, NOW, NOW + 10)
    assert (mine.requests, mine.errors) == (2, 0)
    assert mine.durations == (0.25, 0.5)
    assert mine.times == pytest.approx((NOW + 1, NOW + 3), abs=1e-5)
    assert mine.coverage == 1.0
    assert asked.query(STABLE, NOW, NOW + 10).requests == 1


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"code": 503, "flags": "UF"}, "status 503 UF"),
        ({"code": 500}, "status 500"),
        ({"code": 0, "flags": "UR"}, "status 0 UR"),
        ({"code": 0, "flags": "DC", "duration": None}, "no answer DC"),
        ({"code": 200, "flags": "UR", "duration": None}, "no answer UR"),
        ({"protocol": "grpc", "grpc_status": 14, "path": "/i.S/ModelInfer"}, "status 200 gRPC 14"),
        ({"protocol": "grpc", "grpc_status": None, "path": "/i.S/ModelInfer"}, "status 200"),
        ({"host": STABLE_HOST, "hosts_attempted": f"{CANDIDATE_HOST},{STABLE_HOST}", "attempts": 2},
         "answered by aaaaaaaaaaaa"),
        ({"host": STABLE_HOST}, "answered by aaaaaaaaaaaa"),
        ({"host": "10.0.0.9:1", "hosts_attempted": f"{CANDIDATE_HOST},10.0.0.9:1"}, "answered by another host"),
        ({"host": None, "hosts_attempted": None, "code": 503, "flags": "UH", "arm": None}, "status 503 UH"),
    ],
)  # fmt: skip
def test_what_counts_as_an_error(ctx: MetricContext, log: Path, fields: dict[str, Any], why: str) -> None:
    add(log, line(NOW + 1), line(NOW + 2, **fields))
    found = provider(ctx).query(CANDIDATE, NOW, NOW + 10)
    assert (found.requests, found.errors) == (2, 1)
    assert found.durations == (0.01,)
    assert found.raw == f"2 requests, 1 × {why}"


def test_a_dead_candidate_does_not_look_like_the_stable_one_that_stands_in(
    ctx: MetricContext, log: Path
) -> None:
    """First its requests are retried elsewhere, later they are sent there at once: quick, and none of its own."""
    add(log, *(line(NOW + i, duration=0.001, host=STABLE_HOST) for i in range(20)))
    asked = provider(ctx)
    mine = asked.query(CANDIDATE, NOW, NOW + 100)
    assert (mine.requests, mine.errors, mine.durations) == (20, 20, ())
    assert asked.query(STABLE, NOW, NOW + 100).requests == 0


def test_a_retry_among_its_own_replicas_is_no_error(ctx: MetricContext, log: Path) -> None:
    hosts = f"{STABLE_HOST},127.0.0.1:8010"
    add(log, line(NOW + 1, STABLE, host="127.0.0.1:8010", hosts_attempted=hosts, attempts=2))
    assert provider(ctx).query(STABLE, NOW, NOW + 10).errors == 0


def test_only_inference_counts(ctx: MetricContext, log: Path) -> None:
    for path in (
        "/v2/health/ready",
        "/v2/models/digits",
        "/v2/models/digits/stats",
        "/inference.S/ServerLive",
    ):
        add(log, line(NOW + 1, path=path, code=500))
    add(log, line(NOW + 1, path="/v2/models/digits/versions/4/infer"))
    add(log, line(NOW + 1, path="/inference.GRPCInferenceService/ModelInfer", protocol="grpc", grpc_status=0))
    found = provider(ctx).query(CANDIDATE, NOW, NOW + 10)
    assert (found.requests, found.errors, len(found.durations or ())) == (2, 0, 2)


def test_a_refused_request_is_no_success_and_an_error_if_asked_for(ctx: MetricContext, log: Path) -> None:
    add(log, line(NOW + 1, code=400), line(NOW + 2))
    found = provider(ctx).query(CANDIDATE, NOW, NOW + 10)
    assert (found.requests, found.errors, len(found.durations or ())) == (2, 0, 1)
    assert provider(ctx, refusals=True).query(CANDIDATE, NOW, NOW + 10).errors == 1


def test_a_segment_is_counted_by_itself(ctx: MetricContext, log: Path) -> None:
    add(log, line(NOW + 1, segment="beta"), line(NOW + 2, segment="g%C3%A4ste"), line(NOW + 3))
    assert provider(ctx, segment="gäste").query(CANDIDATE, NOW, NOW + 10).requests == 1
    assert provider(ctx).query(CANDIDATE, NOW, NOW + 10).requests == 3


def test_a_window_has_its_begin_and_not_its_end(ctx: MetricContext, log: Path) -> None:
    add(log, *(line(NOW + i, duration=0.5) for i in range(10)))
    asked = provider(ctx)
    counts = [asked.query(CANDIDATE, NOW + i, NOW + i + 2).requests for i in range(0, 10, 2)]
    assert counts == [2, 2, 2, 2, 2]


def test_lines_out_of_order_are_put_in_order(ctx: MetricContext, log: Path) -> None:
    add(log, line(NOW + 2, duration=0.2), line(NOW + 1.9, duration=0.1), line(NOW + 2.1, duration=0.3))
    assert provider(ctx).query(CANDIDATE, NOW, NOW + 10).durations == (0.1, 0.2, 0.3)


def test_requests_that_end_at_once_are_all_counted(ctx: MetricContext, log: Path) -> None:
    for code in (200, 400, 500, 200):
        add(log, line(NOW + 1, code=code))
    found = provider(ctx).query(CANDIDATE, NOW, NOW + 10)
    assert (found.requests, found.errors, found.durations) == (4, 1, (0.01, 0.01))


def test_each_line_is_read_once(ctx: MetricContext, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str | bytes] = []
    parse = Entry.parse

    def counted(text: str | bytes) -> Entry | None:
        parsed.append(text)
        return parse(text)

    monkeypatch.setattr(Entry, "parse", counted)
    asked = provider(ctx)
    for turn in range(5):
        add(log, *(line(NOW + turn + i / 100) for i in range(50)))
        assert asked.query(CANDIDATE, NOW + turn, NOW + turn + 1).requests == 50
        assert asked.query(STABLE, NOW + turn, NOW + turn + 1).requests == 0
    assert len(parsed) == 250


def test_an_earlier_window_is_read_again(ctx: MetricContext, log: Path) -> None:
    add(log, *(line(NOW + i) for i in range(10)))
    asked = provider(ctx)
    assert asked.query(CANDIDATE, NOW + 8, NOW + 20).requests == 2
    assert asked.query(CANDIDATE, NOW, NOW + 20).requests == 10


def test_half_a_line_counts_when_it_is_whole(ctx: MetricContext, log: Path) -> None:
    text = line(NOW + 1)
    asked = provider(ctx)
    for cut in (1, 20, len(text) - 1):
        add(log, text[:cut])
        before = asked.query(CANDIDATE, NOW, NOW + 10)
        add(log, text[cut:])
        after = asked.query(CANDIDATE, NOW, NOW + 10)
        assert after.requests == before.requests + 1
        assert after.coverage == 1.0


def test_rotation_loses_nothing_and_counts_nothing_twice(ctx: MetricContext, log: Path) -> None:
    """What is written to a file after it was renamed is read too, whether it was seen before or not."""
    asked, later = provider(ctx), provider(ctx)
    written = 0
    for turn in range(6):
        with log.open("a") as old:
            add(log, line(NOW + turn))
            if turn % 2:
                assert asked.query(CANDIDATE, NOW, NOW + 100).requests == written + 1
            rotate(log)
            old.write(line(NOW + turn + 0.5))
        log.touch()
        written += 2
        assert asked.query(CANDIDATE, NOW, NOW + 100).requests == written
    assert len(list(log.parent.glob("access.jsonl*"))) == 3
    fresh = later.query(CANDIDATE, NOW, NOW + 100)
    assert fresh.requests == 4, "of a log that was removed before, nobody can know"
    assert fresh.coverage == pytest.approx((100 - 4) / 100), "and that is said"


def rotate(log: Path) -> None:
    for number in (1, 0):
        path = log.with_name(f"{log.name}.{number}") if number else log
        if path.exists():
            path.replace(log.with_name(f"{log.name}.{number + 1}"))


def test_files_do_not_stay_open(ctx: MetricContext, log: Path) -> None:
    def opened() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = opened()
    asked = provider(ctx)
    for turn in range(10):
        add(log, line(NOW + turn))
        asked.query(CANDIDATE, NOW, NOW + 100)
        rotate(log)
        log.touch()
    assert opened() <= before + 3
    del asked
    assert opened() == before


def test_an_emptied_log_is_read_from_its_begin_and_not_vouched_for(ctx: MetricContext, log: Path) -> None:
    asked = provider(ctx)
    add(log, *(line(NOW + i) for i in range(5)))
    asked.query(CANDIDATE, NOW, NOW + 10)
    log.write_text(line(NOW + 6))
    found = asked.query(CANDIDATE, NOW, NOW + 10)
    assert found.requests == 6
    assert found.coverage == 0.0


@pytest.mark.parametrize(("late", "coverage"), [(1.0, 1.0), (0.5, 0.95), (-9.0, 0.0), (-100.0, 0.0)])
def test_what_may_not_be_written_yet_is_not_covered(
    ctx: MetricContext, log: Path, late: float, coverage: float
) -> None:
    add(log, line(NOW + 1))
    found = provider(ctx, now=NOW + 10 + late).query(CANDIDATE, NOW, NOW + 10)
    assert found.coverage == pytest.approx(coverage)


def test_an_empty_log_says_that_there_was_no_request(ctx: MetricContext, log: Path) -> None:
    found = provider(ctx).query(CANDIDATE, NOW, NOW + 10)
    assert (found.requests, found.durations, found.value, found.coverage) == (0, (), None, 1.0)


def test_an_empty_window_covers_nothing(ctx: MetricContext, log: Path) -> None:
    assert provider(ctx).query(CANDIDATE, NOW, NOW).coverage == 0.0


def test_broken_lines_are_not_vouched_for(ctx: MetricContext, log: Path) -> None:
    add(log, line(NOW + 1), '{"start": 17\n', line(NOW + 2), line(NOW + 3))
    assert provider(ctx).query(CANDIDATE, NOW, NOW + 10).coverage == pytest.approx(3 / 4)


def test_a_host_that_is_nobodys_is_not_vouched_for(ctx: MetricContext, log: Path) -> None:
    add(log, line(NOW + 1), line(NOW + 2, host="127.0.0.1:7777"))
    found = provider(ctx).query(CANDIDATE, NOW, NOW + 10)
    assert (found.requests, found.errors, found.coverage) == (2, 0, 0.5)


def test_another_kind_of_file_is_an_error_each_time(ctx: MetricContext, log: Path) -> None:
    add(log, *(f"[{i}] GET /v2/models/digits/infer 200\n" for i in range(50)))
    asked = provider(ctx)
    for _ in range(2):
        with pytest.raises(StageError) as caught:
            asked.query(CANDIDATE, NOW, NOW + 10)
        assert str(caught.value) == f"50 of 50 lines of {log} are not those of an access log of the door"


def test_a_log_that_goes_away_is_an_error_each_time(ctx: MetricContext, log: Path) -> None:
    add(log, line(NOW + 1))
    asked = provider(ctx)
    assert asked.query(CANDIDATE, NOW, NOW + 10).requests == 1
    log.unlink()
    for _ in range(2):
        with pytest.raises(StageError) as caught:
            asked.query(CANDIDATE, NOW, NOW + 10)
        assert str(caught.value) == f"the access log {log} is not there; see whether the door runs"


def test_the_moment_between_renaming_and_reopening_is_waited_for(ctx: MetricContext, log: Path) -> None:
    import threading

    add(log, line(NOW + 1))
    asked = provider(ctx)
    asked.query(CANDIDATE, NOW, NOW + 10)
    rotate(log)
    # whole at once: a file that is there and still empty is one without requests
    aside = log.with_name("aside")
    add(aside, line(NOW + 2))
    reopened = threading.Timer(0.2, lambda: aside.rename(log))
    reopened.start()
    found = asked.query(CANDIDATE, NOW, NOW + 10)
    reopened.join()
    assert (found.requests, found.coverage) == (2, 1.0)


def test_without_hosts_of_the_revision_there_is_no_number(ctx: MetricContext, log: Path) -> None:
    add(log, line(NOW + 1))
    with pytest.raises(StageError) as caught:
        provider(replace(ctx, endpoints={"http": "http://127.0.0.1:1"})).query(CANDIDATE, NOW, NOW + 10)
    assert str(caught.value) == (
        "neither the door nor the target says where the replicas of revision bbbbbbbbbbbb listen; "
        "what others had to answer for it could not be told"
    )


def test_the_door_knows_best_who_listens_where(ctx: MetricContext, log: Path) -> None:
    """A replica that was started anew listens elsewhere; the next query knows."""
    asked = provider(replace(ctx, endpoints={}))
    for port in (8100, 8200):
        backends = {
            name: (Backend(name="r", http=f"127.0.0.1:{number}", grpc=f"127.0.0.1:{number + 1}"),)
            for name, number in ((STABLE, 8000), (CANDIDATE, port))
        }
        table = Table(traffic=Traffic.only(STABLE), backends=backends)
        (log.parent / "routes.json").write_text(json.dumps(routes_response(table)))
        log.write_text(line(NOW + 1, host=f"127.0.0.1:{port}") + line(NOW + 2, host=STABLE_HOST))
        found = asked.query(CANDIDATE, NOW, NOW + 10)
        assert (found.requests, found.errors) == (2, 1)
        log.write_text("")
        asked.query(CANDIDATE, NOW + 20, NOW + 30)


def test_a_target_without_a_log_is_an_error(ctx: MetricContext) -> None:
    with pytest.raises(StageError, match="keeps no access log on this machine; use another metric provider"):
        provider(replace(ctx, logs=None)).query(CANDIDATE, NOW, NOW + 10)


def test_a_large_log_is_searched_rather_than_read(ctx: MetricContext, log: Path) -> None:
    """40,000 requests of the past, 12 MB, and a window at their end."""
    add(log, *(line(NOW + i / 100) for i in range(40_000)))
    start = time.perf_counter()
    found = provider(ctx).query(CANDIDATE, NOW + 390, NOW + 395)
    searched = time.perf_counter() - start
    assert found.requests == 500
    start = time.perf_counter()
    assert provider(ctx).query(CANDIDATE, NOW, NOW + 2000).requests == 40_000
    assert searched < (time.perf_counter() - start) / 4


class TestConformance(MetricProviderConformance):
    """The kit's promises, on a log that a test writes."""

    name = "access-log"
    plugin = AccessLog

    @pytest.fixture
    def provider(self, ctx: MetricContext, log: Path) -> AccessLog:
        self.log = log
        self.clock = NOW
        return AccessLog(AccessLogOptions(), ctx, now=lambda: NOW + 1000)

    revision = CANDIDATE
    other = STABLE

    def happen(self, provider: Any, requests: int, errors: int) -> tuple[float, float]:
        since = self.clock
        add(self.log, *(line(since + 1 + i / 100, code=500 if i < errors else 200) for i in range(requests)))
        self.clock = since + 20
        return since, self.clock

    def take_away(self, provider: Any) -> None:
        self.log.unlink()
