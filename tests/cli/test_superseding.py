"""A command about a target on which another process releases: it has that aborted, waits for it, or is refused."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from shipctl.engine import standing_by
from shipctl.release.records import FileRecords, ReleaseRecord
from support_approvals import Become, approve, be, gated, governed
from support_engine import EngineProject, project, test_stages, wait_for

pytestmark = pytest.mark.slow

__all__ = ["be", "project", "test_stages"]


@pytest.fixture(autouse=True)
def ada(be: Become, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever calls in these tests is ada, on this machine."""
    monkeypatch.setattr(standing_by, "POLL", 0.1)


def spec(project: EngineProject, version: str, options: str = "", *, approval: str = "") -> EngineProject:
    return gated(project, version, approval=approval, options=options)


def slow(project: EngineProject, version: str, wait: float = 30.0) -> EngineProject:
    return spec(project, version, f"wait: {wait}")


def serving(project: EngineProject) -> str | None:
    found = project.serving()
    return found["version"] if found else None


def records(folder: Path) -> tuple[ReleaseRecord, ...]:
    return FileRecords(folder, "demo", "d").load()[0].records


def phases(project: EngineProject) -> list[tuple[str, str]]:
    return [(item.version, str(item.phase)) for item in records(project.state / "targets" / "shelf")]


def phase(project: EngineProject) -> str:
    found = phases(project)
    return found[-1][1] if found else ""


