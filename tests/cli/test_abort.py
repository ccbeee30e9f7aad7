"""`shipctl abort`, with another process driving or with none, and `status --watch`."""

from __future__ import annotations

import io
import json
import re
import time

import pytest
from rich.console import Console

from shipctl.cli.watching import screen
from shipctl.engine import operations
from shipctl.engine.journal import Journal
from shipctl.release.records import AbortWish, FileRecords
from shipctl.stages.verdicts import Outcome, Verdict
from support_approvals import Become, be, gated
from support_engine import EngineProject, project, test_stages, wait_for

pytestmark = pytest.mark.slow

__all__ = ["be", "project", "test_stages"]


@pytest.fixture(autouse=True)
def ada(be: Become) -> None:
    """Whoever calls in these tests is ada, on this machine."""


def slow(project: EngineProject, version: str, wait: float = 30) -> EngineProject:
    return gated(project, version, approval="", options=f"wait: {wait}")


def serving(project: EngineProject) -> str | None:
    found = project.serving()
    return found["version"] if found else None


def phase(project: EngineProject) -> str:
    path = project.state / "targets" / "shelf" / "releases" / "demo" / "d.json"
    records = json.loads(path.read_bytes())["records"] if path.exists() else []
    return str(records[-1]["phase"]) if records else ""


def test_a_process_that_drives_a_release_is_asked_to_abort_it(project: EngineProject) -> None:
    gated(project, "1.0.0", approval="").apply()
    slow(project, "2.0.0")
    with project.start("apply", "spec.yaml") as apply:
        wait_for(lambda: phase(project) == "preparing", 20)
        asked = time.monotonic()
        code, said = project.command("abort", "spec.yaml", "--reason", "looks slow")
        assert time.monotonic() - asked < 15, "its next step was half a minute away"
        assert apply.wait(20) == 7
        told = apply.communicate()[0]
    assert code == 0, said
    assert re.search(
        rf"^locked by \S+ \(process {apply.pid}, `shipctl apply spec.yaml`\) .*; asking that process to abort "
        r"release 2$",
        said,
        re.MULTILINE,
    )
    assert re.search(
        r"^2\.0\.0 \(\w{12}\) rolled-back on shelf: aborted: by ada@\S+: looks slow; 1\.0\.0 serves$",
        said,
        re.MULTILINE,
    )
    assert re.search(r"aborted: by ada@\S+: looks slow", told)
    assert len(operations.history(project.path)) == 2
    assert "shipctl abort" not in project.command("history")[1].partition("runs:")[2], (
        "the other process did it"
    )
    assert serving(project) == "1.0.0"
    assert FileRecords(project.state / "targets" / "shelf", "demo", "d").load()[0].abort is None
    code, said = project.command("apply", "spec.yaml")
    assert code == 7
    assert "was rolled back on" in said


def test_without_one_the_steps_are_taken_here(project: EngineProject) -> None:
    gated(project, "1.0.0", approval="").apply()
    gated(project, "2.0.0", approval="", options="fail_at: promoting, fail_how: pause").apply()
    code, said = project.command("abort", "spec.yaml", "--json")
    assert code == 0, said
    document = json.loads(said[said.index("{\n") :])
    assert (document["schema"], document["phase"], document["version"]) == (
        "shipctl.abort/1",
        "rolled-back",
        "2.0.0",
    )
    assert (document["exit_code"], document["number"], document["target"]) == (0, 2, "shelf")
    assert document["run"]
    assert document["message"].startswith("aborted: by ada@")
    assert serving(project) == "1.0.0"


def test_a_release_whose_driver_was_killed_is_aborted_here(project: EngineProject) -> None:
    gated(project, "1.0.0", approval="").apply()
    gated(project, "2.0.0", approval="")
    kill = {"SHIPCTL_TEST_KILL": "hook release_stepped shifting"}
    assert project.shipctl("apply", "spec.yaml", environ=kill)[0] == -9
    assert project.command("abort")[0] == 0
    assert (phase(project), serving(project)) == ("rolled-back", "1.0.0")


def test_with_nothing_under_way_it_says_so(project: EngineProject) -> None:
    gated(project, "1.0.0", approval="")
    for _ in range(2):
        code, said = project.command("abort")
        assert (code, said) == (2, "error: no release of demo is under way, so there is nothing to abort\n")
        project.apply()


