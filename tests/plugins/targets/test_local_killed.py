"""Every act of the local target is killed between any two of its lines, and then asked for again."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from shipctl.release.target import Action, Candidate, Commit, Preflight, Prepare, ScaleDown, Shift
from shipctl.release.traffic import Traffic
from shipctl_plugins._triton import deployed, deployment, preflight, releases, replicas, server, single_server
from shipctl_plugins.targets.local import Local

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

Open = Callable[..., Local]
MakeCandidate = Callable[..., Candidate]

TRACED = {
    module.__file__ for module in (deployed, deployment, preflight, releases, replicas, server, single_server)
}
STRIDE = 37
"""Lines between two kills; prime, so that loops are left at each of their lines."""
SHORT_STRIDE = 11
"""The same where most is done in threads, whose lines do not count."""


def killed_at(line: int, act: Callable[[], object]) -> bool:
    """Do ``act`` in a process that is killed before its n-th line; False if it was done by then."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    seen = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal seen
        if frame.f_code.co_filename not in TRACED:
            return None
        seen += event == "line"
        if seen == line:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    code = 1
    try:
        sys.settrace(trace)
        act()
        code = 0
    finally:
        os._exit(code)


def again_and_again(act: Callable[[], object], check: Callable[[], None], stride: int = STRIDE) -> int:
    """Do ``act`` and kill it, later each time, until it is done; return how often it was killed."""
    kills = 0
    while killed_at(1 + kills * stride, act):
        kills += 1
        check()
    act()  # in this process, where it raises if it cannot be done
    check()
    return kills


def servers_of(folder: Path) -> int:
    """Count server processes whose command line names this folder; what was just killed may take a moment."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        count += str(folder / "fake-triton").encode() in command
    return count


def settled(folder: Path, expected: int) -> bool:
    deadline = time.monotonic() + 5.0
    while servers_of(folder) != expected:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def await_ready(local: Local, revision: str) -> None:
    deadline = time.monotonic() + 10.0
    while not local.observe().ready(revision):
        assert time.monotonic() < deadline, local.observe()
        time.sleep(0.02)


def test_killed_between_any_two_lines_it_goes_on_and_repeats_nothing(
    open_local: Open, candidate: MakeCandidate, tmp_path: Path
) -> None:
    one, two = candidate("one"), candidate("two", "1.1.0")
    first, second = one.revision, two.revision
    half = Traffic(weights={first: 50, second: 50}, fallback=first)
    allowed: list[Traffic] = [Traffic()]
    serving: list[str] = []

    def check() -> None:
        local = open_local(replicas=2)
        seen = local.observe()
        assert seen.traffic in allowed
        assert all(seen.ready(revision) for revision in serving)
        assert all(replicas.wanted == 2 for replicas in seen.replicas.values())
        assert servers_of(tmp_path) <= 6  # two revisions and their preflights, killed just now

    def do(action: Action, released: Candidate) -> int:
        return again_and_again(lambda: acting(open_local(replicas=2), action, released), check)

    def acting(local: Local, action: Action, released: Candidate) -> None:
        local.apply(action, released, local.acquire("test"))

    kills = {}
    kills["prepare"] = do(Prepare(), one)
    assert settled(tmp_path, 2)
    kills["preflight"] = do(Preflight(), one)
    assert settled(tmp_path, 2)
    await_ready(open_local(replicas=2), first)
    allowed = [Traffic(), Traffic.only(first)]
    kills["open"] = do(Shift(traffic=Traffic.only(first)), one)
    kills["commit"] = do(Commit(expected=None, revision=first), one)
    allowed, serving = [Traffic.only(first)], [first]
    do(Prepare(), two)
    do(Preflight(), two)
    assert settled(tmp_path, 4)
    await_ready(open_local(replicas=2), second)
    allowed = [Traffic.only(first), half]
    kills["shift"] = do(Shift(traffic=half), two)
    allowed, serving = [half, Traffic.only(second)], [first, second]
    do(Shift(traffic=Traffic.only(second)), two)
    do(Commit(expected=first, revision=second), two)
    allowed, serving = [Traffic.only(second)], [second]
    kills["scale down"] = do(ScaleDown(revision=first), two)
    assert settled(tmp_path, 2)
    seen = open_local(replicas=2).observe()
    assert (seen.stable, seen.previous, set(seen.replicas)) == (second, None, {second})
    known = open_local(replicas=2).deployment.releases.model("digits")
    assert known is not None
    assert [entry.number for entry in known.published] == [1, 2]
    assert min(kills.values()) > 3, kills

    allowed, serving = [Traffic.only(second), Traffic()], []
    kills["down"] = again_and_again(lambda: open_local(replicas=2).down(), check, SHORT_STRIDE)
    assert settled(tmp_path, 0)
    assert open_local(replicas=2).status() == []
    assert kills["down"] > 3
