"""Who may act on a target, by a file."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shipctl.errors import LockedError
from shipctl.processes import own_name
from shipctl.release import lease as module
from shipctl.release.lease import FileLease, Lease
from shipctl.release.target import StaleEpochError


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lease(tmp_path: Path, clock: Clock) -> FileLease:
    return FileLease(tmp_path / "door" / "lease.json", clock)


def test_nobody_holds_a_new_lease(lease: FileLease) -> None:
    assert lease.read() is None
    lease.check(0)
    with pytest.raises(StaleEpochError):
        lease.check(1)


def test_the_epoch_stays_while_its_holder_renews_even_late(lease: FileLease, clock: Clock) -> None:
    assert lease.acquire("a", 15) == 1
    clock.now += 10
    assert lease.acquire("a", 15) == 1
    assert lease.read() == Lease(epoch=1, holder="a", expires=1025.0)
    clock.now += 100
    assert lease.acquire("a", 15) == 1
    lease.check(1)


def test_another_one_waits_and_is_told_for_whom(lease: FileLease, clock: Clock) -> None:
    lease.acquire("ann@laptop (process 7)", 15)
    clock.now += 5
    with pytest.raises(LockedError) as raised:
        lease.acquire("b", 15)
    assert str(raised.value) == (
        "ann@laptop (process 7) holds the target, for another 10 s unless it renews that; wait for it, or run "
        "`shipctl abort` to end its release"
    )
    clock.now += 10
    assert lease.acquire("b", 15) == 2


def test_who_lost_the_lease_is_refused(lease: FileLease, clock: Clock) -> None:
    lease.acquire("a", 15)
    clock.now += 15
    lease.acquire("b", 15)
    with pytest.raises(StaleEpochError) as raised:
        lease.check(1)
    assert str(raised.value) == (
        "b has taken the target over (epoch 2, this is 1): nothing was done; look with `shipctl status` and apply again"
    )
    done = []
    with pytest.raises(StaleEpochError), lease.guard(1):
        done.append("something")
    assert done == []
    lease.release(1)  # not his any more
    assert lease.read() == Lease(epoch=2, holder="b", expires=1030.0)
    clock.now += 30
    assert lease.acquire("a", 15) == 3


def test_a_lease_that_was_given_back_is_free_at_once_with_the_next_number(lease: FileLease) -> None:
    lease.acquire("a", 15)
    lease.release(1)
    lease.check(1)
    assert lease.acquire("b", 15) == 2
    lease.release(2)
    assert lease.acquire("b", 15) == 3


def test_a_watchdog_takes_only_what_has_run_out(lease: FileLease, clock: Clock) -> None:
    assert lease.take() == 1
    lease.acquire("a", 15)
    with pytest.raises(LockedError, match="a holds the target, for another 15 s"):
        lease.take()
    clock.now += 15
    assert lease.take() == 3
    assert lease.read() == Lease(epoch=3, holder="watchdog", expires=0.0)
    with pytest.raises(StaleEpochError):
        lease.check(2)
    assert lease.acquire("a", 15) == 4


def test_nobody_takes_over_in_the_middle_of_an_act(
    lease: FileLease, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.05)
    epoch = lease.acquire("a", 15)
    other = FileLease(lease.path, clock)
    with lease.guard(epoch):
        clock.now += 100
        with pytest.raises(LockedError) as raised:
            other.acquire("b", 15)
        assert str(raised.value) == (
            f"another process is acting on the target and does not finish ({lease.path})"
        )
    assert other.acquire("b", 15) == 2


def test_an_act_during_which_a_watchdog_did_not_wait_is_not_taken_for_good(lease: FileLease) -> None:
    epoch = lease.acquire("a", 15)
    with pytest.raises(StaleEpochError), lease.guard(epoch):
        lease.path.write_text(Lease(epoch=9, holder="watchdog", expires=0).model_dump_json())


def test_the_lock_goes_with_its_holder(lease: FileLease) -> None:
    lease.acquire("a", 15)
    script = (
        "import sys, os; from pathlib import Path; from shipctl.release.lease import FileLease\n"
        "with FileLease(Path(sys.argv[1]), lambda: 1000.0).guard(1): os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(lease.path)], check=False)
    assert done.returncode == -9
    assert lease.acquire("a", 15) == 1


def test_of_many_that_want_it_one_gets_it(lease: FileLease) -> None:
    script = (
        "import sys; from pathlib import Path; from shipctl.release.lease import FileLease\n"
        "from shipctl.errors import LockedError\n"
        "try: print(FileLease(Path(sys.argv[1])).acquire(sys.argv[2], 60))\n"
        "except LockedError: print('refused')"
    )
    command = [sys.executable, "-c", script, str(lease.path)]
    asked = [subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, text=True) for n in range(4)]
    assert sorted(one.communicate()[0].strip() for one in asked) == ["1", "refused", "refused", "refused"]


def test_the_file_is_never_seen_half_written(lease: FileLease) -> None:
    lease.acquire("a", 15)
    before = lease.path.stat().st_ino
    lease.acquire("a", 15)
    assert lease.path.stat().st_ino != before
    assert sorted(path.name for path in lease.path.parent.iterdir()) == ["lease.json", "lease.lock"]
    held = os.open(lease.path.with_suffix(".lock"), os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody holds it between two calls
    os.close(held)


def test_a_holder_on_this_machine_that_has_ended_is_not_waited_for(tmp_path: Path) -> None:
    ask = (
        "from shipctl.processes import own_name; import sys; print(own_name(), flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", ask], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    name = other.stdout.readline().strip()
    lease = FileLease(tmp_path / "lease.json")
    first = lease.acquire(name, 60)
    with pytest.raises(LockedError, match="holds the target"):
        lease.acquire(own_name(), 60)
    other.kill()
    other.communicate()
    assert lease.acquire(own_name(), 60) == first + 1
