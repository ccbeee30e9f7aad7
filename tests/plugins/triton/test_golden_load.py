"""Golden samples as load: the rate, what errors do to it, and that it ends with whoever wanted it."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from shipctl_plugins._triton.golden_client import Question
from shipctl_plugins._triton.golden_load import GoldenLoad, Load

pytestmark = pytest.mark.slow


class Door:
    """Takes requests, which are binary, and answers with a status, or goes away."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, str, bytes]] = []
        self.status: int | None = 200
        self.delay = 0.0
        self.answered = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.asked.append((time.monotonic(), self.path, body))
                time.sleep(outer.delay)
                if select.select([self.connection], [], [], 0)[0]:
                    return  # who asked does not wait any more
                outer.answered += 1
                if outer.status is None:
                    self.close_connection = True
                    return
                self.send_response(outer.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True

    def since(self, start: float, end: float) -> int:
        return sum(start <= time < end for time, _, _ in self.asked)


@pytest.fixture
def door() -> Iterator[Door]:
    made = Door()
    with made.server:
        thread = Thread(target=made.server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield made
        made.server.shutdown()
        thread.join()


@pytest.fixture
def load(door: Door, tmp_path: Path) -> Load:
    samples = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.savez(tmp_path / "golden.npz", x=samples, y=samples)
    question = Question(
        addresses={"http": f"127.0.0.1:{door.server.server_address[1]}"},
        model="m",
        inputs=("x",),
        outputs=("y",),
        golden=tmp_path / "golden.npz",
        batch=8,
        timeout=5.0,
    )
    return Load(question=question, rate=50.0)


@pytest.fixture
def running(load: Load, door: Door) -> Iterator[GoldenLoad]:
    process = GoldenLoad(load)
    assert until(lambda: len(door.asked) > 0)
    yield process
    process.stop()


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def rate(door: Door, seconds: float = 2.0) -> float:
    start = time.monotonic()
    time.sleep(seconds)
    return door.since(start, start + seconds) / seconds


def test_samples_go_one_by_one_at_a_steady_rate(running: GoldenLoad, door: Door) -> None:
    assert rate(door) == pytest.approx(50, rel=0.2)
    assert {path for _, path, _ in door.asked} == {"/v2/models/m/infer"}
    sent = {body[-16:] for _, _, body in door.asked}
    assert sent == {np.arange(4 * row, 4 * row + 4, dtype=np.float32).tobytes() for row in range(3)}
    assert json.loads(door.asked[0][2][:-16])["inputs"][0]["shape"] == [1, 4]
    running.stop()
    assert not running.running
    assert running.problem is None
    assert rate(door, 0.5) == 0


def test_slow_answers_do_not_slow_it_down(running: GoldenLoad, door: Door) -> None:
    door.delay = 0.1
    assert rate(door) == pytest.approx(50, rel=0.2)


def test_what_was_asked_is_answered_when_it_is_stopped(running: GoldenLoad, door: Door) -> None:
    door.delay = 0.3
    until(lambda: len(door.asked) - door.answered > 5)
    running.stop()
    assert not running.running
    assert until(lambda: door.answered == len(door.asked), 1.0)


def test_errors_do_not_end_it(running: GoldenLoad, door: Door) -> None:
    for status in (500, None):
        door.status = status
        assert rate(door) == pytest.approx(50, rel=0.25)
    door.status = 200
    assert rate(door, 1.0) == pytest.approx(50, rel=0.3)
    assert running.running


def test_golden_samples_that_are_not_there_are_a_problem(load: Load) -> None:
    absent = load.question.model_copy(update={"golden": Path("absent.npz")})
    process = GoldenLoad(load.model_copy(update={"question": absent}))
    assert until(lambda: not process.running)
    assert str(process.problem).startswith("FileNotFoundError: ")
    assert process.problem == process.problem
    process.stop()


def test_it_ends_with_its_owner_however_that_ends(load: Load, door: Door, tmp_path: Path) -> None:
    (tmp_path / "load.json").write_text(load.model_dump_json())
    owner = f"""
import time
from pathlib import Path
from shipctl_plugins._triton.golden_load import GoldenLoad, Load
process = GoldenLoad(Load.model_validate_json(Path({str(tmp_path / "load.json")!r}).read_text()))
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", owner]) as process:
        assert until(lambda: len(door.asked) > 0)
        process.send_signal(signal.SIGKILL)
    time.sleep(0.5)
    assert rate(door, 1.0) == 0
