"""Nobody holds the lease any more: traffic goes back to the stable revision, and who wakes up is refused."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shipctl.errors import LockedError, StageError
from shipctl.release.target import StaleEpochError
from shipctl.release.traffic import Mirror, Segment, Traffic
from shipctl_plugins._triton import launcher

pytestmark = pytest.mark.slow

STABLE, CANDIDATE = "a" * 64, "c" * 64
WITHIN = 2.0
"""The watchdog's time, on top of the lease's."""


def until_stable(door: Any, seconds: float) -> float:
    begin = time.monotonic()
    while door.proxy.get().traffic != Traffic.only(STABLE):
        assert time.monotonic() - begin < seconds
        time.sleep(0.02)
    return time.monotonic() - begin


def test_a_lease_that_runs_out_ends_on_stable(door: Any, load: Callable[..., Any]) -> None:
    door.weigh(50)
    with load(door) as result:
        assert door.proxy.lease.acquire("test", 1.0) == door.epoch
        until_stable(door, 1.0 + WITHIN)
        result.answers.clear()
        time.sleep(0.5)
    assert result.failures == []
    assert set(result.answers) == {"stable-1", "stable-2"}
    lease = door.proxy.lease.read()
    assert (lease.epoch, lease.holder) == (door.epoch + 1, "watchdog")
    message = (
        "watchdog has taken the target over (epoch 2, this is 1): nothing was done; look with `shipctl status` "
        "and apply again"
    )
    with pytest.raises(StaleEpochError) as raised:
        door.weigh(10)
    assert str(raised.value) == message
    assert door.proxy.get().traffic == Traffic.only(STABLE)
    door.epoch = door.proxy.lease.acquire("test", 60)
    assert door.epoch == 3
    door.weigh(10)
    time.sleep(0.5)
    assert door.proxy.get().traffic.weight(CANDIDATE) == 10


def test_a_lease_that_is_renewed_is_left_alone(door: Any) -> None:
    door.weigh(50)
    for _ in range(8):
        assert door.proxy.lease.acquire("test", 1.0) == door.epoch
        time.sleep(0.3)
    assert door.proxy.get().traffic.weight(CANDIDATE) == 50


def test_settled_traffic_needs_no_lease(door: Any) -> None:
    door.set(Traffic(weights={STABLE: 100}, fallback=STABLE, preview=CANDIDATE))
    door.proxy.lease.release(door.epoch)
    time.sleep(1)
    assert door.proxy.lease.read().epoch == door.epoch
    assert door.proxy.get().traffic.preview == CANDIDATE


@pytest.mark.parametrize("what", ["mirror", "segment", "first"])
def test_copies_segments_and_a_first_release_end_as_well(door: Any, what: str) -> None:
    whole = {STABLE: 100}
    comparator = {"comparator": [door.candidate[0].backend]}
    match what:
        case "mirror":
            mirror = Mirror(percent=10, candidate=CANDIDATE)
            door.set(Traffic(weights=whole, fallback=STABLE, mirror=mirror), **comparator)
        case "segment":
            segment = Segment(name="s", header="x-s", values=("1",), revision=CANDIDATE)
            door.set(Traffic(weights=whole, fallback=STABLE, segments=(segment,)))
        case "first":
            door.set(Traffic(weights={CANDIDATE: 100}))
    door.proxy.lease.release(door.epoch)
    deadline = time.monotonic() + WITHIN
    wanted = Traffic() if what == "first" else Traffic.only(STABLE)
    while door.proxy.get().traffic != wanted:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert door.ask()[0] == (503 if what == "first" else 200)


@contextmanager
def another_owner(door: Any, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], str]]]:
    """Run a process that gives the candidate half as soon as it gets the lease, and then all; yields what it says."""
    script = tmp_path / "owner.py"
    script.write_text(_OWNER)
    command = [sys.executable, str(script), str(door.proxy.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        lines = owner.stdout
        yield owner, lambda: lines.readline().decode().strip()
        owner.kill()


def test_everything_but_envoy_and_its_supervisor_may_be_killed(door: Any, tmp_path: Path) -> None:
    with another_owner(door, tmp_path) as (owner, said):
        assert said() == "refused"  # another one holds the lease
        door.proxy.lease.release(door.epoch)
        assert said() == "at 50"
        owner.kill()
        owner.wait()
        until_stable(door, 1.5 + WITHIN)


def test_an_owner_that_was_stopped_and_wakes_up_is_refused(door: Any, tmp_path: Path) -> None:
    door.proxy.lease.release(door.epoch)
    with another_owner(door, tmp_path) as (owner, said):
        assert said() == "at 50"
        os.kill(owner.pid, signal.SIGSTOP)
        until_stable(door, 1.5 + WITHIN)
        os.kill(owner.pid, signal.SIGCONT)
        assert said() == "StaleEpochError"
        assert door.proxy.get().traffic == Traffic.only(STABLE)


def test_an_owner_that_was_stopped_in_the_middle_of_a_change_keeps_nobody_out(door: Any) -> None:
    door.weigh(50)
    door.proxy.lease.acquire("test", 0.5)
    held = os.open(door.proxy.folder / "lease.lock", os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)  # and never lets go of it
    try:
        until_stable(door, 0.5 + WITHIN)
        assert door.proxy.lease.read().epoch == door.epoch + 1
        # What it still does is undone as well.
        late = door.proxy.folder / "late"
        late.write_text(json.dumps(_routes(door, 70)))
        late.replace(door.proxy.folder / "routes.json")
        until_stable(door, WITHIN)
        with pytest.raises(LockedError, match="another process is acting on the target and does not finish"):
            door.weigh(10)
    finally:
        os.close(held)


def test_a_server_that_somebody_else_is_starting_does_not_keep_the_watchdog(
    door: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    state = folder / "server.json"
    state.write_text('{"pid": 0, "start_time": 1, "boot_id": "an older one"}')
    order = {
        "command": ["/bin/true"],
        "environ": {},
        "log": str(folder / "log"),
        "state": str(state),
        "record": {},
    }
    (folder / "server-start.json").write_text(json.dumps(order))
    door.weigh(50)
    held = launcher.take_lock(state)
    try:
        door.proxy.keep([folder])
        time.sleep(1)
        door.proxy.lease.release(door.epoch)
        until_stable(door, WITHIN)
    finally:
        os.close(held)


def test_a_change_during_which_the_watchdog_took_over_is_undone(
    door: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    door.proxy.processes.supervisor.stop()  # so that nobody but the one who came too late can undo it
    done = door.proxy._change

    def stopped_on_the_way(*arguments: Any) -> None:
        done(*arguments)
        (door.proxy.folder / "lease.json").write_text('{"epoch": 7, "holder": "watchdog", "expires": 0}')

    monkeypatch.setattr(door.proxy, "_change", stopped_on_the_way)
    with pytest.raises(StaleEpochError):
        door.weigh(50)
    until_stable(door, WITHIN)


def test_a_door_that_nobody_watched_opens_on_stable(door: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    door.weigh(50)
    for process in (door.proxy.processes.supervisor, door.proxy.processes.envoy):
        os.kill(process.pid, signal.SIGKILL)
        while process.alive:
            time.sleep(0.01)
    door.proxy.lease.release(door.epoch)
    monkeypatch.setattr(door.proxy.processes, "start_supervisor", lambda: False)
    door.proxy.ensure()
    assert door.proxy.get().traffic == Traffic.only(STABLE)
    assert door.proxy.lease.read().epoch == door.epoch + 1


def test_an_old_state_is_refused(door: Any) -> None:
    etag = door.proxy.get().etag
    door.weigh(10)
    present = door.proxy.get().etag
    with pytest.raises(StageError) as raised:
        door.proxy.set(Traffic.only(CANDIDATE), door.backends, etag=etag, epoch=door.epoch)
    assert str(raised.value) == (
        f"the door door is at {present}, not at {etag} any more: somebody else has changed it; look again before acting"
    )
    again = Traffic(weights={STABLE: 90, CANDIDATE: 10}, fallback=STABLE)
    assert door.proxy.set(again, door.backends, etag=etag, epoch=door.epoch).etag == present


def _routes(door: Any, weight: int) -> Any:
    from shipctl_plugins._envoy.config import Table, routes_response

    traffic = Traffic(weights={STABLE: 100 - weight, CANDIDATE: weight}, fallback=STABLE)
    return routes_response(Table(traffic=traffic, backends=door.backends, number=90, etag="90-late"))


_OWNER = f"""
import sys, time
from pathlib import Path
from shipctl.errors import LockedError
from shipctl.release.target import StaleEpochError
from shipctl.release.traffic import Traffic
from shipctl_plugins._envoy.proxy import Proxy

proxy = Proxy(Path(sys.argv[1]))
said = False
while True:
    try:
        epoch = proxy.lease.acquire("owner", 1.5)
        break
    except LockedError:
        if not said:
            print("refused", flush=True)
        said = True
        time.sleep(0.05)
routed = proxy.get()
weights = {{"{STABLE}": 50, "{CANDIDATE}": 50}}
proxy.set(Traffic(weights=weights, fallback="{STABLE}"), routed.backends, etag=routed.etag, epoch=epoch)
print("at 50", flush=True)
begin = time.monotonic()
while time.monotonic() - begin < 1:  # less than the lease, unless we are stopped
    time.sleep(0.01)
try:
    proxy.set(Traffic.only("{CANDIDATE}"), routed.backends, etag=proxy.get().etag, epoch=epoch)
except StaleEpochError as error:
    print(type(error).__name__, flush=True)
"""
