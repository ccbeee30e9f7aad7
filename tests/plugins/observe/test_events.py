from __future__ import annotations

import json
from io import StringIO

from shipctl.stages import events
from shipctl.stages.base import Phase
from shipctl_plugins.observe.events import EventLog
from support_events import decided, ended, finished, logged, planned, play, started, stepped

ALL = (
    planned("a"),
    started("a"),
    logged("a", "line one\nline two"),
    decided("a", float("nan")),
    stepped("a", Phase.DONE, "serves"),
    finished("a", metrics={"x": float("inf")}),
    ended(done=1),
)


def test_every_event_is_one_line_of_json_that_reads_back() -> None:
    stream = StringIO()
    display = EventLog(stream)
    play(display, *ALL)
    display.close()
    assert not stream.closed
    lines = stream.getvalue().splitlines()
    assert [json.loads(line)["event"] for line in lines] == [event.event for event in ALL]
    for line, event in zip(lines, ALL, strict=True):
        assert type(event).model_validate_json(line).model_dump_json() == line


def test_every_kind_of_event_is_written() -> None:
    assert {type(event) for event in ALL} == set(events.Event.__args__)


def test_lines_are_flushed_at_once() -> None:
    class Stream(StringIO):
        flushed = 0

        def flush(self) -> None:
            self.flushed += 1

    stream = Stream()
    play(EventLog(stream, verbosity=-1), *ALL)
    assert stream.flushed == len(ALL)
