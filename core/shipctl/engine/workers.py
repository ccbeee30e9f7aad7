"""Worker processes from shipctl's side: started, reused, watched, and ended with all their children."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from shipctl import errors
from shipctl.engine import supervisor
from shipctl.engine.calls import Answer, Call
from shipctl.engine.journal import Journal, ProcessRow
from shipctl.engine.processes import command_line, descendants, kill_tree
from shipctl.errors import PluginError, ShipctlError, StageError
from shipctl.processes import boot_id, is_alive, start_time
from shipctl.spec.units import Size

POLL = 0.2
"""Seconds between looks at a running stage's work directory."""
MIN_FREE = 64 << 20
"""Bytes that a stage may not take from the disk's last ones."""
_TAIL = 15
MAX_LINE = 8192
"""Bytes of what a stage prints that make a line; longer ones are broken."""
_HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver", "loky")
"""Python's own helper processes, which live as long as the worker does and do nothing by themselves."""


class Worker:
    """One worker behind its supervisor."""

    def __init__(self, python: str, journal: Journal, run: str, threads: int) -> None:
        self.python = python
        self.threads = threads
        self._journal = journal
        self._log: Callable[[str], None] = lambda _line: None
        self._tail: deque[str] = deque(maxlen=_TAIL)
        self._buffer = b""
        lifeline_read, self._lifeline = os.pipe()
        self._report, report_write = os.pipe()
        request_read, self._requests = os.pipe()
        self._answers, answer_write = os.pipe()
        given = (lifeline_read, report_write, request_read, answer_write)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        command = [
            sys.executable, "-I", "-S", supervisor.__file__, str(lifeline_read), str(report_write), "--",
            python, "-P", "-m", "shipctl.engine.worker", str(request_read), str(answer_write),
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=given,
            env=environment,
        )
        for descriptor in given:
            os.close(descriptor)
        pid = self._process.pid
        journal.add_process(ProcessRow(pid, start_time(pid) or "", boot_id(), run))
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def _read_log(self) -> None:
        stream = self._process.stdout
        if stream is None:
            return
        for raw in iter(lambda: stream.readline(MAX_LINE), b""):
            line = raw.decode(errors="replace").rstrip("\n")
            self._tail.append(line)
            self._log(line)

    def call(
        self,
        call: Call,
        *,
        log: Callable[[str], None],
        timeout: float | None,
        disk: int | None,
        stop: threading.Event,
    ) -> Answer:
        """Run a stage and return its answer.

        :raises StageError: if the worker died, ran longer than ``timeout`` seconds, wrote more than ``disk``
            bytes, or left processes behind; the worker is then over
        :raises RunInterruptedError: if ``stop`` was set meanwhile
        """
        self._log = log
        self._tail.clear()
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            os.write(self._requests, call.model_dump_json().encode() + b"\n")
        except BrokenPipeError:
            raise self._died() from None
        while True:
            wait = POLL if deadline is None else max(0.0, min(POLL, deadline - time.monotonic()))
            if select.select([self._answers], [], [], wait)[0]:
                piece = os.read(self._answers, 1 << 20)
                if not piece:
                    raise self._died()
                self._buffer += piece
                if self._buffer.endswith(b"\n"):
                    break
                continue
            if stop.is_set():
                self.close()
                raise errors.RunInterruptedError("interrupted; finished stages are kept")
            if deadline is not None and time.monotonic() >= deadline:
                self.close()
                raise StageError(f"ran longer than its timeout of {timeout:g}s and was stopped")
            problem = disk_problem(Path(call.workdir), disk)
            if problem:
                self.close()
                raise StageError(problem)
        line, self._buffer = self._buffer, b""
        answer = Answer.model_validate_json(line)
        problem = disk_problem(Path(call.workdir), disk) or self._left_behind(answer.pid)
        if problem:
            self.close()
            raise StageError(problem)
        return answer

    def _left_behind(self, worker: int) -> str | None:
        """Return what to say about processes that the stage started and did not wait for."""
        below = [(pid, command_line(pid)) for pid in descendants(self._process.pid) if pid != worker]
        left = [
            (pid, command)
            for pid, command in below
            if command and not any(helper in command for helper in _HELPERS)
        ]
        if not left:
            return None
        shown = ", ".join(f"{pid} ({command[:60]})" for pid, command in left[:3])
        what = (
            "1 process running, which was" if len(left) == 1 else f"{len(left)} processes running, which were"
        )
        return f"left {what} stopped: {shown}"

    def _died(self) -> StageError:
        status = self._wait_report()
        self.close()
        said = "; its last words: " + " | ".join(self._tail) if self._tail else ""
        if status is not None and os.WIFSIGNALED(status):
            name = signal.Signals(os.WTERMSIG(status)).name
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            return StageError(f"its worker process died of {name}{hint}{said}")
        code = os.WEXITSTATUS(status) if status is not None else "unknown"
        return StageError(f"its worker process ended with exit code {code}{said}")

    def _wait_report(self) -> int | None:
        if not select.select([self._report], [], [], 15)[0]:
            return None
        text = os.read(self._report, 64).decode().strip()
        return int(text) if text else None

    def close(self) -> None:
        """End the worker and everything that it started, and wait until they are gone."""
        if self._process.returncode is not None:
            return
        for descriptor in (self._lifeline, self._requests):
            with suppress(OSError):
                os.close(descriptor)
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            kill_tree(self._process.pid)
            self._process.wait()
        self._reader.join(5)
        for descriptor in (self._report, self._answers):
            with suppress(OSError):
                os.close(descriptor)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._journal.remove_process(self._process.pid)


