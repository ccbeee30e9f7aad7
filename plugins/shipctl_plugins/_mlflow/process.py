"""The process that speaks to an MLflow server for this one: started, asked, killed when it hangs."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from shipctl.errors import StoreError
from shipctl_plugins._mlflow.login import Login

RETRIES = 2
"""Times that a request which is safe to repeat is repeated."""
_START_S = 60.0
"""How long importing MLflow may take, on a machine that has other things to do."""
_AGENT = Path(__file__).with_name("agent.py")


class TransientMlflowError(StoreError):
    """The server could not be reached, or an answer was lost: trying again may help."""


class AgentProcess:
    """The agent's process: started by the first call, ended with this object or with shipctl, or when a call hangs."""

    def __init__(self, login: Login) -> None:
        self._login = login
        self._lock = threading.Lock()
        self._running: tuple[subprocess.Popen[bytes], weakref.finalize[..., Any]] | None = None

    def __call__(self, call: str, arguments: Mapping[str, Any], within: float | None) -> dict[str, Any]:
        """Make one call.

        :raises TransientMlflowError: if no answer comes in time; the process is killed then
        """
        with self._lock:
            first = self._running is None
            process = self._start() if self._running is None else self._running[0]
            request = json.dumps({"call": call, "arguments": dict(arguments)}).encode() + b"\n"
            deadline = None if within is None else time.monotonic() + within + (_START_S if first else 0.0)
            try:
                assert process.stdin is not None  # noqa: S101  (a pipe was asked for)
                process.stdin.write(request)
                process.stdin.flush()
                line = _read_line(process, deadline)
            except (
                BaseException
            ) as exc:  # interrupted, too: its answer would be taken for that to the next question
                self.close()
                if isinstance(exc, TimeoutError):
                    message = (
                        f"MLflow at {self._login.shown} did not answer within {within:.0f} s; run again later"
                    )
                    raise TransientMlflowError(message) from None
                if isinstance(exc, BrokenPipeError | EOFError):
                    message = (
                        f"the process that speaks to MLflow at {self._login.shown} ended unexpectedly; run again, "
                        "and if it does again, see whether `python -c 'import mlflow'` works"
                    )
                    raise TransientMlflowError(message) from None
                raise
            return dict(json.loads(line))

    def _start(self) -> subprocess.Popen[bytes]:
        folder = tempfile.mkdtemp(prefix="shipctl-mlflow-")
        process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", str(_AGENT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,  # MLflow may make an `mlruns` where it stands
            start_new_session=True,  # Ctrl-C is shipctl's to act on; the process ends with its stdin
        )
        self._running = process, weakref.finalize(self, _end, process, folder)
        setup = {"uri": self._login.uri, "retries": RETRIES, "environ": self._login.environ()}
        assert process.stdin is not None  # noqa: S101  (a pipe was asked for)
        with suppress(BrokenPipeError):  # the request that follows says so
            process.stdin.write(json.dumps(setup).encode() + b"\n")
            process.stdin.flush()
        return process

    def close(self) -> None:
        """End the process; the next call starts another one."""
        if self._running is not None:
            _, end = self._running
            self._running = None
            end()


def _end(process: subprocess.Popen[bytes], folder: str) -> None:
    process.kill()  # it has answered all that it was asked, and takes seconds to end by itself
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    shutil.rmtree(folder, ignore_errors=True)


def _read_line(process: subprocess.Popen[bytes], deadline: float | None) -> bytes:
    assert process.stdout is not None  # noqa: S101  (a pipe was asked for)
    pipe = process.stdout.fileno()
    received = bytearray()
    while not received.endswith(b"\n"):
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([pipe], [], [], left)[0]:
            raise TimeoutError
        piece = os.read(pipe, 65536)
        if not piece:
            raise EOFError
        received += piece
    return bytes(received)


@lru_cache(maxsize=4)
def agent_of(login: Login, _environ: tuple[tuple[str, str], ...]) -> AgentProcess:
    """Return the process that speaks to a server for all of this one: starting one costs more than all its calls."""
    return AgentProcess(login)
