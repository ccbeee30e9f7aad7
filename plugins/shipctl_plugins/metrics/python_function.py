"""Metric provider `python`: a function of the project's own.

It is called with `pipeline`, `model`, `revision`, `version`, `since` and `until` as keyword arguments and returns a
dictionary as the answer of a webhook, or one number: `{"requests": 120, "errors": 1, "durations": [...]}` or `0.93`.

Each call runs in a process of its own, which is killed when it takes too long: what the function imports never reaches
shipctl's process, and one that hangs holds nobody up. So it remembers nothing from one call to the next.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from shipctl.errors import SpecError, StageError
from shipctl.release.metrics import MetricContext, MetricOptions, MetricProvider, Samples
from shipctl.spec.fields import fault
from shipctl.spec.problems import shorten
from shipctl.spec.units import Duration
from shipctl.stages.context import CheckContext
from shipctl_plugins._metrics import function_agent
from shipctl_plugins._metrics.answers import question, samples
from shipctl_plugins._metrics.options import Timeout
from shipctl_plugins._metrics.web import MAX_BYTES, excerpt

_CHUNK = 1 << 16
_TAIL = 300
"""Characters of what a process wrote before it died that a message shows."""
_CALLABLE = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")


def _function(value: str) -> str:
    where, separator, name = value.rpartition(":")
    in_file = where.endswith(".py")
    if not separator or not _CALLABLE.fullmatch(name) or not (in_file or _CALLABLE.fullmatch(where)):
        raise fault(
            f"{shorten(value)} names no function; write metrics/quality.py:measure or package.module:measure"
        )
    return value


class PythonOptions(MetricOptions):
    """Which function, and for how long."""

    function: Annotated[str, AfterValidator(_function)] = Field(
        description="`file.py:function`, relative to the spec's folder, or `module:function`."
    )
    timeout: Timeout = Field(
        default=Duration("10s"), description="How long a call may take, imports included; at most 60s."
    )


class PythonFunction(MetricProvider):
    """Ask a function of the project's own."""

    api_version: ClassVar[int] = 1
    options_model: ClassVar[type[MetricOptions]] = PythonOptions
    options: PythonOptions

    def __init__(self, options: PythonOptions, ctx: MetricContext) -> None:
        super().__init__(options, ctx)
        self._call = _Call(options.function, ctx.project, float(options.timeout))

    @classmethod
    def check(cls, options: PythonOptions, ctx: CheckContext) -> None:
        """Import the function, in a process of its own, and do not call it.

        :raises SpecError: if there is no such function
        """
        try:
            _Call(options.function, ctx.base, float(options.timeout)).answer(None)
        except StageError as exc:
            raise SpecError(str(exc)) from exc

    def query(self, revision: str, since: float, until: float) -> Samples:
        """Call the function for one window.

        :raises StageError: if it raises, takes too long, or returns something else
        """
        asked = question(self.ctx, revision, since, until)
        said = self._call.answer(asked)
        who = f"function {self.options.function}"
        if isinstance(said, int | float) and not isinstance(said, bool):
            said = {"requests": 0, "errors": 0, "value": float(said)}
        return samples(json.dumps(said), asked, who)


@dataclass(frozen=True)
class _Call:
    function: str
    folder: Path
    timeout: float

    def answer(self, asked: dict[str, Any] | None) -> Any:
        """Return what the function returns, or None where it is only imported (``asked`` is None)."""
        where, _, name = self.function.rpartition(":")
        file = (self.folder / Path(where).expanduser()).absolute() if where.endswith(".py") else None
        if file is not None and not file.is_file():
            raise StageError(f"function {self.function}: there is no file {file}; correct `function`")
        call = {
            "folder": str(self.folder.absolute() if file is None else file.parent),
            "file": None if file is None else str(file),
            "module": where,
            "function": name,
            "asked": asked,
        }
        said = self._run(json.dumps(call).encode() + b"\n")
        if "error" in said:
            raise StageError(f"function {self.function} failed: {said['error']}{_place(said['trace'])}")
        return said["said"]

    def _run(self, line: bytes) -> dict[str, Any]:
        deadline = time.monotonic() + self.timeout
        with tempfile.TemporaryFile() as printed:
            process = subprocess.Popen(
                [sys.executable, "-P", function_agent.__file__],
                stdin=subprocess.PIPE,  # stays open for as long as the process may live
                stdout=subprocess.PIPE,
                stderr=printed,
                cwd=self.folder,
                start_new_session=True,
            )
            try:
                assert process.stdin is not None  # noqa: S101  (a pipe was asked for)
                with suppress(BrokenPipeError):  # it died: there will be no answer
                    process.stdin.write(line)
                    process.stdin.flush()
                output = self._answer_of(process, deadline)
            finally:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                _close(process)
            try:
                return dict(json.loads(output))
            except ValueError:
                printed.seek(max(0, printed.seek(0, os.SEEK_END) - _TAIL))
                tail = excerpt(printed.read().decode(errors="replace"), _TAIL) or "nothing"
            message = f"the process of function {self.function} ended without an answer; it wrote {tail}"
            raise StageError(message)

    def _answer_of(self, process: subprocess.Popen[bytes], deadline: float) -> bytes:
        """Return the line that the process wrote, or what there is of it when it ended."""
        assert process.stdout is not None  # noqa: S101  (a pipe was asked for)
        pipe = process.stdout.fileno()
        received = bytearray()
        while not received.endswith(b"\n") and len(received) <= MAX_BYTES:
            if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                message = f"function {self.function} took more than {self.timeout:g} s"
                message += "; make it quicker, or raise `timeout`"
                raise StageError(message)
            piece = os.read(pipe, _CHUNK)
            if not piece:
                break
            received += piece
        return bytes(received)


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


def _place(trace: str) -> str:
    """Return the last line of the user's own code in a traceback, for a message."""
    places = re.findall(r'File "([^"]+)", line (\d+)', trace)
    own = [
        f"{Path(file).name}:{line}" for file, line in places if Path(file) != Path(function_agent.__file__)
    ]
    return f" ({own[-1]})" if own else ""
