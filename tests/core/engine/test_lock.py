"""Two runs at once on one project: the second waits, or is told who holds the lock."""

from __future__ import annotations

import re

import pytest

from shipctl.engine.locks import project_lock
from shipctl.errors import LockedError
from support_engine import EngineProject, wait_for

SPEC = "- {id: s, uses: sleep, with: {seconds: SECONDS, label: s}}"


def test_the_second_apply_is_told_who_and_since_when(project: EngineProject) -> None:
    project.spec(SPEC.replace("SECONDS", "3"))
    with project.start("apply", "spec.yaml") as first:
        wait_for(lambda: "begin s" in project.trace())
        code, said = project.shipctl("apply", "spec.yaml")
        first.kill()
    assert code == 8
    line = next(line for line in said.splitlines() if "locked" in line)
    assert re.fullmatch(
        rf"error: locked by \S+@\S+ \(process {first.pid}, `shipctl apply spec.yaml`\) "
        r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d; wait for it with `--lock-timeout 10m`, "
        r"or end the release that it drives with `shipctl abort`",
        line,
    ), line


@pytest.mark.slow
def test_with_a_timeout_the_second_waits_and_then_has_nothing_to_do(project: EngineProject) -> None:
    project.spec(SPEC.replace("SECONDS", "0.8"))
    with project.start("apply", "spec.yaml") as first:
        wait_for(lambda: "begin s" in project.trace())
        code, said = project.shipctl("apply", "spec.yaml", "--lock-timeout", "20s", "--json")
        assert first.wait(10) == 0
    assert code == 0
    assert '"nothing to do"' in said
    assert project.trace().count("begin s") == 1


@pytest.mark.slow
def test_a_lock_is_free_once_its_holder_is_dead(project: EngineProject) -> None:
    project.spec(SPEC.replace("SECONDS", "5"))
    with project.start("apply", "spec.yaml") as first:
        wait_for(lambda: "begin s" in project.trace())
        first.kill()
        first.wait()
        with project_lock(project.state / "lock", "me", 0):
            pass


def test_planning_needs_no_lock(project: EngineProject) -> None:
    project.spec(SPEC.replace("SECONDS", "0.1"))
    with project_lock(project.state / "lock", "me", 0):
        assert project.actions() == {"s": "run"}
        with pytest.raises(LockedError, match=r"locked by .*`me`.*since"):
            project.apply()
    assert project.trace() == []
