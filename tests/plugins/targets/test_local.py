"""The local target's acts, one by one, over server processes that only look like Triton."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shipctl.errors import LockedError, StageError, UnavailableError
from shipctl.release.rollout import Facts, RolloutState, advance, retreat
from shipctl.release.router import Backend
from shipctl.release.strategy import SetWeight, Strategy
from shipctl.release.target import (
    Candidate,
    Capability,
    Commit,
    Preflight,
    Prepare,
    Replicas,
    ScaleDown,
    Shift,
    StaleEpochError,
)
from shipctl.release.traffic import Traffic
from shipctl.spec.units import Duration
from shipctl.stages.base import Phase
from shipctl.stages.context import CheckContext
from shipctl.stages.verdicts import Outcome
from shipctl_plugins._triton import replicas, surge
from shipctl_plugins._triton.api import TritonApi
from shipctl_plugins._triton.processes import Ports
from shipctl_plugins._triton.replicas import ReplicaSet
from shipctl_plugins._triton.server import TritonServer
from shipctl_plugins._triton.single_server import single_server
from shipctl_plugins.targets.local import Local, LocalOptions

pytestmark = pytest.mark.slow

Open = Callable[..., Local]
MakeCandidate = Callable[..., Candidate]


def until(seen: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Wait until ``seen`` returns something true, and return that."""
    deadline = time.monotonic() + seconds
    while not (found := seen()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return found


def await_ready(local: Local, revision: str) -> None:
    until(lambda: local.observe().ready(revision))


def release(local: Local, candidate: Candidate, *, leave: bool = True) -> int:
    """Do what a blue-green release does, and return the epoch."""
    epoch = local.acquire("test")
    before = local.observe().stable
    local.apply(Prepare(), candidate, epoch)
    local.apply(Preflight(), candidate, epoch)
    await_ready(local, candidate.revision)
    local.apply(Shift(traffic=Traffic.only(candidate.revision)), candidate, epoch)
    local.apply(Commit(expected=before, revision=candidate.revision), candidate, epoch)
    if before is not None and before != candidate.revision and leave:
        local.apply(ScaleDown(revision=before), candidate, epoch)
    return epoch


def group(local: Local, number: int, model: str = "digits") -> ReplicaSet:
    return ReplicaSet(local.deployment.releases, model, number)


def listen(local: Local, number: int) -> None:
    """Have the late replicas of a version go on."""
    for place in group(local, number).places():
        (place / "repository" / "listen").touch()


def kill(server: TritonServer) -> None:
    os.kill(server.record.pid, signal.SIGKILL)
    until(lambda: not server.alive)


# -- the acts -----------------------------------------------------------------------------------------------


def test_first_release_opens_the_door_with_the_shift_and_not_before(
    open_local: Open, candidate: MakeCandidate
) -> None:
    local, one = open_local(replicas=2), candidate("one")
    assert (local.model, local.versions(), local.status(), local.endpoints()) == (None, {}, [], {})
    epoch = local.acquire("test")
    assert epoch == 1
    said = local.apply(Prepare(), one, epoch).message
    assert said == "digits 1.0.0 is published as version 1: 2 replicas starting"
    local.apply(Preflight(), one, epoch)
    await_ready(local, one.revision)
    seen = local.observe()
    assert (seen.stable, seen.previous, seen.traffic, seen.shifted, seen.epoch) == (
        None, None, Traffic(), None, 1,
    )  # fmt: skip
    assert seen.replicas == {one.revision: Replicas(version="1.0.0", wanted=2, ready=2)}
    assert not local.deployment.door.running

    assert (
        local.apply(Shift(traffic=Traffic.only(one.revision)), one, epoch).message == "digits: 100 % to 1.0.0"
    )
    assert local.observe().stable is None
    said = local.apply(Commit(expected=None, revision=one.revision), one, epoch).message
    assert said == "digits 1.0.0 (version 1) is stable"
    seen = local.observe()
    assert (seen.stable, seen.traffic, seen.shifted) == (one.revision, Traffic.only(one.revision), 1.0)
    assert (local.model, local.versions()) == ("digits", {one.revision: "1"})
    assert {"http", "grpc", "metrics/r1.0.0-one/1", "metrics/r1.0.0-one/2"} <= local.endpoints().keys()
    (serving,) = local.status()
    assert (serving.name, serving.version, serving.revision, serving.healthy) == (
        "digits", "1.0.0", one.revision, True,
    )  # fmt: skip
    assert serving.endpoints["http"] == "http://127.0.0.1:1"
    pids = ", ".join(str(server.record.pid) for server in group(local, 1).servers())
    shown = {"triton version": "1", "replicas": "2 of 2 ready", "traffic": "100 %", "pids": pids}
    assert shown.items() <= serving.details.items()
    assert local.logs == local.deployment.door.access_log.parent


def test_act_that_was_done_is_not_done_again(open_local: Open, candidate: MakeCandidate) -> None:
    local, one = open_local(replicas=2), candidate("one")
    epoch = release(local, one)
    pids = [server.record.pid for server in group(local, 1).servers()]
    assert local.apply(Prepare(), one, epoch).message == (
        "digits 1.0.0 is published as version 1: 2 replicas running"
    )
    local.apply(Shift(traffic=Traffic.only(one.revision)), one, epoch)
    local.apply(Commit(expected=None, revision=one.revision), one, epoch)
    assert [server.record.pid for server in group(local, 1).servers()] == pids
    assert local.deployment.door.get().etag == "1"


def test_prepare_returns_before_the_model_is_loaded(open_local: Open, candidate: MakeCandidate) -> None:
    local, late = open_local(replicas=2), candidate("late")
    epoch = local.acquire("test")
    local.apply(Prepare(), late, epoch)
    seen = local.observe().replicas[late.revision]
    assert seen == Replicas(version="1.0.0", wanted=2, ready=0)
    listen(local, 1)
    await_ready(local, late.revision)


def test_second_version_takes_over_and_the_first_one_goes(open_local: Open, candidate: MakeCandidate) -> None:
    local, one, two = open_local(replicas=2), candidate("one"), candidate("two", "1.1.0")
    release(local, one)
    epoch = release(local, two, leave=False)
    seen = local.observe()
    assert (seen.stable, seen.previous) == (two.revision, one.revision)
    assert seen.ready(one.revision)
    door: Any = local.deployment.door
    assert len(door.kept) == 4
    said = local.apply(ScaleDown(revision=one.revision), two, epoch).message
    assert said == "digits 1.0.0 (version 1): 2 replicas stopped"
    seen = local.observe()
    assert (seen.previous, set(seen.replicas), len(door.kept)) == (None, {two.revision}, 2)
    assert not group(local, 1).folder.exists()
    assert local.apply(ScaleDown(revision=one.revision), two, epoch).message == (
        "digits 1.0.0 (version 1): 0 replicas stopped"
    )
    assert (
        local.apply(ScaleDown(revision="unknown"), two, epoch).message == "revision unknown has no replicas"
    )


def test_old_releases_go_but_the_last_three_and_what_serves(
    open_local: Open, candidate: MakeCandidate
) -> None:
    local = open_local()
    for number in range(1, 6):
        release(local, candidate(f"model {number}", f"1.{number}.0"))
    folder = local.deployment.releases.folder / "releases" / "digits"
    assert sorted(path.name for path in folder.iterdir()) == ["3", "4", "5"]


def test_way_back_after_a_commit(open_local: Open, candidate: MakeCandidate) -> None:
    local, one, two = open_local(), candidate("one"), candidate("two", "1.1.0")
    release(local, one)
    epoch = release(local, two, leave=False)
    for server in group(local, 1).servers():
        kill(server)
    local.apply(Shift(traffic=Traffic.only(one.revision)), two, epoch)  # even now: they are restarted
    local.apply(Commit(expected=two.revision, revision=one.revision), two, epoch)
    local.apply(ScaleDown(revision=two.revision), two, epoch)
    seen = local.observe()
    assert (seen.stable, seen.previous, set(seen.replicas)) == (one.revision, None, {one.revision})
    assert seen.traffic == Traffic.only(one.revision)


def test_first_release_that_is_given_up_leaves_nothing_running(
    open_local: Open, candidate: MakeCandidate
) -> None:
    local, one = open_local(), candidate("one")
    epoch = release(local, one)
    local.apply(Shift(traffic=Traffic()), one, epoch)
    local.apply(Commit(expected=one.revision, revision=None), one, epoch)
    local.apply(ScaleDown(revision=one.revision), one, epoch)
    assert not local.deployment.door.running
    assert local.observe().replicas == {}
    assert local.status() == []


def test_several_who_start_the_same_replicas_start_them_once(
    open_local: Open, candidate: MakeCandidate
) -> None:
    """As a door's supervisor and an apply do, or an apply and the launcher of one that was killed."""
    local, one = open_local(replicas=2), candidate("one")
    local.apply(Prepare(), one, local.acquire("test"))
    for server in group(local, 1).servers():
        kill(server)
    children = []
    gate, key = os.pipe()
    for _ in range(6):
        child = os.fork()
        if not child:
            try:
                os.close(key)
                os.read(gate, 1)  # until all are there
                local.deployment.ensure_serving(1)
            finally:
                os._exit(0)
        children.append(child)
    os.close(key)
    os.close(gate)
    for child in children:
        os.waitpid(child, 0)
    await_ready(local, one.revision)
    marks = Counter(
        (process / "environ").read_bytes()
        for process in Path("/proc").glob("[0-9]*")
        if str(local.deployment.folder).encode() in _command(process)
    )
    assert len(marks) == sum(marks.values()) == 2


def _command(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


# -- readiness ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("unloadable", "replica 1 could not load digits: out of memory, or so"),
        ("crashing", "replica 1 is not running; its log says: the model crashes"),
    ],
)
def test_candidate_that_does_not_load_says_why(
    open_local: Open, candidate: MakeCandidate, content: str, problem: str
) -> None:
    local, bad = open_local(), candidate(content)
    epoch = local.acquire("test")
    local.apply(Prepare(), bad, epoch)
    seen = until(lambda: found if (found := local.observe().replicas[bad.revision]).problem else None)
    assert (seen.wanted, seen.ready, seen.problem) == (1, 0, problem)


