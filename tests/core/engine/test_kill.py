"""SIGKILL at every point; then the same command finishes, and nothing that was finished is done again."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections import Counter

import pytest

from support_engine import EngineProject, processes_with, wait_for

SPEC = """
    - {id: a, uses: make, with: {text: aa, label: a}}
    - {id: b, uses: make-worker, needs: [], with: {text: bb, label: b}}
    - {id: m, uses: append, needs: a, matrix: {n: ["1", "2"]}, with: {add: "${{ matrix.n }}", label: m}}
    - {id: w, uses: append-worker, needs: b, with: {label: w}}
    - {id: k, uses: check, needs: m, with: {label: k}}
    - {id: j, uses: join, needs: [m, k, w], with: {label: j}}
    - {id: d, uses: file-deploy, needs: j}
    """
NODES = {"a": "a", "b": "b", "m[n=1]": "m", "m[n=2]": "m", "w": "w", "k[n=1]": "k", "k[n=2]": "k", "j": "j"}
PHASES = ("preparing", "preflight", "shifting", "promoting", "done")
ONE_AFTER_THE_OTHER = """
import os, sys
from shipctl import apply
from shipctl.cli.main import run
assert run(["validate", "-q", "spec.yaml"]) == 0
for line in sys.stdin.read().splitlines():
    pid = os.fork()
    if pid == 0:
        os.dup2(2, 1)
        os._exit(run(line.split()))
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
"""Runs each line of stdin as `shipctl`, in a process of its own, and prints its exit code; all of them are forks of one
that has imported shipctl and the stages, which takes longer than what they do."""
AROUND_STAGES = list(
    dict.fromkeys(
        point
        for node, label in NODES.items()
        for point in (f"hook stage_started {node}", f"inside {label}", f"hook stage_finished {node}")
    )
)
AROUND_STEPS = [
    point
    for phase in PHASES
    for point in (f"before {phase}", f"inside {phase}", f"hook release_stepped {phase}")
]
POINTS = [
    *AROUND_STAGES, "hook stage_started d", *AROUND_STEPS, "hook stage_finished d",
]  # fmt: skip


def assert_nothing_was_repeated(trace: list[str]) -> None:
    """No stage begins after it was finished, and no step of the release is taken, or has its effect, twice."""
    labels = {**NODES, "d": "d"}
    for label in labels.values():
        finished = max(trace.index(f"finished {node}") for node in labels if labels[node] == label)
        assert f"run {label}" not in trace[finished:], f"{label} ran again after it was finished"
    effects = Counter(line for line in trace if line.startswith("effect "))
    assert set(effects) == {f"effect {phase} 1.0.0" for phase in ("preparing", "shifting", "promoting")}
    assert set(effects.values()) == {1}
    assert [line for line in trace if line.startswith("stepped ")] == [f"stepped {phase}" for phase in PHASES]


@pytest.mark.parametrize("point", ["inside w", "inside promoting"])
@pytest.mark.slow
def test_the_same_command_finishes_after_a_kill(project: EngineProject, point: str) -> None:
    project.spec(SPEC)
    token = uuid.uuid4().hex
    environ = {"SHIPCTL_TEST_TOKEN": token}
    code, _ = project.shipctl("apply", "spec.yaml", environ={**environ, "SHIPCTL_TEST_KILL": point})
    assert code == -9
    wait_for(lambda: not processes_with(token), 5)
    code, said = project.shipctl("apply", "spec.yaml", environ=environ)
    assert code == 0, said
    assert f"KILL {point}" in project.trace()
    assert project.serving() is not None
    assert_nothing_was_repeated(project.trace())
    project.assert_whole()
    assert processes_with(token) == []


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_killed_at_every_point_one_after_the_other_it_still_gets_there(project: EngineProject) -> None:
    """Each run goes on where the one before was killed, and is killed at the next point, at last not any more."""
    project.spec(SPEC)
    token = uuid.uuid4().hex
    environ = {"SHIPCTL_TEST_TOKEN": token, "SHIPCTL_TEST_KILL": "*"}
    runs = "".join("apply spec.yaml\n" for _ in (*POINTS, "and once more"))
    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_THE_OTHER], cwd=project.root, env=project.environ(**environ),
        input=runs, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    *killed, last = done.stdout.split()
    assert killed == ["-9"] * len(POINTS), done.stdout + done.stderr
    assert {line[5:] for line in project.trace() if line.startswith("KILL ")} == set(POINTS)
    assert last == "0", done.stderr
    assert_nothing_was_repeated(project.trace())
    project.assert_whole()
    wait_for(lambda: not processes_with(token), 5)


@pytest.mark.slow
def test_a_worker_that_outlived_a_killed_run_is_stopped_by_the_next(project: EngineProject) -> None:
    """If even the supervisor is suspended, the next run finds and ends it by pid, start time and boot."""
    import os
    import signal

    project.spec(
        "- {id: s, uses: sleep, with: {seconds: 0.05, label: s}}\n- {id: b, uses: append, with: {label: b}}"
    )
    project.apply(project.plan(until="s"))
    project.edit("seconds: 0.05", "seconds: 30")
    token = uuid.uuid4().hex
    with project.start("apply", "spec.yaml", environ={"SHIPCTL_TEST_TOKEN": token}) as process:
        wait_for(lambda: project.trace().count("begin s") == 2)
        below = [pid for pid in processes_with(token) if pid != process.pid]
        for pid in below:
            os.kill(pid, signal.SIGSTOP)
        process.kill()
    assert processes_with(token) == below, "suspended, they cannot notice"
    project.edit("seconds: 30", "seconds: 0.06")
    code, said = project.shipctl("-v", "apply", "spec.yaml")
    assert code == 0, said
    assert "left behind" in said
    wait_for(lambda: not processes_with(token), 5)
    project.assert_whole()
