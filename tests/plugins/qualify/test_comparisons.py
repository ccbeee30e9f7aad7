"""The small language of objectives and constraints."""

from __future__ import annotations

import pytest

from shipctl.errors import StageError
from shipctl.stages.context import Objectives
from shipctl_plugins.qualify._comparisons import parse_constraint, parse_objective, show

NO_OBJECTIVE = " is no objective; write the name of a metric, such as latency.p95 or maximize:accuracy"


@pytest.mark.parametrize(
    ("text", "metric", "direction"),
    [
        ("latency.p95", "latency.p95", "minimize"),
        ("latency.p95@batch=8,threads=1", "latency.p95@batch=8,threads=1", "minimize"),
        ("size", "size", "minimize"),
        ("accuracy", "accuracy", "maximize"),
        ("accuracy_drop", "accuracy_drop", "minimize"),
        ("throughput@batch=8,threads=1", "throughput@batch=8,threads=1", "maximize"),
        ("maximize: weights.sparsity", "weights.sparsity", "maximize"),
        ("minimize:accuracy", "accuracy", "minimize"),
    ],
)
def test_objective_is_read(text: str, metric: str, direction: str) -> None:
    objective = parse_objective(text)
    assert (objective.metric, objective.direction) == (metric, direction)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "nodes.after",
            "'nodes.after' may be good small or large; write minimize:nodes.after or maximize:nodes.after",
        ),
        ("latency p95", f"'latency p95'{NO_OBJECTIVE}"),
        ("", f"''{NO_OBJECTIVE}"),
    ],
)
def test_objective_that_cannot_be_read_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match="; write ") as caught:
        parse_objective(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "metric", "comparison", "bound"),
    [
        ("size <= 500KB", "size", "<=", 500_000),
        ("size<=1MiB", "size", "<=", 2**20),
        ("latency.p95 < 1.5ms", "latency.p95", "<", 0.0015),
        ("latency.p95@batch=8,threads=1 <= 2ms", "latency.p95@batch=8,threads=1", "<=", 0.002),
        ("accuracy >= 97%", "accuracy", ">=", 0.97),
        ("throughput > 200/s", "throughput", ">", 200),
        ("weights.nan == 0", "weights.nan", "==", 0),
        ("accuracy_drop <= -1e-3", "accuracy_drop", "<=", -0.001),
        ("accuracy_drop <= budget.accuracy_drop", "accuracy_drop", "<=", 0.005),
        ("latency.p95 <= slo.latency.p95", "latency.p95", "<=", 0.1),
    ],
)
def test_constraint_is_read(text: str, metric: str, comparison: str, bound: float) -> None:
    constraint = parse_constraint(text)
    objectives = Objectives(slo={"latency.p95": 0.1}, budget={"accuracy_drop": 0.005})
    assert (constraint.metric, constraint.comparison) == (metric, comparison)
    assert constraint.bound(objectives) == pytest.approx(bound)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "size",
        "size <= ",
        "<= 5",
        "size = 5",
        "1 <= size <= 5",
        "size <= 5 KB",
        "size => 5",
        "size <= 5; rm",
    ],
)
def test_text_that_is_no_comparison_is_refused(text: str) -> None:
    with pytest.raises(
        ValueError, match="is no comparison; write a metric, one of <= < >= > ==, and a bound, "
    ):
        parse_constraint(text)


@pytest.mark.parametrize(
    "text", ["size <= 5XB", "size <= budget", "size <= budget.", "size <= nan", "size <= __import__('os')"]
)
def test_bound_that_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(
        ValueError, match="is no bound; write a number, a quantity such as 100ms, 500KB, 1% or 200/s, "
    ):
        parse_constraint(text)


def test_reference_that_the_spec_lacks_is_named() -> None:
    with pytest.raises(StageError) as caught:
        parse_constraint("size <= budget.size").bound(Objectives(budget={"rollback": 1, "accuracy_drop": 2}))
    assert (
        str(caught.value)
        == "'size <= budget.size': the spec's budget has no 'size', only accuracy_drop, rollback"
    )


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("latency.p95", 0.0000223, "22.3 us"),
        ("latency.p50", 0.1, "100 ms"),
        ("latency.p50", 2.5, "2.5 s"),
        ("accuracy", 0.97, "0.97"),
    ],
)
def test_values_are_shown_with_units(metric: str, value: float, text: str) -> None:
    assert show(metric, value) == text