class WorkerPool:
    """Idle workers by interpreter, so that a framework is imported once and not once per stage."""

    def __init__(self, journal: Journal, run: str, stop: threading.Event) -> None:
        """``stop`` interrupts what runs."""
        self._journal = journal
        self._run = run
        self._idle: list[Worker] = []
        self._lock = threading.Lock()
        self._stop = stop

    def run(
        self,
        call: Call,
        *,
        python: str,
        fresh: bool,
        log: Callable[[str], None],
        timeout: float | None,
        disk: int | None,
    ) -> Answer:
        """Run a call in an idle worker, or in a new one; ``fresh`` means one of its own.

        :raises ShipctlError: what the stage raised, or what became of its worker
        """
        worker = None if fresh else self._take(python, call.threads)
        worker = worker or Worker(python, self._journal, self._run, call.threads)
        try:
            answer = worker.call(call, log=log, timeout=timeout, disk=disk, stop=self._stop)
        except BaseException:  # interrupted, too: nobody knows what the worker is at
            worker.close()
            raise
        if answer.error is not None or fresh:
            worker.close()
        else:
            with self._lock:
                self._idle.append(worker)
        if answer.error is not None:
            for line in answer.trace.splitlines():
                log(line)
            raise error_class(answer.kind)(answer.error)
        return answer

    def _take(self, python: str, threads: int) -> Worker | None:
        with self._lock:
            for worker in self._idle:
                if worker.python == python and worker.threads == threads:
                    self._idle.remove(worker)
                    return worker
        return None

    def close(self) -> None:
        """End all idle workers."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.close()


def error_class(name: str) -> type[ShipctlError]:
    """Return an error class of shipctl by name; StageError for one that it does not have."""
    found = getattr(errors, name, StageError)
    return (
        found
        if isinstance(found, type)
        and issubclass(found, StageError | PluginError | errors.GateError | errors.UnavailableError)
        else StageError
    )


def end_leftovers(journal: Journal, say: Callable[[str], None]) -> None:
    """Kill processes of earlier runs that are still there, recognised by pid, start time and boot."""
    for row in journal.processes():
        if is_alive(row.pid, row.started, row.boot):
            say(f"stopping process {row.pid}, which run {row.run} left behind")
            kill_tree(row.pid)
        journal.remove_process(row.pid)


def disk_problem(workdir: Path, limit: int | None) -> str | None:
    """Return what is wrong with the space that a work directory takes, or None."""
    with suppress(OSError):
        space = os.statvfs(workdir)
        if space.f_bavail * space.f_frsize < MIN_FREE:
            return f"filled the disk: less than {Size(MIN_FREE)} is free; make room, or set `resources.disk`"
    if limit is None:
        return None
    used = 0
    for folder, _, names in os.walk(workdir):
        for name in names:
            with suppress(OSError):
                used += os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118  (polled while a stage runs)
    return (
        f"wrote {Size(used)} to its work directory, and `resources.disk` allows {Size(limit)}"
        if used > limit
        else None
    )
