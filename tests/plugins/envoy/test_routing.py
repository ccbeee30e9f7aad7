"""Where a real Envoy sends real requests."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from shipctl.release.traffic import Mirror, Segment, Sticky, Traffic

pytestmark = pytest.mark.slow

STABLE, CANDIDATE = "a" * 64, "c" * 64
ARMS = {"aaaaaaaaaaaa": "stable", "cccccccccccc": "candidate"}


def names(door: Any, count: int, headers: dict[str, str] | None = None) -> list[str]:
    """Ask so many times on one connection and return who answered."""
    connection = http.client.HTTPConnection(door.address, timeout=10)
    answered = []
    for _ in range(count):
        connection.request("POST", "/v2/models/m/infer", b"{}", headers or {})
        answered.append(connection.getresponse().read().decode().split('"')[3])
    connection.close()
    return answered


def test_weights_change_under_load_without_a_failed_request(door: Any, load: Callable[..., Any]) -> None:
    with load(door) as result:
        for weight in (5, 10, 25, 50, 100, 50, 0, 50):
            routed = door.weigh(weight)
            assert routed.traffic.weight(CANDIDATE) == weight
            time.sleep(0.3)
        # The candidate is promoted and the old one leaves, with requests under way.
        door.set(Traffic.only(CANDIDATE))
        stable, door.stable = door.stable, []
        door.set(Traffic.only(CANDIDATE))
        time.sleep(0.3)
        door.stable = stable
        door.weigh(20)
        time.sleep(0.3)
    assert result.failures == []
    assert result.total > 500
    assert set(result.answers) == {"stable-1", "stable-2", "candidate"}
    logged = door.entries()
    assert len(logged) == result.total
    assert not any(entry.failed for entry in logged)


def test_weights_are_kept_over_both_protocols(door: Any) -> None:
    door.weigh(30)
    begin = time.time()
    shares = Counter(name.partition("-")[0] for name in names(door, 1000))
    assert 240 < shares["candidate"] < 360
    with grpc.insecure_channel(door.proxy.endpoints["grpc"]) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        shares = Counter(bytes(call(b"x")).decode().partition("-")[0] for _ in range(1000))
    assert 240 < shares["candidate"] < 360
    hosts = {entry.host: ARMS[entry.arm] for entry in door.entries(begin)}
    one = door.candidate[0].backend
    assert {host for host, arm in hosts.items() if arm == "candidate"} == {one.http, one.grpc}


def test_a_door_without_weights_is_closed_but_for_its_preview(door: Any) -> None:
    door.set(Traffic(preview=CANDIDATE))
    assert door.ask() == (503, {"error": "the door is closed: no revision serves"})
    with pytest.raises(grpc.RpcError) as raised:
        door.ask_grpc()
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert raised.value.details() == "the door is closed: no revision serves"
    assert door.ask(headers={"x-shipctl-preview": "yes"})[1]["name"] == "candidate"
    assert [entry.arm for entry in door.entries()] == [None, None, CANDIDATE[:12]]


def test_the_preview_header_reaches_the_preview_and_goes_no_further(door: Any) -> None:
    door.weigh(0, preview=CANDIDATE)
    assert set(names(door, 20, {"X-Shipctl-Preview": "1"})) == {"candidate"}
    assert door.ask_grpc(metadata=[("x-shipctl-preview", "1")]) == "candidate"
    assert "x-shipctl-preview" not in door.candidate[0].headers
    assert "candidate" not in names(door, 50)


def test_clients_cannot_say_what_only_the_door_says(door: Any) -> None:
    begin = time.time()
    told = {"x-shipctl-arm": "cccccccccccc", "x-shipctl-segment": "beta"}
    door.ask(headers=told)
    door.ask_grpc(metadata=list(told.items()))
    assert [(entry.arm, entry.segment) for entry in door.entries(begin)] == [(STABLE[:12], None)] * 2
    got = next(one.headers for one in door.stable if one.seen)
    assert got["x-shipctl-arm"] == STABLE[:12]
    assert "x-shipctl-segment" not in got


def test_clients_give_no_orders_to_envoy(door: Any) -> None:
    order = {"x-envoy-upstream-rq-timeout-ms": "50", "x-forwarded-for": "127.0.0.1", "x-do": "slow=0.5"}
    assert door.ask(headers=order)[0] == 200
    assert door.ask_grpc(metadata=list(order.items())).startswith("stable")


def test_segments_reach_their_revision_by_exact_values_in_order(door: Any) -> None:
    door.weigh(
        0,
        segments=(
            Segment(name="staff: 100 %", header="X-Group", values=("staff", "test"), revision=CANDIDATE),
            Segment(name="nórth", header="x-region", values=("north",)),
        ),
    )
    begin = time.time()
    assert set(names(door, 10, {"x-group": "staff", "x-region": "north"})) == {"candidate"}
    assert set(names(door, 10, {"x-group": "test"})) == {"candidate"}
    assert door.ask_grpc(metadata=[("x-group", "test")]) == "candidate"
    assert "candidate" not in names(door, 10, {"x-group": "staffer"})
    assert "candidate" not in names(door, 10, {"x-region": "north"})
    counted = Counter((entry.segment, ARMS[entry.arm]) for entry in door.entries(begin))
    assert counted == {("staff: 100 %", "candidate"): 21, (None, "stable"): 10, ("nórth", "stable"): 10}


@pytest.mark.parametrize("kind", ["header", "cookie"])
def test_a_user_stays_with_one_revision_also_when_the_weight_goes_up(door: Any, kind: str) -> None:
    def who(user: int) -> str:
        headers = {"x-user": f"u{user}"} if kind == "header" else {"cookie": f"theme=dark; x-user=u{user}"}
        answered = {name.partition("-")[0] for name in names(door, 4, headers)}
        assert len(answered) == 1
        return answered.pop()

    before: set[int] = set()
    for weight, low, high in ((10, 20, 60), (30, 90, 150), (60, 200, 280)):
        door.weigh(weight, sticky=Sticky(kind=kind, name="x-user"))
        on_candidate = {user for user in range(400) if who(user) == "candidate"}
        assert low <= len(on_candidate) <= high
        assert before <= on_candidate
        before = on_candidate
    assert (
        len({name.partition("-")[0] for name in names(door, 60)}) == 2
    )  # who is not told apart follows the weights


def test_a_share_of_the_inference_is_copied_to_the_comparator(door: Any, echo: Callable[[str], Any]) -> None:
    comparator = echo("comparator")
    mirror = Mirror(percent=25, candidate=CANDIDATE)
    door.set(Traffic(weights={STABLE: 100}, fallback=STABLE, mirror=mirror), comparator=[comparator.backend])
    assert "comparator" not in names(door, 800)
    time.sleep(0.3)
    assert 140 <= comparator.seen <= 260
    begin = comparator.seen
    for _ in range(100):
        door.ask_grpc()
    time.sleep(0.3)
    assert 8 <= comparator.seen - begin <= 45
    begin = comparator.seen
    for _ in range(50):
        door.ask("/v2/models/m/config")
    time.sleep(0.2)
    assert comparator.seen == begin
    assert door.candidate[0].seen == 0


def test_half_a_percent_can_be_copied_and_a_dead_comparator_is_not_noticed(
    door: Any, echo: Callable[[str], Any]
) -> None:
    comparator = echo("comparator")
    traffic = Traffic(weights={STABLE: 100}, fallback=STABLE, mirror=Mirror(percent=0.5, candidate=CANDIDATE))
    door.set(traffic, comparator=[comparator.backend])
    names(door, 2000)
    time.sleep(0.3)
    assert 1 <= comparator.seen <= 30
    comparator.kill()
    always = traffic.model_copy(update={"mirror": Mirror(percent=100, candidate=CANDIDATE)})
    door.set(always, comparator=[comparator.backend])
    assert set(names(door, 100)) == {"stable-1", "stable-2"}


def test_the_servers_are_not_controlled_through_the_door(door: Any) -> None:
    message = "the door lets through inference, health, metadata, configuration and statistics only"
    for path in (
        "/v2/repository/index",
        "/v2/repository/models/m/unload",
        "/v2/logging",
        "/v2/trace/setting",
        "/v2/models/m/trace/setting",
        "/v2/systemsharedmemory/region/x/register",
        "/v2/models/../repository/index",
        "/v2//repository/index",
        "/metrics",
        "/",
    ):
        assert (path, *door.ask(path)) == (path, 404, {"error": message})
    assert door.ask("/v2/models/m%2f..%2f..%2frepository/index")[0] == 400
    for method in ("RepositoryModelUnload", "LogSettings", "TraceSetting", "SystemSharedMemoryRegister"):
        with pytest.raises(grpc.RpcError) as raised:
            door.ask_grpc(f"/inference.GRPCInferenceService/{method}")
        assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.UNIMPLEMENTED, message)
    assert not any(one.seen for one in (*door.stable, *door.candidate))


def test_what_clients_need_passes(door: Any) -> None:
    for path in (
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/stats",
        "/v2/models/m",
        "/v2/models/m/versions/3/ready",
        "/v2/models/m/config",
        "/v2/models/m/versions/1/stats",
        "/v2/models/m/versions/12/infer?x=1",
        "/v2/models/m/generate_stream",
    ):
        assert (path, door.ask(path)[0]) == (path, 200)


def test_requests_under_way_end_where_they_began(door: Any) -> None:
    answers: list[Any] = []

    def ask_slowly() -> None:
        answers.append(door.ask(headers={"x-do": "slow=2"})[1]["name"])

    def ask_slowly_grpc() -> None:
        answers.append(door.ask_grpc(metadata=[("x-do", "slow=2")]))

    door.set(Traffic.only(CANDIDATE))
    threads = [threading.Thread(target=ask) for ask in (ask_slowly, ask_slowly_grpc)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    candidate, door.candidate = door.candidate, []
    door.set(Traffic.only(STABLE))  # the candidate is not even known any more
    assert door.ask()[1]["name"] != "candidate"
    for thread in threads:
        thread.join()
    assert answers == ["candidate", "candidate"]
    door.candidate = candidate


def test_a_large_request_passes_and_is_asked_again_where_its_server_has_died(door: Any) -> None:
    body = bytes(8 * 1024 * 1024)
    door.set(Traffic.only(CANDIDATE))
    assert door.ask(body=body) == (200, {"name": "candidate", "bytes": len(body)})
    door.weigh(100)
    door.candidate[0].kill()
    status, answer = door.ask(body=body)
    assert (status, answer["bytes"]) == (200, len(body))
    assert answer["name"].startswith("stable")
