"""The processes below another one, as they are shown."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from shipctl.engine.processes import command_line

NAMELESS = """
import os, sys, time
fields = open("/proc/self/stat", "rb").read().rpartition(b")")[2].split()
start, end = int(fields[45]), int(fields[46])
with open("/proc/self/mem", "r+b", buffering=0) as memory:
    memory.seek(start)
    memory.write(bytes(end - start))
print(flush=True)
time.sleep(float(sys.argv[1]))
os.execvp("sleep", ["sleep", "61"])
"""
"""Takes the own command away, as execve(2) does for a moment, and is replaced after a while."""


@contextmanager
def nameless(seconds: float) -> Iterator[int]:
    command = [sys.executable, "-S", "-c", NAMELESS, str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


@pytest.mark.parametrize(("seconds", "shown"), [(0.2, "sleep 61"), (60, "no command")])
def test_a_process_that_is_being_replaced_is_shown_as_what_it_becomes(seconds: float, shown: str) -> None:
    with nameless(seconds) as pid:
        found = command_line(pid)
    assert found == shown


def test_a_process_that_has_ended_has_no_command() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert command_line(process.pid) == ""  # a zombie
        process.wait()
        assert command_line(process.pid) == ""