@contextmanager
def driving(project: EngineProject, at: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Have a process drive a release, and begin when that has come to a phase."""
    with project.start(*(arguments or ("apply", "spec.yaml"))) as process:
        try:
            wait_for(lambda: phase(project) == at, 20)
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate(timeout=20)
    return process.returncode, said


# -- in one project --------------------------------------------------------------------------------------------------


def test_something_newer_has_what_another_process_releases_aborted_and_goes_on(
    project: EngineProject,
) -> None:
    spec(project, "1.0.0").apply()
    slow(project, "2.0.0")
    with driving(project, "preparing") as other:
        pass_on = spec(project, "3.0.0")
        code, said = pass_on.command("apply", "spec.yaml")
        assert (code, serving(project)) == (0, "3.0.0"), said
        assert ended(other)[0] == 7
    lines = said.splitlines()
    assert re.fullmatch(
        rf"locked by ada@\S+ \(process {other.pid}, `shipctl apply spec.yaml`\) since .*; asking that process to abort "
        r"release 2 for 3\.0\.0",
        lines[0],
    ), said
    assert re.fullmatch(
        r"2\.0\.0 \(\w{12}\) rolled-back on shelf: aborted: superseded by 3\.0\.0, by ada@\S+; 1\.0\.0 serves",
        [line for line in lines if line.startswith("2.0.0")][-1],
    ), said
    assert phases(project) == [("1.0.0", "done"), ("2.0.0", "rolled-back"), ("3.0.0", "done")]


def test_the_process_that_is_superseded_says_by_what_and_ends_with_7_also_before_any_traffic(
    project: EngineProject,
) -> None:
    slow(project, "2.0.0")
    with driving(project, "preparing") as other:
        assert spec(project, "3.0.0").command("apply")[0] == 0
        code, said = ended(other)
    assert code == 7
    assert re.search(
        r"^error: d: aborted: superseded by 3\.0\.0, by ada@\S+; nothing serves$", said, re.MULTILINE
    )


def test_what_is_the_same_is_waited_for_and_then_has_nothing_to_do(project: EngineProject) -> None:
    slow(project, "2.0.0", wait=0.8)
    with driving(project, "preparing") as other:
        code, said = project.command("apply", "spec.yaml")
        assert code == 0, said
        assert ended(other)[0] == 0
    assert re.search(r"; waiting for release 1 of 2\.0\.0, which is \w+$", said, re.MULTILINE)
    assert re.search(r"^2\.0\.0 \(\w{12}\) done on shelf: done 2\.0\.0$", said, re.MULTILINE)
    assert "2.0.0 serves on shelf" in said
    assert phases(project) == [("2.0.0", "done")]


def test_going_back_to_what_serves_has_the_candidate_aborted_and_releases_nothing(
    project: EngineProject,
) -> None:
    spec(project, "1.0.0").apply()
    slow(project, "2.0.0")
    with driving(project, "preparing") as other:
        assert spec(project, "1.0.0").command("apply")[0] == 0
        assert ended(other)[0] == 7
    assert phases(project) == [("1.0.0", "done"), ("2.0.0", "rolled-back")]


def test_queue_waits_for_the_end_of_what_is_released(project: EngineProject) -> None:
    slow(project, "2.0.0", wait=0.5)
    with driving(project, "preparing") as other:
        code, said = spec(project, "3.0.0").command("apply", "--if-running", "queue")
        assert (code, ended(other)[0]) == (0, 0), said
    assert phases(project) == [("2.0.0", "done"), ("3.0.0", "done")]


def test_refuse_ends_with_8_and_leaves_it_alone(project: EngineProject) -> None:
    slow(project, "2.0.0")
    with driving(project, "preparing"):
        code, said = spec(project, "3.0.0").command("apply", "--if-running", "refuse")
        assert code == 8
        assert said.startswith("error: locked by ada@")
        assert phase(project) == "preparing"


def test_what_is_promoted_and_only_watched_stays_so_and_its_watch_ends(project: EngineProject) -> None:
    spec(project, "1.0.0").apply()
    spec(project, "2.0.0", "watch: 2")
    with driving(project, "watching") as other:
        code, said = spec(project, "3.0.0").command("apply")
        assert code == 0, said
        assert ended(other)[0] == 0
    assert phases(project) == [("1.0.0", "done"), ("2.0.0", "done"), ("3.0.0", "done")]


def test_nothing_is_aborted_for_what_waits_for_an_approval_itself(project: EngineProject, be: Become) -> None:
    governed(spec(project, "3.0.0", approval="{roles: [owner]}"))
    assert project.command("apply", "--until", "a")[0] == 0
    slow(project, "2.0.0")
    with driving(project, "preparing") as other:
        spec(project, "3.0.0", approval="{roles: [owner]}")
        code, said = project.command("apply")
        assert (code, phase(project)) == (6, "preparing"), said
        assert "waits for an approval by owner, for release " in said
        be("carol")
        approve(project)
        be("ada")
        code, said = project.command("apply")
        assert (code, serving(project)) == (0, "3.0.0"), said
        assert ended(other)[0] == 7


def test_what_is_not_known_before_its_stages_have_run_and_needs_an_approval_waits(
    project: EngineProject,
) -> None:
    slow(project, "2.0.0")
    with driving(project, "preparing"):
        spec(project, "3.0.0", approval="{roles: [owner]}")
        code, said = project.command("apply", "--lock-timeout", "1s")
        assert (code, phase(project)) == (8, "preparing")
        assert "; waiting for release 1 of 2.0.0, which is preparing" in said


def test_nothing_is_aborted_for_what_was_rolled_back_before(project: EngineProject) -> None:
    spec(project, "1.0.0").apply()
    spec(project, "2.0.0", "fail_at: shifting").apply()
    slow(project, "3.0.0")
    with driving(project, "preparing"):
        code, said = spec(project, "2.0.0", "fail_at: shifting").command("apply")
        assert code == 7
        assert "(2.0.0) was rolled back on " in said
        assert phase(project) == "preparing"


def test_what_was_begun_after_a_command_is_not_aborted_by_it(project: EngineProject) -> None:
    slow(project, "2.0.0")
    with driving(project, "preparing") as first:
        spec(project, "3.0.0")
        with project.start("apply", "spec.yaml") as older:
            assert older.stdout is not None
            assert "asking that process to abort release 1 for 3.0.0" in older.stdout.readline()
            older.send_signal(signal.SIGSTOP)
            assert ended(first)[0] == 7
            slow(project, "4.0.0")
            with driving(project, "preparing") as newer:
                older.send_signal(signal.SIGCONT)
                code, said = ended(older)
                assert phases(project)[-1] == ("4.0.0", "preparing")
                newer.kill()
    assert code == 8, said
    assert (
        "release 2 of 4.0.0 was begun after this command, which does not supersede what is newer; run it again for that"
        in said
    )


def test_a_process_that_does_not_listen_is_named_after_a_while(
    project: EngineProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shipctl.release.leaving.PATIENCE", 1.0)
    slow(project, "2.0.0")
    with driving(project, "preparing") as other:
        time.sleep(0.5)  # so that it waits for its next step, and holds no lock of a file
        other.send_signal(signal.SIGSTOP)
        code, said = spec(project, "3.0.0").command("apply")
        other.send_signal(signal.SIGCONT)
    assert code == 8
    assert re.search(
        rf"^error: locked by ada@\S+ \(process {other.pid}, .*; it was asked to abort release 1 of 2\.0\.0, which is "
        r"preparing still: look for that process, and end it$",
        said,
        re.MULTILINE,
    ), said


def test_a_rollback_has_what_is_released_aborted_and_goes_no_further_back(project: EngineProject) -> None:
    spec(project, "1.0.0").apply()
    spec(project, "2.0.0").apply()
    slow(project, "3.0.0")
    with driving(project, "preparing") as other:
        code, said = project.command("rollback")
        assert (code, serving(project)) == (0, "2.0.0"), said
        assert ended(other)[0] == 7
    assert phases(project)[-1] == ("3.0.0", "rolled-back")
    assert len(phases(project)) == 3


def test_a_rollback_to_a_version_goes_on_to_it(project: EngineProject) -> None:
    spec(project, "1.0.0").apply()
    spec(project, "2.0.0").apply()
    slow(project, "3.0.0")
    with driving(project, "preparing"):
        code, said = spec(project, "3.0.0").command("rollback", "--to", "1.0.0")
        assert (code, serving(project)) == (0, "1.0.0"), said


def test_a_rollback_is_waited_for_by_a_newer_release(project: EngineProject) -> None:
    spec(project, "1.0.0").apply()
    spec(project, "2.0.0").apply()
    slow(project, "2.0.0", wait=0.6)
    with project.start("rollback", "spec.yaml") as other:
        wait_for(lambda: len(phases(project)) == 3, 20)
        code, said = spec(project, "3.0.0").command("apply")
        assert code == 0, said
        assert ended(other)[0] == 0
    assert phases(project)[2:] == [("1.0.0", "done"), ("3.0.0", "done")]


# -- from another machine --------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(project: EngineProject, tmp_path: Path) -> EngineProject:
    """Another checkout, with its own lock and store; only the target is the same."""
    (tmp_path / "target").mkdir()
    return EngineProject(tmp_path / "elsewhere")


def there(project: EngineProject, version: str, options: str = "wait: 0") -> EngineProject:
    """Write a spec whose target and store are the same on every machine."""
    place = project.root.parent
    head = f"store: {{uri: {place / 'store'}}}"
    return gated(project, version, approval="", head=head, options=f"shared: {place / 'target'}, {options}")


def shared(project: EngineProject) -> list[tuple[str, str]]:
    return [(item.version, str(item.phase)) for item in records(project.root.parent / "target")]


@contextmanager
def driven(project: EngineProject) -> Iterator[subprocess.Popen[str]]:
    with project.start("apply", "spec.yaml") as process:
        try:
            wait_for(lambda: shared(project)[-1:] and shared(project)[-1][1] == "preparing", 20)
            yield process
        finally:
            process.kill()


def test_a_process_of_another_machine_hears_by_the_records_that_it_is_superseded(
    project: EngineProject, elsewhere: EngineProject
) -> None:
    there(elsewhere, "2.0.0", "wait: 30")
    with driven(elsewhere) as other:
        code, said = there(project, "3.0.0").command("apply")
        assert code == 0, said
        code, told = ended(other)
    assert code == 7, told
    assert "aborted: superseded by 3.0.0, by ada@" in told
    assert re.search(
        rf"driven by ada@\S+ \(process {other.pid}\); asking that process to abort release 1 for 3\.0\.0$",
        said,
        re.MULTILINE,
    ), said
    assert shared(project) == [("2.0.0", "rejected"), ("3.0.0", "done")]


def test_an_abort_is_heard_on_another_machine(project: EngineProject, elsewhere: EngineProject) -> None:
    there(elsewhere, "2.0.0", "wait: 30")
    there(project, "2.0.0", "wait: 30")
    with driven(elsewhere) as other:
        code, said = project.command("abort", "--reason", "wrong build")
        assert code == 0, said
        assert ended(other)[0] == 7
    assert "asking that process to abort release 1\n" in said
    assert "wrong build" in said
    assert "shipctl abort" not in project.command("history")[1].partition("runs:")[2]


def test_refuse_on_another_machine_names_who_releases(
    project: EngineProject, elsewhere: EngineProject
) -> None:
    there(elsewhere, "2.0.0", "wait: 30")
    with driven(elsewhere) as other:
        code, said = there(project, "3.0.0").command("apply", "--if-running", "refuse")
        assert code == 8
        assert re.search(
            rf"driven by ada@\S+ \(process {other.pid}\); it releases 2\.0\.0 to shelf, which is preparing; wait for "
            r"it with `--if-running queue`, or end it with `shipctl abort`$",
            said,
            re.MULTILINE,
        ), said


@pytest.mark.parametrize("goes_on", [False, True], ids=["silent", "goes on"])
def test_whether_a_process_of_another_machine_goes_on_is_looked_at_before_it_is_refused(
    project: EngineProject, elsewhere: EngineProject, monkeypatch: pytest.MonkeyPatch, goes_on: bool
) -> None:
    monkeypatch.setattr(standing_by, "SILENCE", 1.0)
    store = left_by_another_machine(elsewhere)
    there(project, "2.0.0", "wait: 0")
    with ThreadPoolExecutor(1) as other:
        if goes_on:
            other.submit(touched, store)
        code, said = project.command("watch")
    assert code == (8 if goes_on else 0), said
    assert "driven by ada@far-away (process 1); looking for 1 s whether that goes on" in said
    assert shared(project)[-1] == ("2.0.0", "preparing" if goes_on else "done")


def left_by_another_machine(project: EngineProject) -> FileRecords:
    """Leave a release whose driver is of a machine that cannot be looked at."""
    there(project, "2.0.0", "wait: 30")
    with driven(project):
        pass
    store = FileRecords(project.root.parent / "target", "demo", "d")
    found, etag = store.load()
    assert found.latest is not None
    store.save(found.put(found.latest.model_copy(update={"driver": "far-away:1:1:boot"})), etag)
    return store


def touched(store: FileRecords) -> None:
    """Take a step, as the other machine does."""
    time.sleep(0.5)
    found, etag = store.load()
    assert found.latest is not None
    store.save(found.put(found.latest.model_copy(update={"message": "a step further"})), etag)


def test_a_machine_that_says_nothing_any_more_is_not_waited_for(
    project: EngineProject, elsewhere: EngineProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is of another machine, so nobody here can tell whether the process lives."""
    monkeypatch.setattr(standing_by, "SILENCE", 0.5)
    left_by_another_machine(elsewhere)
    there(project, "3.0.0").apply()
    assert shared(project)[-1] == ("3.0.0", "done")


def test_a_process_of_this_machine_that_was_killed_is_not_waited_for_at_all(
    project: EngineProject, elsewhere: EngineProject
) -> None:
    there(elsewhere, "2.0.0", "wait: 30")
    with driven(elsewhere):
        pass
    run = there(project, "3.0.0").apply()
    assert run.code == 0
    assert not [line for line in run.log if "asking" in line or "waiting" in line]
    assert any("aborting it for 3.0.0" in line for line in run.log)
