from __future__ import annotations

import re
from io import BytesIO, StringIO, TextIOWrapper

import pytest

from shipctl.stages import events
from shipctl.stages.base import Phase
from shipctl_plugins.observe.console import Console
from support_events import decided, ended, finished, inconclusive, logged, planned, play, started, stepped


class Terminal(StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    return Terminal()


def shown(*happened: events.Event, verbosity: int = 0) -> list[str]:
    """Return the lines that stay, without colour, as a stream that is no terminal gets them."""
    stream = StringIO()
    stream_utf8 = TextIOWrapper(BytesIO(), encoding="utf-8", write_through=True)
    display = Console(stream_utf8, verbosity=verbosity, color=False)
    play(display, *happened)
    display.close()
    stream_utf8.seek(0)
    stream.write(stream_utf8.read())
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def test_a_line_per_stage_with_what_it_came_to() -> None:
    assert shown(
        planned("onnx", "evaluate"),
        started("onnx"),
        decided("onnx", 0.99),
        decided("onnx", 0.98),
        finished("onnx", metrics={"accuracy": 0.9967}),
        decided("evaluate", 0.1),
        inconclusive("evaluate"),
        finished("evaluate", "rejected", "accuracy 0.1 is not >= 0.97"),
        ended(4, done=1, rejected=1),
    ) == [
        "light 1.0.0  run 20260301-120102-abcdef",
        "✓ onnx      done        3.2s  accuracy=0.9967  2 gates pass",
        "✗ evaluate  rejected    3.2s  accuracy 0.1 is not >= 0.97",
        "            gate accuracy fail  accuracy 0.1 is not >= 0.97",
        "            gate stability inconclusive  it did not settle",
        "✗ light: 1 done, 1 rejected in 22.1s",
    ]


def test_steps_of_a_release() -> None:
    assert shown(
        planned("release"), started("release"), stepped("release", Phase.PREFLIGHT, "golden samples agree"),
        finished("release", message="1.0.0 serves"), ended(done=1),
    )[1:] == [
        "  ↳ release  preflight  golden samples agree",
        "✓ release  done        3.2s  1.0.0 serves",
        "✓ light: 1 done in 22.1s",
    ]  # fmt: skip


def test_cached_stages_pass_quietly() -> None:
    assert (
        shown(planned("a"), decided("a", 0.99), finished("a", "cached"), ended(cached=1))[1] == "• a  cached"
    )


def test_verbose_shows_logs_and_gates_that_pass() -> None:
    lines = shown(
        planned("a"), started("a"), logged("a", "working"), logged("", "leftover"), decided("a", 0.99), finished("a"),
        verbosity=1,
    )  # fmt: skip
    assert lines[1:] == [
        "  a | working",
        "  shipctl | leftover",
        "✓ a  done        3.2s  1 gate passes",
        "     gate accuracy pass  accuracy 0.99 >= 0.97",
    ]


def test_quiet_shows_what_went_wrong_only() -> None:
    lines = shown(
        planned("a", "b"), started("a"), finished("a"), finished("b", "failed", "no disk"), ended(1, failed=1),
        verbosity=-1,
    )  # fmt: skip
    assert lines == ["✗ b  failed      3.2s  no disk"]


def test_a_terminal_without_unicode_gets_ascii() -> None:
    stream = TextIOWrapper(BytesIO(), encoding="ascii", write_through=True)
    display = Console(stream, color=False)
    play(display, planned("a"), finished("a"), stepped("a", Phase.DONE, "serves …"), ended(done=1))
    stream.seek(0)
    assert "+ a" in stream.read()


def test_markup_in_messages_is_text() -> None:
    assert shown(planned("a"), finished("a", "failed", "[bold]x[/bold] :smile: \x1b[31m"))[1].endswith(
        "[bold]x[/bold] :smile:"
    )


def test_what_runs_is_drawn_in_place_and_taken_away(terminal: Terminal) -> None:
    display = Console(terminal, color=True)
    play(display, planned("onnx", "int8"), started("onnx"), started("int8"), logged("onnx", "exporting …"))
    assert display._live is not None
    display._live.refresh()
    moving = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert re.search(r"[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏] onnx  running +0\.\ds  exporting …", moving)
    assert re.search(r"[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏] int8  running +0\.\ds  light", moving)
    assert "0/2 over, 2 running" in moving
    play(display, finished("onnx"), finished("int8"), ended(done=2))
    assert display._live is None
    assert "\x1b[32m✓" in terminal.getvalue()
    assert terminal.getvalue().rstrip().endswith("\x1b[2m in 22.1s\x1b[0m")


def test_more_running_stages_than_rows_are_counted(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINES", "5")
    names = [f"stage-{index}" for index in range(9)]
    display = Console(terminal)
    play(display, planned(*names), *map(started, names))
    assert display._live is not None
    display._live.refresh()
    display.close()
    assert "0/9 over, 9 running, 6 not shown" in terminal.getvalue()


def test_close_restores_the_terminal_after_a_broken_run(terminal: Terminal) -> None:
    display = Console(terminal)
    play(display, planned("a"), started("a"))
    assert "\x1b[?25l" in terminal.getvalue()
    display.close()
    display.close()
    assert terminal.getvalue().rstrip().endswith("\x1b[?25h") or "\x1b[?25h" in terminal.getvalue()


def test_no_colour_where_none_is_wanted(terminal: Terminal) -> None:
    display = Console(terminal, color=False)
    play(display, planned("a"), finished("a"), ended(done=1))
    assert not re.search(r"\x1b\[\d*3[0-7]m", terminal.getvalue())
