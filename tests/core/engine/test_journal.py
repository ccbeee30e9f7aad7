"""The journal: written before and after, whole at any time, shared by threads and processes."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import pytest

from shipctl.engine.journal import Journal, ProcessRow, RunRow, StageRow, StepRow
from shipctl.stages.verdicts import compare


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "state" / "journal.db")


def run_row(name: str, started: float, pipeline: str = "demo") -> RunRow:
    return RunRow(
        name, pipeline, "1.0.0", "spec.yaml", "apply", "me", "here", "plan", started, None, None, None
    )


def stage_row(run: str, node: str, status: str, started: float = 1.0) -> StageRow:
    return StageRow(run, node, node, "make", 1, status, "", ["why", "else"], "f" * 64, started, 0.5, 10)


def test_runs_come_newest_first(journal: Journal) -> None:
    journal.begin_run(run_row("one", 1))
    journal.begin_run(run_row("two", 2, "other"))
    journal.begin_run(run_row("three", 3))
    journal.end_run("one", 9.0, 4, "rejected")
    assert [row.id for row in journal.runs()] == ["three", "two", "one"]
    assert [row.id for row in journal.runs(1, pipeline="demo")] == ["three"]
    first = journal.run("one")
    assert first is not None
    assert (first.finished, first.exit_code, first.message) == (9.0, 4, "rejected")
    unfinished = journal.run("three")
    assert unfinished is not None
    assert unfinished.finished is None
    assert journal.run("none") is None


def test_a_stage_is_recorded_once_per_run_as_it_stands(journal: Journal) -> None:
    for status in ("running", "done"):
        journal.record_stage(stage_row("r", "a", status))
        journal.record_stage(stage_row("r", "b", "running", started=2.0))
    assert [(row.node, row.status, row.reasons) for row in journal.stages("r")] == [
        ("a", "done", ["why", "else"]), ("b", "running", ["why", "else"]),
    ]  # fmt: skip


def test_verdicts_keep_every_number(journal: Journal) -> None:
    for value in (1.5, None, math.nan, math.inf):
        journal.record_verdict("r", "a", compare("g", value, "<=", 2.0), 1.0)
    shown = [(str(verdict.outcome), str(verdict.value)) for _, verdict in journal.verdicts("r")]
    assert shown == [("pass", "1.5"), ("error", "None"), ("error", "nan"), ("error", "inf")]


def test_steps_are_in_order(journal: Journal) -> None:
    for number in range(5):
        journal.record_step(StepRow("r" if number else "q", "d", "t", "rev", f"p{number}", "", number))
    assert [step.phase for step in journal.steps("r")] == ["p1", "p2", "p3", "p4"]
    assert [step.phase for step in journal.steps(limit=2)] == ["p3", "p4"]


def test_a_transaction_is_all_or_nothing(journal: Journal) -> None:
    def interrupted() -> None:
        with journal.transaction():
            journal.record_stage(stage_row("r", "a", "done"))
            journal.remember_components("demo", "a", {"x": 1})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert journal.stages("r") == []
    assert journal.components("demo") == {}
    journal.record_stage(stage_row("r", "a", "done"))
    assert len(journal.stages("r")) == 1


def test_components_and_processes_are_the_last_said(journal: Journal) -> None:
    journal.remember_components("demo", "a", {"x": 1})
    journal.remember_components("demo", "a", {"x": 2})
    journal.remember_components("other", "a", {"x": 3})
    assert journal.components("demo") == {"a": {"x": 2}}
    journal.add_process(ProcessRow(12, "34", "boot", "r"))
    assert list(journal.processes()) == [ProcessRow(12, "34", "boot", "r")]
    journal.remove_process(12)
    assert list(journal.processes()) == []


def test_threads_and_another_connection_write_at_once(journal: Journal, tmp_path: Path) -> None:
    other = Journal(tmp_path / "state" / "journal.db")

    def write(target: Journal, name: str) -> None:
        for number in range(25):
            with target.transaction():
                target.record_stage(stage_row("r", f"{name}{number}", "done"))

    threads = [
        threading.Thread(target=write, args=(j, n)) for j, n in ((journal, "a"), (journal, "b"), (other, "c"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(other.stages("r")) == 75
    other.close()
