"""A store that several runners share: what one has made or measured, another does not make again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Protocol

import pytest

from shipctl.engine import fingerprint
from support_engine import EngineProject

CHAIN = """
    - {id: a, uses: make-worker, with: {text: aa, label: a}}
    - {id: b, uses: append, with: {add: b, label: b}}
    - {id: k, uses: check, with: {label: k}}
    """
MEASURED = """
    - {id: a, uses: make, with: {text: aa, label: a}}
    - {id: m, uses: measure, with: {label: m}}
    - {id: d, uses: file-deploy, approval: {required: true}}
    """


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    return tmp_path / "shared"


class Runners(Protocol):
    def __call__(self, name: str, stages: str = CHAIN, head: str | None = None) -> EngineProject: ...


@pytest.fixture
def runner(tmp_path: Path, shared: Path, test_stages: None, monkeypatch: pytest.MonkeyPatch) -> Runners:
    """Makes the project of one more runner: the same spec, and nothing else."""

    def make(name: str, stages: str = CHAIN, head: str | None = None) -> EngineProject:
        project = EngineProject(tmp_path / name)
        monkeypatch.setenv("SHIPCTL_TEST_TRACE", str(project.trace_file))
        return project.spec(stages, head=f"store: '{shared}'" if head is None else head)

    return make


def elsewhere(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """Let this be another machine from now on."""
    monkeypatch.setattr(fingerprint, "host_fingerprint", lambda: host)
    monkeypatch.setattr("shipctl.engine.runstate.host_fingerprint", lambda: host)


def test_what_one_runner_has_made_another_takes_over(runner: Runners, shared: Path) -> None:
    assert runner("one").apply().ran == ["a", "b", "k"]
    two = runner("two")
    assert two.actions() == {"a": "cached", "b": "cached", "k": "cached"}
    run = two.apply()
    assert (run.code, run.ran) == (0, [])


def test_what_was_taken_over_and_never_used_is_still_known_in_the_next_run(runner: Runners) -> None:
    runner("one").apply()
    two = runner("two")
    two.apply()
    assert two.apply().ran == []


@pytest.mark.slow
def test_files_are_fetched_when_a_new_stage_needs_them(runner: Runners, shared: Path) -> None:
    runner("one").apply()
    two = runner(
        "two",
        CHAIN
        + """- {id: c, uses: append-worker, needs: b, with: {add: c, label: c}}
    """,
    )
    run = two.apply()
    assert (run.code, run.ran) == (0, ["c"])
    blobs = [path.read_text() for path in (two.state / "store" / "blobs").rglob("*") if path.is_file()]
    assert "aabc" in blobs


def test_a_damaged_file_of_the_shared_store_is_made_again(runner: Runners, shared: Path) -> None:
    runner("one").apply()
    for path in (shared / "blobs").rglob("*"):
        if path.is_file() and path.read_bytes() == b"aab":
            path.chmod(0o644)
            path.write_bytes(b"xab")
    two = runner(
        "two",
        CHAIN
        + """- {id: c, uses: append, needs: b, with: {add: c, label: c}}
    """,
    )
    run = two.apply()
    assert run.code == 0
    assert run.ran == ["b", "c"]
    assert any("damaged" in line for line in run.log)


@pytest.mark.slow
def test_a_lost_file_of_the_shared_store_is_made_again(runner: Runners, shared: Path) -> None:
    runner("one").apply()
    shutil.rmtree(shared / "blobs")
    two = runner("two")
    assert two.apply().ran == ["a", "b", "k"]
    assert runner("three").apply().ran == []


@pytest.mark.slow
def test_sharing_can_be_switched_off(runner: Runners, shared: Path) -> None:
    runner("one", head=f"store: {{uri: '{shared}', cache: false}}").apply()
    assert not (shared / "results").exists()
    assert runner("two").apply().ran == ["a", "b", "k"]


def test_a_store_that_cannot_be_written_to_is_told_once_and_the_run_goes_on(
    runner: Runners, tmp_path: Path
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    run = runner("one", head=f"store: '{blocked}/store'").apply()
    assert (run.code, run.ran) == (0, ["a", "b", "k"])
    assert len(run.result.warnings) == 1
    assert "results are not shared, the run goes on alone" in run.result.warnings[0]


@pytest.mark.slow
def test_the_environment_names_the_store_of_a_spec_that_names_none(
    runner: Runners, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHIPCTL_STORE", str(shared))
    runner("one", head="").apply()
    assert runner("two", head="").apply().ran == []


def test_a_run_that_waits_goes_on_elsewhere_with_what_was_measured(
    runner: Runners, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(monkeypatch, "machine one")
    first = runner("one", MEASURED).apply()
    assert (first.code, first.ran) == (6, ["a", "m"])
    elsewhere(monkeypatch, "machine two")
    second = runner("two", MEASURED).apply()
    assert (second.code, second.ran) == (6, [])
    elsewhere(monkeypatch, "machine three")
    assert runner("three", MEASURED).apply().ran == []


def test_another_plan_measures_for_itself_on_another_machine(
    runner: Runners, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(monkeypatch, "machine one")
    runner("one", MEASURED).apply()
    elsewhere(monkeypatch, "machine two")
    two = runner(
        "two",
        MEASURED.replace("- {id: d", "- {id: k, uses: check, with: {label: k}}\n    - {id: d"),
    )
    assert two.apply().ran == ["m", "k"]


def test_a_measurement_that_is_made_again_replaces_the_shared_one(
    runner: Runners, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shipctl_test_stages.checks import Measure

    runner("one", MEASURED).apply()
    monkeypatch.setattr(Measure, "max_age", 0.0)
    assert runner("two", MEASURED).apply().ran == ["m"]
    monkeypatch.setattr(Measure, "max_age", 3600.0)
    assert runner("three", MEASURED).apply().ran == []


def test_secrets_never_reach_the_shared_store(
    runner: Runners, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "hunter2-Xy7+pQ9zzz")
    project = runner(
        "one",
        '- {id: s, uses: misbehave, with: {how: print-secret, secret: "${{ secrets.token }}"}}',
        head=f"store: '{shared}'\nsecrets: {{token: {{env: TOKEN}}}}",
    )
    project.apply()
    for path in shared.rglob("*"):
        assert not path.is_file() or b"hunter2" not in path.read_bytes()
