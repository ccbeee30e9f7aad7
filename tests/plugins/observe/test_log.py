from __future__ import annotations

from io import StringIO

from shipctl.stages import events
from shipctl.stages.base import Phase
from shipctl_plugins.observe.log import PlainLog
from support_events import (
    NOON,
    decided,
    ended,
    finished,
    inconclusive,
    logged,
    planned,
    play,
    started,
    stepped,
)


def lines(*happened: events.Event, verbosity: int = 0) -> list[str]:
    stream = StringIO()
    display = PlainLog(stream, verbosity=verbosity, now=lambda: NOON + 3)
    play(display, *happened)
    display.close()
    return stream.getvalue().splitlines()


def test_a_line_per_thing_that_happened() -> None:
    assert lines(
        planned("onnx", "evaluate", "release"),
        started("onnx"),
        logged("onnx", "only with -v"),
        finished("onnx", metrics={"parity.max_abs_error": 1e-6, "parity.cosine": 0.99999}),
        finished("weights", "cached", metrics={"sparsity": 0.0}),
        decided("evaluate", 0.99),
        decided("evaluate", None),
        inconclusive("speed"),
        finished("evaluate", "rejected", "accuracy is missing"),
        finished("next", "blocked", "evaluate was rejected"),
        stepped("release", Phase.PREFLIGHT, "12 golden samples agree"),
        ended(4, done=1, cached=1, rejected=1, blocked=1),
    ) == [
        "12:01:02 onnx started",
        "12:01:05 onnx done in 3.2s  parity.cosine=1.0000  parity.max_abs_error=1e-06",
        "12:01:05 weights cached",
        "12:01:05 gate evaluate/accuracy error: accuracy is missing, >= 0.97 was asked for",
        "12:01:05 gate speed/stability inconclusive: it did not settle",
        "12:01:05 evaluate rejected in 3.2s: accuracy is missing  (1 gate passed)",
        "12:01:05 next blocked: evaluate was rejected",
        "12:01:06 release preflight on local: 12 golden samples agree",
        "12:01:24 run 20260301-120102-abcdef ended with exit code 4 in 22.1s: 1 done, 1 cached, 1 rejected, 1 blocked",
    ]


def test_verbose_adds_what_stages_log_and_every_gate() -> None:
    happened: list[events.Event] = [
        logged("onnx", "exporting"),
        logged("", "ended a leftover"),
        decided("evaluate", 0.99),
    ]
    assert lines(*happened, verbosity=1) == [
        "12:01:05 onnx | exporting",
        "12:01:05 shipctl | ended a leftover",
        "12:01:05 gate evaluate/accuracy pass: accuracy 0.99 >= 0.97",
    ]


def test_quiet_leaves_what_went_wrong() -> None:
    assert lines(
        started("a"), finished("a"), decided("a", 0.99), decided("b", 0.1), finished("b", "failed", "no"), ended(1),
        stepped("r", Phase.DONE, "serves"), verbosity=-1,
    ) == [
        "12:01:05 gate b/accuracy fail: accuracy 0.1 is not >= 0.97",
        "12:01:05 b failed in 3.2s: no",
    ]  # fmt: skip


def test_a_retry_says_which_attempt_it_is() -> None:
    assert lines(started("a", attempt=2)) == ["12:01:02 a started (attempt 2)"]


def test_lines_after_the_first_are_indented_and_control_characters_taken_out() -> None:
    assert lines(finished("a", "failed", "\x1b[31mred\x1b[0m\rend\nmore\x07")) == [
        "12:01:05 a failed in 3.2s: redend",
        "    more",
    ]