def test_candidate_that_ends_while_it_starts_is_started_again_three_times_at_most(
    open_local: Open, candidate: MakeCandidate
) -> None:
    local, bad = open_local(), candidate("crashing")
    local.apply(Prepare(), bad, local.acquire("test"))
    for _ in range(5):
        until(lambda: not group(local, 1).servers())
        local.acquire("test")
    assert group(local, 1).starts == 3


def test_candidate_whose_port_was_taken_listens_elsewhere(open_local: Open, candidate: MakeCandidate) -> None:
    local, one = open_local(), candidate("late")
    local.apply(Prepare(), one, local.acquire("test"))
    (backend,) = group(local, 1).backends()
    with socket.socket() as somebody:
        somebody.bind(("127.0.0.1", int(backend.http.rpartition(":")[2])))
        somebody.listen()
        listen(local, 1)
        until(lambda: not group(local, 1).servers())
        local.acquire("test")
        listen(local, 1)
        await_ready(local, one.revision)
    assert group(local, 1).backends() != (backend,)


def test_server_that_says_another_revision_is_not_ready(open_local: Open, candidate: MakeCandidate) -> None:
    local, one = open_local(), candidate("one")
    release(local, one)
    config = group(local, 1).folder / "1" / "repository" / "digits" / "config.pbtxt"
    config.write_text(config.read_text().replace(one.revision, "another"))
    assert local.observe().replicas[one.revision].problem == (
        f"replica 1 says that it serves revision another, not {one.revision}"
    )
    assert not local.status()[0].healthy