def test_a_first_release_ends_with_nothing_serving(project: EngineProject) -> None:
    gated(project, "1.0.0", approval="", options="fail_at: promoting, fail_how: pause").apply()
    assert project.command("abort")[0] == 0
    assert (phase(project), serving(project)) == ("rejected", None)


def test_an_old_wish_aborts_nothing_later(project: EngineProject) -> None:
    gated(project, "1.0.0", approval="").apply()
    store = FileRecords(project.state / "targets" / "shelf", "demo", "d")
    records, etag = store.load()
    store.save(records.model_copy(update={"abort": AbortWish(number=1, reason="old")}), etag)
    assert gated(project, "2.0.0", approval="").apply().code == 0
    assert store.load()[0].abort is None


def test_an_abort_that_fails_says_so(project: EngineProject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shipctl.engine.driving.ABORT_DELAY", 0.001)
    options = "fail_at: promoting, fail_how: pause, fail_aborts: 9"
    gated(project, "1.0.0", approval="", options=options).apply()
    assert project.command("abort")[0] == 1
    assert phase(project) == "aborting"


# -- status --watch --------------------------------------------------------------------------------------------------


def test_status_is_watched_until_the_release_is_over(project: EngineProject) -> None:
    gated(project, "1.0.0", approval="").apply()
    slow(project, "2.0.0", wait=0.6)
    with project.start("apply", "spec.yaml") as apply:
        wait_for(lambda: phase(project) == "preparing", 20)
        code, said = project.command("status", "--watch", "--interval", "100ms")
        assert apply.wait(20) == 0
    assert code == 0
    phases = re.findall(
        r"^\d\d:\d\d:\d\d d on shelf: release of 2\.0\.0 \(\w{12}\) (\w+): ", said, re.MULTILINE
    )
    assert phases == ["preparing", "preflight", "shifting", "promoting", "done"]
    assert re.search(
        r"^\d\d:\d\d:\d\d d on shelf: demo 1\.0\.0 \(\w{12}\) healthy  weight=\w{8}$", said, re.MULTILINE
    )
    assert re.search(r"^d on shelf: demo 2\.0\.0, healthy$", said, re.MULTILINE), "and what serves at the end"


def test_with_nothing_under_way_watching_ends_at_once(project: EngineProject) -> None:
    gated(project, "1.0.0", approval="").apply()
    code, said = project.command("status", "--watch", "--json")
    assert code == 0
    assert json.loads(said)["targets"][0]["last"]["phase"] == "done"


def test_gates_are_shown_as_they_were_asked_last(project: EngineProject) -> None:
    gated(project, "1.0.0", approval="").apply()
    passed = Verdict(gate="slow", outcome=Outcome.PASS, message="slow requests: 1 %", metric="slow")
    unknown = Verdict(gate="slow", outcome=Outcome.INCONCLUSIVE, message="nothing is known yet")
    samples = Verdict(gate="samples", outcome=Outcome.INCONCLUSIVE, message="no request")
    error_rate = Verdict(gate="error_rate", outcome=Outcome.PASS, message="0 %")
    with Journal(project.state / "journal.db") as journal:
        run = journal.runs(limit=1)[0].id
        for verdict in (samples, error_rate, unknown, error_rate, passed):
            journal.record_verdict(run, "d", verdict, 0.0)
    [found] = operations.status(project.root / "spec.yaml")
    assert found.verdicts == (error_rate, passed)


def test_on_a_terminal_what_is_amiss_comes_first_and_digests_are_left_out(project: EngineProject) -> None:
    gated(project, "1.0.0", approval="").apply()
    [found] = operations.status(project.root / "spec.yaml")
    serving = found.serving[0].model_copy(update={"details": {"artifact": "a" * 64, "traffic": "90 %"}})
    verdicts = (
        Verdict(gate="error_rate", outcome=Outcome.PASS, message="0 % of 96 requests failed"),
        Verdict(gate="latency.p95", outcome=Outcome.FAIL, message="latency.p95 is too large\x1b[2J"),
    )
    console = Console(file=io.StringIO(), width=90)
    console.print(*screen(found._replace(serving=(serving,), verdicts=verdicts), "12:00:00"))
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert re.fullmatch(r"12:00:00  d on shelf: release of 1\.0\.0 \(\w{12}\) done", lines[0])
    assert re.fullmatch(r"  demo 1\.0\.0 \(\w{12}\) healthy  traffic=90 %", lines[2])
    assert lines[3:] == [
        "  fail latency.p95 is too large",
        "  pass error_rate  0 % of 96 requests failed",
    ]
