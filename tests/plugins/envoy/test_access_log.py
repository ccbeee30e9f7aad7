"""What the lines of a door's access log mean."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shipctl_plugins._envoy.access_log import Entry, segment_label

LINE: dict[str, Any] = {
    "start": "1700000000.250000",
    "duration_us": 1500,
    "arm": "aaaaaaaaaaaa",
    "cluster": "http-aaaaaaaaaaaa",
    "host": "127.0.0.1:8000",
    "hosts_attempted": "127.0.0.1:8100,127.0.0.1:8000",
    "attempts": 2,
    "code": 200,
    "grpc_status": None,
    "flags": "-",
    "path": "/v2/models/m/infer",
    "segment": None,
    "protocol": "http",
}


def entry(**changes: Any) -> Entry:
    parsed = Entry.parse(json.dumps({**LINE, **changes}))
    assert parsed is not None
    return parsed


def test_a_line_is_read() -> None:
    assert entry() == Entry(
        start=1700000000.25,
        duration=0.0015,
        arm="aaaaaaaaaaaa",
        host="127.0.0.1:8000",
        hosts_attempted=("127.0.0.1:8100", "127.0.0.1:8000"),
        attempts=2,
        code=200,
        grpc_status=None,
        flags="",
        protocol="http",
        path="/v2/models/m/infer",
        segment=None,
    )
    assert entry().end == pytest.approx(1700000000.2515)


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({}, False),
        ({"code": 404}, False),
        ({"code": 500}, True),
        ({"code": 503, "flags": "UH"}, True),
        ({"code": 0, "flags": "DC"}, False),
        ({"code": 0, "flags": "UC"}, True),
        ({"protocol": "grpc", "grpc_status": 0}, False),
        ({"protocol": "grpc", "grpc_status": 3}, False),
        ({"protocol": "grpc", "grpc_status": 13}, True),
        ({"protocol": "grpc", "grpc_status": 14}, True),
        ({"protocol": "grpc", "grpc_status": None}, True),
    ],
)
def test_what_failed_by_no_fault_of_the_asker(changes: dict[str, Any], *, failed: bool) -> None:
    assert entry(**changes).failed is failed


def test_a_request_that_nobody_took_is_its_arms_all_the_same() -> None:
    assert entry(arm=None, cluster="grpc-cccccccccccc-first", host=None).arm == "cccccccccccc"
    assert entry(arm=None, cluster="http-aaaaaaaaaaaa").arm == "aaaaaaaaaaaa"
    assert entry(arm=None, cluster=None).arm is None


@pytest.mark.parametrize(
    ("path", "inference"),
    [
        ("/v2/models/m/infer", True),
        ("/v2/models/m/versions/3/generate_stream", True),
        ("/inference.GRPCInferenceService/ModelInfer", True),
        ("/inference.GRPCInferenceService/ModelStreamInfer", True),
        ("/v2/models/m/ready", False),
        ("/v2/health/ready", False),
        ("/inference.GRPCInferenceService/ModelReady", False),
    ],
)
def test_what_asks_a_model(path: str, *, inference: bool) -> None:
    assert entry(path=path).inference is inference


@pytest.mark.parametrize("name", ["staff", "50 % of them", "nórth / 北", 'a"b\\c', "line\nbreak"])
def test_segments_have_the_names_that_they_were_given(name: str) -> None:
    label = segment_label(name)
    assert label.isascii()
    assert label.isprintable()
    assert entry(segment=label).segment == name


@pytest.mark.parametrize("line", ["", "{", '{"start": "x"}', "[]", '{"start": null, "duration_us": 1}'])
def test_what_is_not_whole_is_left_out(line: str) -> None:
    assert Entry.parse(line) is None