def test_server_that_says_ready_and_does_not_answer_is_not_ready(
    open_local: Open, candidate: MakeCandidate
) -> None:
    local, one = open_local(replicas=2), candidate("one")
    release(local, one)
    (group(local, 1).folder / "2" / "repository" / "shy").touch()
    seen = local.observe()
    assert not seen.ready(one.revision)
    assert seen.replicas[one.revision] == Replicas(
        version="1.0.0", wanted=2, ready=1, problem="replica 2 does not answer as it did in the preflight"
    )
    (serving,) = local.status()
    assert serving.healthy  # it does answer
    assert serving.details["problem"] == "replica 2 does not answer as it did in the preflight"


def test_status_tells_what_a_release_has_put_beside_what_serves(
    open_local: Open, candidate: MakeCandidate
) -> None:
    local, one, two = open_local(replicas=2), candidate("one"), candidate("two", "1.1.0")
    epoch = release(local, one)
    assert "beside it" not in local.status()[0].details
    local.apply(Prepare(), two, epoch)
    await_ready(local, two.revision)
    weights = {one.revision: 90, two.revision: 10}
    local.apply(Shift(traffic=Traffic(weights=weights, fallback=one.revision)), two, epoch)
    details = local.status()[0].details
    assert details["traffic"] == "90 %"
    assert details["beside it"] == f"1.1.0 ({two.revision[:12]}): 2 of 2 ready, 10 % of the traffic"


def test_server_that_the_door_finds_unhealthy_is_not_ready(
    open_local: Open, candidate: MakeCandidate
) -> None:
    local, one = open_local(), candidate("one")
    release(local, one)
    door: Any = local.deployment.door
    door.sick = {"digits-1-1"}
    assert local.observe().replicas[one.revision].problem == "the door finds replica 1 unhealthy"


def test_server_that_is_started_again_and_again_is_not_ready(
    open_local: Open, candidate: MakeCandidate
) -> None:
    local, one = open_local(), candidate("one")
    release(local, one)
    now = time.time()
    starts = group(local, 1).folder / "1" / "server.starts"
    starts.write_text("\n".join(str(now - back) for back in (30, 20, 10, 1)))
    problem = local.observe().replicas[one.revision].problem
    assert problem is not None
    assert problem.startswith("replica 1 was started 4 times within 60 s")
    starts.write_text("\n".join(str(now - back) for back in (90, 20, 10, 1)))
    assert local.observe().ready(one.revision)


def test_server_that_was_killed_is_not_ready(open_local: Open, candidate: MakeCandidate) -> None:
    local, one = open_local(replicas=2), candidate("one")
    release(local, one)
    kill(group(local, 1).servers()[0])
    seen = local.observe().replicas[one.revision]
    assert (seen.wanted, seen.ready, seen.problem) == (2, 1, "replica 1 is not running")


# -- preflight ----------------------------------------------------------------------------------------------


