from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shipctl.report import text


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, "0s"), (3.1e-4, "310us"), (2.1842e-5, "21.8us"), (0.00099951, "1ms"), (0.0042, "4.2ms"), (0.9999, "1.0s"),
        (3.2, "3.2s"), (59.94, "59.9s"), (59.96, "1m00s"), (125.0, "2m05s"), (3599.6, "1h00m"), (3720.0, "1h02m"),
        (200_000.0, "2d7h"), (-0.5, "-500ms"), (math.inf, "inf"), (math.nan, "nan"),
    ],
)  # fmt: skip
def test_duration(seconds: float, expected: str) -> None:
    assert text.duration(seconds) == expected


@given(st.floats(min_value=1e-6, max_value=1e7))
def test_duration_is_short_and_has_a_unit(seconds: float) -> None:
    shown = text.duration(seconds)
    assert len(shown) <= 7
    assert shown[-1] in "smh"
    assert "e" not in shown


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (99_400, "97.1 KiB"), (2**20 - 1, "1.0 MiB"), (2**31, "2.0 GiB"),
     (2**42, "4.0 TiB"), (math.nan, "nan")],
)  # fmt: skip
def test_size(count: float, expected: str) -> None:
    assert text.size(count) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1.0, "1"), (0.99, "0.9900"), (0.9999999, "1.0000"), (123.456, "123.46"), (95918.0, "95918"), (1e-5, "1e-05"),
     (3e7, "3e+07"), (-0.5, "-0.5000"), (math.inf, "inf")],
)  # fmt: skip
def test_number(value: float, expected: str) -> None:
    assert text.number(value) == expected


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("latency.p95", 0.0123, "12.3ms"), ("latency.p95@batch=8,threads=1", 2e-3, "2ms"), ("size", 2048.0, "2.0 KiB"),
        ("size.bytes", 10.0, "10 B"), ("peak_memory", 2**20, "1.0 MiB"), ("throughput", 1234.5, "1234.5/s"),
        ("error_rate", 0.01, "0.0100"), ("accuracy", 0.9967, "0.9967"), ("samples", 600.0, "600"),
    ],
)  # fmt: skip
def test_metric_gets_the_unit_of_its_name(name: str, value: float, expected: str) -> None:
    assert text.metric(name, value) == expected


def test_metrics_show_first_what_a_person_asks_for_first() -> None:
    values = {
        "samples": 600.0,
        "accuracy.low": 0.98,
        "accuracy": 0.9967,
        "latency.p95@batch=8": 1.0,
        "f1": 0.9,
    }
    assert text.metrics(values, limit=2) == "accuracy=0.9967  samples=600"
    assert text.metrics({}) == ""


def test_printable_leaves_text_newlines_and_tabs() -> None:
    assert text.printable("a\x1b[1;31mb\x1b[0m\tc\nd\x00\x07\x9b é") == "ab\tc\nd é"


def test_counts_and_plural() -> None:
    assert text.counts({"done": 3, "failed": 0, "cached": 1}) == "3 done, 1 cached"
    assert text.counts({}) == "nothing"
    assert (text.plural(1, "stage"), text.plural(2, "stage"), text.plural(2, "box", "boxes")) == (
        "1 stage", "2 stages", "2 boxes",
    )  # fmt: skip
    assert text.moment(None) == ""
