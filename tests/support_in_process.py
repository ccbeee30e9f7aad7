"""Commands in the test's own process: many only look, and a process of its own takes half a second to start."""

from __future__ import annotations

from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

from shipctl.testing.fixtures import Invocation


def in_process(folder: Path, *arguments: str) -> Invocation:
    """Run `shipctl …` in a folder."""
    from shipctl.cli.main import run

    stdout, stderr = StringIO(), StringIO()
    with chdir(folder), redirect_stdout(stdout), redirect_stderr(stderr):
        exit_code = run(arguments)
    return Invocation(exit_code, stdout.getvalue(), stderr.getvalue())