def test_preflight_passes_and_names_what_it_ran_on(open_local: Open, candidate: MakeCandidate) -> None:
    local, one = open_local(), candidate("one")
    epoch = local.acquire("test")
    local.apply(Prepare(), one, epoch)
    applied = local.apply(Preflight(), one, epoch)
    assert applied.message == (
        "preflight passed on Triton 2.51.0, onnxruntime 1.31.1, CPU: 12 golden samples agree over HTTP and gRPC"
    )
    assert [verdict.outcome for verdict in applied.verdicts] == [Outcome.PASS]
    assert not (local.deployment.folder / "preflight" / "digits").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("wrong", "preflight of digits 1.0.0: preflight: agreement 0"),
        ("unloadable", "preflight of digits 1.0.0: Triton could not load digits: failed to load 'digits'"),
    ],
)
def test_preflight_fails(open_local: Open, candidate: MakeCandidate, content: str, message: str) -> None:
    local, bad = open_local(), candidate(content)
    epoch = local.acquire("test")
    local.apply(Prepare(), bad, epoch)
    applied = local.apply(Preflight(), bad, epoch)
    assert applied.message == message
    assert [verdict.outcome for verdict in applied.verdicts] == [Outcome.FAIL]


def test_preflight_without_golden_samples_is_no_pass(open_local: Open, candidate: MakeCandidate) -> None:
    local, one = open_local(), candidate("one", golden=None)
    epoch = local.acquire("test")
    local.apply(Prepare(), one, epoch)
    (verdict,) = local.apply(Preflight(), one, epoch).verdicts
    assert (verdict.outcome, verdict.message) == (
        Outcome.INCONCLUSIVE, "the release has no golden samples, so that it loads is all that is known of it",
    )  # fmt: skip


# -- refusals -----------------------------------------------------------------------------------------------


def test_revision_that_is_not_ready_gets_no_requests(open_local: Open, candidate: MakeCandidate) -> None:
    local, one, late = open_local(replicas=2), candidate("one"), candidate("late", "1.1.0")
    epoch = release(local, one)
    local.apply(Prepare(), late, epoch)
    shift = Shift(traffic=Traffic(weights={one.revision: 95, late.revision: 5}, fallback=one.revision))
    with pytest.raises(
        StageError, match=r"^revision r1\.1\.0-late gets no requests: 0 of 2 replicas are ready$"
    ):
        local.apply(shift, late, epoch)
    preview = Shift(traffic=Traffic.only(one.revision).model_copy(update={"preview": late.revision}))
    with pytest.raises(StageError, match="gets no requests"):
        local.apply(preview, late, epoch)
    listen(local, 2)
    await_ready(local, late.revision)
    assert local.apply(shift, late, epoch).message == "digits: 95 % to 1.0.0, 5 % to 1.1.0"
    kill(group(local, 2).servers()[0])
    more = Shift(traffic=Traffic(weights={one.revision: 50, late.revision: 50}, fallback=one.revision))
    with pytest.raises(StageError, match=r"1 of 2 replicas are ready \(replica 1 is not running\)$"):
        local.apply(more, late, epoch)
    less = Shift(traffic=Traffic(weights={one.revision: 99, late.revision: 1}, fallback=one.revision))
    local.apply(less, late, epoch)
    local.apply(Shift(traffic=Traffic.only(one.revision)), late, epoch)


def test_replicas_that_serve_are_not_stopped(open_local: Open, candidate: MakeCandidate) -> None:
    local, one, two = open_local(), candidate("one"), candidate("two", "1.1.0")
    epoch = release(local, one)
    with pytest.raises(StageError, match=r"^digits 1\.0\.0 is stable; its replicas are not stopped$"):
        local.apply(ScaleDown(revision=one.revision), one, epoch)
    local.apply(Prepare(), two, epoch)
    await_ready(local, two.revision)
    shift = Traffic(weights={one.revision: 95, two.revision: 5}, fallback=one.revision)
    local.apply(Shift(traffic=shift), two, epoch)
    with pytest.raises(
        StageError, match=r"^digits 1\.1\.0 can still get requests; its replicas are not stopped$"
    ):
        local.apply(ScaleDown(revision=two.revision), two, epoch)
    assert local.observe().ready(two.revision)


def test_commit_is_refused_if_something_else_is_stable(open_local: Open, candidate: MakeCandidate) -> None:
    local, one, two = open_local(), candidate("one"), candidate("two", "1.1.0")
    epoch = release(local, one)
    local.apply(Prepare(), two, epoch)
    with pytest.raises(StageError) as caught:
        local.apply(Commit(expected=None, revision=two.revision), two, epoch)
    assert str(caught.value) == (
        "digits was changed meanwhile: version 1 serves where None was expected; run again"
    )
    with pytest.raises(StageError, match="revision unknown is not on this target; run again"):
        local.apply(Commit(expected="unknown", revision=two.revision), two, epoch)
    assert local.observe().stable == one.revision


