"""Golden samples as load: a process that sends them through a door at a steady rate, and ends when its owner does.

``python -m shipctl_plugins._triton.golden_load`` reads a :class:`Load` as one line of JSON from its standard input and
goes on until that is closed, which it is when the owner dies in whatever way.
"""

from __future__ import annotations

import http.client
import itertools
import math
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from pydantic import Field

from shipctl.records import Record
from shipctl_plugins._triton.golden_client import Question, request_body

PER_THREAD = 5.0
"""Requests per second that one connection is asked for. It sends the next one when the last was answered, so that the
rate is kept for as long as answers take less than a fifth of a second."""
MOST_THREADS = 64
MOST_SAMPLES = 256
_LAST_S = 2.0
"""Seconds that the last requests have for their answers."""
_STOP_S = 5.0


class Load(Record):
    """What is sent, and how often."""

    question: Question = Field(description="What to ask, and of whom.")
    rate: float = Field(gt=0, description="Requests per second.")


class GoldenLoad:
    """The process, as its owner sees it."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self._problem: str | None = None
        self._stopped = False
        command = [sys.executable, "-P", "-m", "shipctl_plugins._triton.golden_load"]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        with suppress(BrokenPipeError):
            assert self._process.stdin is not None  # noqa: S101  (a pipe was asked for)
            self._process.stdin.write(load.model_dump_json().encode() + b"\n")
            self._process.stdin.flush()

    @property
    def running(self) -> bool:
        """Whether it goes on."""
        return self._process.poll() is None

    @property
    def problem(self) -> str | None:
        """Why it ended by itself, such as golden samples that cannot be read; None while it goes on."""
        if self.running or self._stopped:
            return None
        if self._problem is None:
            assert self._process.stderr is not None  # noqa: S101  (a pipe was asked for)
            said = self._process.stderr.read().decode(errors="replace").strip().splitlines()
            self._problem = said[-1] if said else f"it ended with {self._process.returncode}"
        return self._problem

    def stop(self) -> None:
        """End it."""
        self._stopped = self._stopped or self.running
        try:
            self._process.communicate(timeout=_STOP_S)  # closes its standard input
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def bodies(question: Question) -> list[tuple[bytes, int]]:
    """Return the requests, one sample each (or one batch, where the model takes no other)."""
    import numpy as np

    with np.load(question.golden, allow_pickle=False) as stored:
        arrays: dict[str, Any] = {name: stored[name] for name in question.inputs}
    step = question.batch if question.fixed_batch else 1
    samples = len(arrays[question.inputs[0]])
    starts = range(0, samples - step + 1, step)
    return [request_body(question, arrays, start) for start in itertools.islice(starts, MOST_SAMPLES)]


def send(
    question: Question,
    requests: list[tuple[bytes, int]],
    interval: float,
    offset: float,
    stop: threading.Event,
) -> None:
    """Send one request after another, one per ``interval`` seconds, until ``stop`` is set.

    One that is late is not made up for, and none that was sent is broken off.
    """
    host, _, port = question.addresses["http"].rpartition(":")
    path = f"/v2/models/{quote(question.model, safe='')}/infer"
    connection = http.client.HTTPConnection(host, int(port), timeout=question.timeout)
    due = time.monotonic() + offset
    for body, header in itertools.cycle(requests):
        if stop.wait(max(0.0, due - time.monotonic())):
            return
        due = max(due + interval, time.monotonic())
        headers = {"Inference-Header-Content-Length": str(header), "Content-Type": "application/octet-stream"}
        try:
            connection.request("POST", path, body, headers)
            connection.getresponse().read()
        except (OSError, ValueError, http.client.HTTPException):
            connection.close()  # whoever watches the release sees what failed, in the door's log


def main() -> None:
    """Send until standard input is closed."""
    load = Load.model_validate_json(sys.stdin.buffer.readline())
    requests = bodies(load.question)
    threads = min(MOST_THREADS, math.ceil(load.rate / PER_THREAD))
    interval = threads / load.rate
    stop = threading.Event()
    senders = []
    for number in range(threads):
        arguments = (load.question, requests, interval, number / load.rate, stop)
        senders.append(threading.Thread(target=send, args=arguments, daemon=True))
        senders[-1].start()
    sys.stdin.buffer.read()
    stop.set()
    until = time.monotonic() + _LAST_S
    for sender in senders:
        sender.join(max(0.0, until - time.monotonic()))
    os._exit(0)


if __name__ == "__main__":
    main()