def test_owner_that_was_overtaken_is_refused_everything(open_local: Open, candidate: MakeCandidate) -> None:
    local, one = open_local(), candidate("one")
    epoch = release(local, one)
    with pytest.raises(LockedError, match=r"^test holds the target"):
        open_local().acquire("another")
    local.release(epoch)
    assert open_local().acquire("another") == epoch + 1
    two = candidate("two", "1.1.0")
    for action in (
        Prepare(),
        Preflight(),
        Shift(traffic=Traffic()),
        Commit(expected=one.revision, revision=None),
        ScaleDown(revision=two.revision),
    ):
        with pytest.raises(StaleEpochError):
            local.apply(action, two, epoch)
    assert local.observe().stable == one.revision
    assert local.versions() == {one.revision: "1"}


def test_pipelines_have_servers_and_doors_of_their_own(open_local: Open, candidate: MakeCandidate) -> None:
    digits, letters = open_local(), open_local("letters")
    release(digits, candidate("one"))
    other = candidate("other", model="letters")
    release(letters, other)
    assert digits.deployment.door.folder != letters.deployment.door.folder
    with pytest.raises(StageError) as caught:
        letters.apply(Prepare(), candidate("two", "1.1.0"), letters.acquire("test"))
    assert str(caught.value) == (
        "the pipeline letters serves the model letters here, and the candidate is digits, which nobody who asks for "
        "the other would reach; `shipctl down` first, or release it by another pipeline"
    )
    third = open_local("third")
    with pytest.raises(StageError, match="the model digits on this target belongs to the pipeline digits"):
        third.apply(Prepare(), candidate("two", "1.1.0"), third.acquire("test"))
    assert letters.down() == ["the door was stopped", "letters 1.0.0 (version 1): 1 replica stopped"]
    assert digits.status()[0].healthy
    assert letters.observe().stable is None


def test_candidate_that_is_gone_is_named(open_local: Open, candidate: MakeCandidate) -> None:
    local = open_local()
    epoch = local.acquire("test")
    for action in (Shift(traffic=Traffic()), Commit(expected=None, revision="r")):
        with pytest.raises(StageError, match=r"^the pipeline digits has nothing here"):
            local.apply(action, candidate("one"), epoch)
    with pytest.raises(StageError, match=r"^digits 1\.0\.0 is gone from the target; run again$"):
        local.apply(Preflight(), candidate("one"), epoch)
    with pytest.raises(StageError, match=r"^there is nothing to release$"):
        local.apply(Prepare(), None, epoch)


# -- keeping what serves ------------------------------------------------------------------------------------


def test_machine_that_was_switched_off_serves_again_where_it_did(
    open_local: Open, candidate: MakeCandidate
) -> None:
    local, one, two = open_local(), candidate("one"), candidate("two", "1.1.0")
    release(local, one)
    epoch = release(local, two, leave=False)
    backends = local.deployment.door.get().backends
    local.release(epoch)
    servers = [*group(local, 1).servers(), *group(local, 2).servers()]
    for server in servers:
        kill(server)
    door: Any = local.deployment.door
    door.die()
    assert not local.status()[0].healthy
    assert local.observe().traffic == Traffic()
    said: list[str] = []
    again = open_local(log=said.append)
    again.acquire("test")
    assert said[0] == "the door of digits does not run; starting it and the replicas behind it"
    await_ready(again, two.revision)
    await_ready(again, one.revision)
    seen = again.observe()
    assert (seen.stable, seen.previous, seen.traffic) == (
        two.revision,
        one.revision,
        Traffic.only(two.revision),
    )
    assert again.deployment.door.get().backends == backends
    assert again.status()[0].healthy


def taken(port: int) -> socket.socket:
    """Listen on a port as soon as the one that was killed has let go of it."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return socket.create_server(("127.0.0.1", port))
        except OSError:
            assert time.monotonic() < deadline, f"{port} stays taken"
            time.sleep(0.1)


def test_replicas_whose_ports_were_taken_are_told_to_the_door(
    open_local: Open, candidate: MakeCandidate
) -> None:
    local, one = open_local(), candidate("one")
    release(local, one)
    door: Any = local.deployment.door
    kill(group(local, 1).servers()[0])
    door.die()
    (backend,) = group(local, 1).backends()
    with taken(int(backend.http.rpartition(":")[2])):
        local.acquire("test")
    (moved,) = door.get().backends[one.revision]
    assert isinstance(moved, Backend)
    assert moved != backend
    await_ready(local, one.revision)


def test_candidate_that_was_switched_off_is_not_there_any_more(
    open_local: Open, candidate: MakeCandidate
) -> None:
    """The engine prepares it anew then, where it would wait in vain for replicas that exist."""
    local, one = open_local(), candidate("one")
    epoch = local.acquire("test")
    local.apply(Prepare(), one, epoch)
    (server,) = group(local, 1).servers()
    kill(server)
    server.state.write_text(server.state.read_text().replace(server.record.boot_id, "another boot"))
    assert local.observe().replicas == {}
    local.apply(Prepare(), one, epoch)
    await_ready(local, one.revision)


def test_down_and_up_again(open_local: Open, candidate: MakeCandidate) -> None:
    local, one = open_local(replicas=2), candidate("one")
    release(local, one)
    assert local.down() == ["the door was stopped", "digits 1.0.0 (version 1): 2 replicas stopped"]
    assert local.down() == []
    assert (local.status(), local.observe().stable, local.observe().replicas) == ([], None, {})
    assert local.deployment.releases.release("digits", 1).is_dir()
    release(local, one)
    assert local.versions() == {one.revision: "1"}
    assert local.status()[0].endpoints["http"] == "http://127.0.0.1:1"


# -- what shipctl 0.1 left ----------------------------------------------------------------------------------


def serve_as_before(local: Local, candidate: Candidate, pipeline: str = "digits") -> TritonServer:
    """Serve a candidate as shipctl 0.1 did: all models by one server without a door."""
    releases = local.deployment.releases
    entry = releases.publish(
        candidate.repository,
        revision=candidate.revision,
        version=candidate.version,
        pipeline=pipeline,
        now=4.0,
    )
    model = candidate.repository.model
    releases.lay_out(model, entry.number, releases.serving)
    server = single_server(releases) or TritonServer.start(
        local.deployment.environment(), repository=releases.serving, folder=releases.folder / "server"
    )
    server.load(model)
    releases.commit_stable(model, None, entry.number, 5.0)
    record, file = releases.record(), releases.folder / "target.json"
    ports = server.record.ports
    listens = record.model_copy(update={"ports": (ports.http, ports.grpc, ports.metrics)})
    file.write_text(listens.model_dump_json())
    return server


def test_server_of_before_is_replaced_by_replicas_behind_a_door_at_its_address(
    open_local: Open, candidate: MakeCandidate
) -> None:
    local, one = open_local(replicas=2), candidate("one")
    server = serve_as_before(local, one)
    (serving,) = local.status()
    assert serving.endpoints["http"] == server.endpoints["http"]
    seen = local.observe()
    assert (seen.stable, seen.replicas, seen.traffic) == (one.revision, {}, Traffic())
    said: list[str] = []
    again = open_local(log=said.append, replicas=2)
    again.acquire("test")
    assert said[0] == "digits 1.0.0 is served as shipctl 0.1 did; moving it behind a door"
    assert said[-1] == f"the Triton server of digits (pid {server.record.pid}) was stopped"
    assert not server.alive
    seen = again.observe()
    assert seen.ready(one.revision)
    assert (seen.stable, seen.traffic) == (one.revision, Traffic.only(one.revision))
    assert again.status()[0].endpoints["http"] == server.endpoints["http"]
    release(again, candidate("two", "1.1.0"))


def test_server_of_before_stays_if_its_model_cannot_be_moved(
    open_local: Open, candidate: MakeCandidate
) -> None:
    local, one = open_local(), candidate("one")
    server = serve_as_before(local, one)
    model = local.deployment.releases.release("digits", 1) / "digits" / "1" / "model.onnx"
    model.chmod(0o644)
    model.unlink()  # the server reads a link to it
    model.write_text("unloadable")
    with pytest.raises(StageError) as caught:
        local.acquire("test")
    assert str(caught.value) == (
        "digits 1.0.0 cannot be moved behind a door, it goes on serving as it did: replica 1 could not load digits: "
        "out of memory, or so; `shipctl down`, then apply again, begins anew"
    )
    assert server.alive
    assert local.down() == [
        "digits 1.0.0 (version 1): 1 replica stopped",
        f"the Triton server of digits (pid {server.record.pid}) was stopped",
    ]


def test_server_of_before_goes_on_with_the_models_of_others(
    open_local: Open, candidate: MakeCandidate
) -> None:
    local, one = open_local(), candidate("one")
    server = serve_as_before(local, one)
    serve_as_before(local, candidate("other", model="letters"), "letters")
    local.acquire("test")
    assert server.alive
    assert local.status()[0].endpoints["http"] == "http://127.0.0.1:1"
    letters = open_local("letters")
    assert letters.status()[0].endpoints["http"] == server.endpoints["http"]
    assert letters.down() == [f"the Triton server of letters (pid {server.record.pid}) was stopped"]


def test_port_of_before_that_is_taken_is_chosen_anew(open_local: Open, candidate: MakeCandidate) -> None:
    local, one = open_local(), candidate("one")
    server = serve_as_before(local, one)
    door: Any = local.deployment.door
    door.taken = {server.record.ports.http}
    local.acquire("test")
    assert local.status()[0].endpoints["http"] == "http://127.0.0.1:1"


# -- before anything has run --------------------------------------------------------------------------------


def check_context(tmp_path: Path) -> CheckContext:
    return CheckContext(project=tmp_path, pipeline="digits")


def test_too_little_memory_is_said_with_the_numbers(
    open_local: Open, candidate: MakeCandidate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = LocalOptions.model_validate({"replicas": 3, "memory": "1GiB"})
    Local.check(options, check_context(tmp_path))
    monkeypatch.setattr(surge, "available_memory", lambda: 3 * 2**30)
    with pytest.raises(UnavailableError) as caught:
        Local.check(options, check_context(tmp_path))
    text = (
        "the candidate needs 4 × 1,024 MiB = 4,096 MiB of memory beside what serves (3 replicas and a preflight), and "
        "3,072 MiB are available; free some, lower `replicas`, or say with `memory` what one needs"
    )
    assert str(caught.value) == text
    local = open_local(replicas=3, memory="1GiB")
    with pytest.raises(StageError, match=re.escape(text)):
        local.apply(Prepare(), candidate("one"), local.acquire("test"))


def test_memory_of_a_replica_is_measured_on_those_that_run(
    open_local: Open, candidate: MakeCandidate
) -> None:
    local = open_local()
    assert local.deployment.room().each == 192 * 2**20
    release(local, candidate("one"))
    assert 2**20 < local.deployment.room().each < 64 * 2**20


def test_too_little_disk_is_said_with_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2**20}))
    with pytest.raises(UnavailableError) as caught:
        Local.check(LocalOptions(), check_context(tmp_path))
    assert str(caught.value) == "the candidate needs 64 MiB of disk, and 1 MiB are free; free some"


def test_preview_says_what_serves(open_local: Open, candidate: MakeCandidate) -> None:
    local = open_local(replicas=2)
    first, beside = local.preview("r")
    assert first == "nothing serves: the door opens once the first version has passed its preflight"
    assert re.fullmatch(
        r"2 servers of it are started beside what serves, about 192 MiB each; \d+ MiB are available", beside
    )
    release(local, candidate("one"))
    assert local.preview("r")[0] == "digits 1.0.0 (Triton version 1, revision r1.0.0-one) serves"


def test_it_can_do_everything() -> None:
    assert Local.capabilities == set(Capability)


def test_demanded_ports_are_the_doors(open_local: Open, candidate: MakeCandidate) -> None:
    local = open_local(http_port=8123, grpc_port=8124)
    release(local, candidate("one"))
    endpoints = local.status()[0].endpoints
    assert (endpoints["http"], endpoints["grpc"]) == ("http://127.0.0.1:8123", "127.0.0.1:8124")


def test_ports_of_replicas_are_not_those_of_connections() -> None:
    ports = Ports().chosen()
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(ports.http, ports.grpc, ports.metrics) < max(lowest, 32768)


# -- driven by the state machine ----------------------------------------------------------------------------


def drive(
    local: Local,
    candidate: Candidate,
    strategy: Strategy,
    *,
    abort_at: int | None = None,
    abort_in: Phase | None = None,
    meanwhile: Callable[[RolloutState], object] = lambda state: None,
) -> tuple[RolloutState, list[int]]:
    """Take a release to its end, as the engine does; return its state and the candidate's weights in order.

    It is aborted at a weight or in a phase, if one is given; ``meanwhile`` happens before each step.
    """
    state, verdicts, weights = RolloutState(), None, [0]
    for _ in range(400):
        meanwhile(state)
        epoch = local.acquire("test")
        seen = local.observe(candidate.revision)
        if (weight := seen.traffic.weight(candidate.revision)) != weights[-1]:
            weights.append(weight)
        asked = state.phase is abort_in or (abort_at is not None and weight >= abort_at)
        facts = Facts(
            now=time.time(), observation=seen, preflight=verdicts, abort="asked to" if asked else None
        )
        act = retreat if state.phase is Phase.ABORTING else advance
        decision = act(strategy, candidate.revision, state, facts)
        state, verdicts = decision.state, None
        if decision.action is not None:
            applied = local.apply(decision.action, candidate, epoch)
            verdicts = applied.verdicts or None
        if state.phase.is_final:
            return state, weights
        time.sleep(min(decision.requeue, 0.05))
    message = f"no end: {state}"
    raise AssertionError(message)


def answers(local: Local) -> set[str]:
    """What those answer who asks, as far as the door tells: by every replica that requests reach."""
    routed = local.deployment.door.get()
    ports = {
        int(backend.http.rpartition(":")[2])
        for revision in routed.traffic.weights
        for backend in routed.backends[revision]
    }
    said = set()
    for port in ports:
        status, body, headers = TritonApi(port).request("POST", "/v2/models/digits/infer", b"question")
        assert status == 200
        said.add(body[int(headers["inference-header-content-length"]) :].decode())
    return said


BLUEGREEN = Strategy(name="bluegreen", scaleDownDelay=Duration(0), preview=True)
CANARY = Strategy(
    name="canary", scaleDownDelay=Duration(0), steps=(SetWeight(setWeight=5), SetWeight(setWeight=50))
)


def test_state_machine_takes_releases_forward_and_back(open_local: Open, candidate: MakeCandidate) -> None:
    local, one, two, three = (
        open_local(), candidate("one"), candidate("two", "1.1.0"), candidate("three", "1.2.0"),
    )  # fmt: skip
    state, weights = drive(local, one, BLUEGREEN)
    assert (state.phase, weights) == (Phase.DONE, [0, 100])
    state, weights = drive(local, two, CANARY)
    assert (state.phase, weights) == (Phase.DONE, [0, 5, 50, 100])
    state, weights = drive(local, three, CANARY, abort_at=50)
    assert (state.phase, weights) == (Phase.ROLLED_BACK, [0, 5, 50, 0])
    state, weights = drive(local, candidate("wrong", "1.3.0"), BLUEGREEN)
    assert state.phase is Phase.ABORTING or state.phase is Phase.REJECTED
    assert "agreement 0" in state.reason
    seen = local.observe()
    assert (seen.stable, set(seen.replicas), seen.traffic) == (
        two.revision, {two.revision}, Traffic.only(two.revision),
    )  # fmt: skip
    state, weights = drive(local, two, BLUEGREEN)
    assert (state.phase, weights) == (Phase.DONE, [0, 100])


def test_rollback_brings_back_the_earlier_revision_with_its_answers_and_its_number(
    open_local: Open, candidate: MakeCandidate
) -> None:
    local, one, two = open_local(replicas=2), candidate("one"), candidate("two", "1.1.0")
    drive(local, one, BLUEGREEN)
    drive(local, two, BLUEGREEN)
    assert answers(local) == {"two"}
    back = BLUEGREEN.model_copy(update={"preflight": False, "preview": False})
    state, weights = drive(local, one, back)
    assert (state.phase, weights) == (Phase.DONE, [0, 100])
    assert answers(local) == {"one"}
    assert local.versions() == {one.revision: "1", two.revision: "2"}
    assert local.status()[0].details["triton version"] == "1"
    drive(local, candidate("three", "1.2.0"), BLUEGREEN)
    assert (answers(local), local.status()[0].details["triton version"]) == ({"three"}, "3")


def test_version_that_stops_answering_is_left_for_the_one_that_is_still_warm(
    open_local: Open, candidate: MakeCandidate
) -> None:
    local, one, two = open_local(), candidate("one"), candidate("two", "1.1.0")
    drive(local, one, BLUEGREEN)
    watched = BLUEGREEN.model_copy(update={"scaleDownDelay": Duration("30s")})

    def fall_silent(state: RolloutState) -> None:
        if state.phase is Phase.WATCHING:
            (group(local, 2).folder / "1" / "repository" / "shy").touch()

    state, weights = drive(local, two, watched, meanwhile=fall_silent)
    assert (state.phase, weights) == (Phase.ROLLED_BACK, [0, 100, 0])
    assert state.reason == (
        "1.1.0 (r1.1.0-two) is not ready while it has traffic: 0 of 1 replicas are ready (replica 1 does not answer as "
        "it did in the preflight)"
    )
    seen = local.observe()
    assert (seen.stable, set(seen.replicas), answers(local)) == (one.revision, {one.revision}, {"one"})


@pytest.mark.parametrize(
    ("phase", "end"),
    [
        (Phase.PREPARING, Phase.REJECTED),
        (Phase.PREFLIGHT, Phase.REJECTED),
        (Phase.ANALYSING, Phase.ROLLED_BACK),
        (Phase.PROMOTING, Phase.ROLLED_BACK),
        (Phase.WATCHING, Phase.ROLLED_BACK),
    ],
)
def test_abort_from_any_phase_restores_what_served(
    open_local: Open, candidate: MakeCandidate, phase: Phase, end: Phase
) -> None:
    local, one, two = open_local(), candidate("one"), candidate("two", "1.1.0")
    drive(local, one, BLUEGREEN)
    canary = CANARY.model_copy(update={"scaleDownDelay": Duration("30s")})
    assert drive(local, two, canary, abort_in=phase)[0].phase is end
    seen = local.observe()
    assert (seen.stable, set(seen.replicas), answers(local)) == (one.revision, {one.revision}, {"one"})
    assert local.status()[0].healthy


def test_first_version_that_is_rejected_leaves_nothing_running(
    open_local: Open, candidate: MakeCandidate
) -> None:
    local = open_local(replicas=2)
    assert drive(local, candidate("wrong"), BLUEGREEN)[0].phase is Phase.REJECTED
    assert (local.status(), local.observe().replicas, local.deployment.door.running) == ([], {}, False)
    folder = str(local.deployment.folder).encode()
    assert not [process for process in Path("/proc").glob("[0-9]*") if folder in _command(process)]


def test_server_that_hangs_is_replaced_by_the_next_release_of_the_same(
    open_local: Open, candidate: MakeCandidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas, "LOOK_S", 0.3)
    said: list[str] = []
    local, one = open_local(log=said.append), candidate("one")
    drive(local, one, BLUEGREEN)
    (server,) = group(local, 1).servers()
    os.kill(server.record.pid, signal.SIGSTOP)
    local.apply(Prepare(), one, local.acquire("test"))
    assert server.alive  # it may still be loading
    monkeypatch.setattr(replicas, "START_S", 0.0)
    assert local.observe().replicas[one.revision].problem == "replica 1 does not answer"
    assert drive(local, one, BLUEGREEN)[0].phase is Phase.DONE
    assert "digits 1.0.0: replica 1 does not answer; it is started anew" in said
    assert not server.alive
    assert answers(local) == {"one"}
