"""Retries, timeouts, resources, measurements, interrupts; and the journal of it all."""

from __future__ import annotations

import signal
import time
import uuid
from typing import Any

import pytest

from shipctl.engine.journal import Journal
from support_engine import EngineProject, processes_with, wait_for


def flaky(project: EngineProject, retry: str, options: str = "") -> EngineProject:
    return project.spec(
        f"- {{id: f, uses: flaky, retry: {retry}, with: {{counter: {project.root / 'counter'}, label: f{options}}}}}"
    )


def test_an_error_is_tried_again_with_growing_delays(project: EngineProject) -> None:
    run = flaky(project, "{attempts: 4, delay: 20ms, backoff: 3}", ", failures: 3").apply()
    assert (run.code, run.ran) == (0, ["f"] * 4)
    assert run.log == [
        "f: attempt 1 of 4 failed: attempt 1 failed; trying again in 0.02s",
        "f: attempt 2 of 4 failed: attempt 2 failed; trying again in 0.06s",
        "f: attempt 3 of 4 failed: attempt 3 failed; trying again in 0.18s",
    ]
    journal = Journal(project.state / "journal.db")
    assert [(row.attempt, row.status) for row in journal.stages(run.result.run)] == [(4, "done")]
    journal.close()


def test_attempts_come_to_an_end(project: EngineProject) -> None:
    run = flaky(project, "{attempts: 2, delay: 1ms}", ", failures: 5").apply()
    assert (run.code, len(run.ran), run.messages["f"]) == (1, 2, "attempt 2 failed")


def test_the_no_of_a_gate_is_never_asked_again(project: EngineProject) -> None:
    run = flaky(project, "{attempts: 3, delay: 1ms}", ", gate: true").apply()
    assert (run.code, len(run.ran), run.statuses["f"]) == (4, 1, "rejected")


def test_a_verdict_against_is_never_asked_again(project: EngineProject) -> None:
    run = project.spec("- {uses: make}\n- {id: k, uses: check, retry: 3, with: {max: 0, label: k}}").apply()
    assert (run.code, run.ran) == (4, ["", "k"])


def test_a_bug_of_the_plugin_is_not_tried_again(project: EngineProject) -> None:
    run = project.spec(
        "- {id: p, uses: misbehave-inline, retry: 3, with: {how: plugin-error, label: p}}"
    ).apply()
    assert (run.code, run.ran) == (3, ["p"])


def test_without_retry_a_stage_runs_once(project: EngineProject) -> None:
    assert flaky(project, "1").apply().ran == ["f"]


# -- side by side ----------------------------------------------------------------------------------------------


def widest(trace: list[str]) -> int:
    """Return how many stages were at work at once."""
    now = most = 0
    for line in trace:
        now += line.startswith("begin ") - line.startswith("end ")
        most = max(most, now)
    return most


def sleepers(project: EngineProject, resources: str, seconds: float) -> EngineProject:
    rest = f"uses: sleep, needs: []{resources}, with: {{seconds: {seconds}"
    return project.spec("\n".join(f"- {{id: s{n}, {rest}, label: s{n}}}}}" for n in range(3)))


@pytest.mark.parametrize(("jobs", "resources", "width"), [
    (3, "", 3), (1, "", 1), pytest.param(2, ", resources: {cpu: 64}", 1, marks=pytest.mark.slow),
    pytest.param(4, ", resources: {cpu: 2}", 2, marks=pytest.mark.slow),
])  # fmt: skip
def test_independent_stages_run_side_by_side_within_the_machine(
    project: EngineProject, jobs: int, resources: str, width: int
) -> None:
    assert sleepers(project, resources, 0.5 if width > 1 else 0.05).apply(jobs=jobs).code == 0
    assert widest(project.trace()) == width


def test_a_measurement_runs_alone(project: EngineProject) -> None:
    project.spec(
        """
        - {id: a, uses: make}
        - {id: m1, uses: measure, needs: a, with: {label: m1}}
        - {id: s1, uses: sleep, needs: [], with: {seconds: 0.2, label: s1}}
        - {id: m2, uses: measure, needs: a, with: {label: m2}}
        - {id: s2, uses: sleep, needs: [], with: {seconds: 0.2, label: s2}}
        """
    )
    assert project.apply(jobs=4).code == 0
    trace = [line for line in project.trace() if line.startswith(("begin", "end"))]
    running: list[str] = []
    for line in trace:
        verb, _, name = line.partition(" ")
        if verb == "end":
            running.remove(name)
            continue
        assert not running or not any(item.startswith("m") for item in (name, *running)), trace
        running.append(name)


def test_a_measurement_that_is_too_old_is_taken_again(
    project: EngineProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shipctl_test_stages.checks import Measure

    monkeypatch.setattr(Measure, "max_age", 0.3)
    project.spec("- {id: a, uses: make}\n- {id: m, uses: measure, with: {label: m}}")
    first = project.apply().metrics["m"]
    assert project.apply().metrics["m"] == first
    time.sleep(0.35)
    assert project.reasons()["m"] == ["its outputs are gone, damaged or too old"]
    run = project.apply()
    assert run.ran == ["m"]
    assert run.metrics["m"] != first
    again = project.apply()
    assert (again.ran, again.metrics["m"]) == ([], run.metrics["m"])


def test_a_measurement_of_another_host_does_not_count(
    project: EngineProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shipctl.engine import fingerprint

    project.spec("- {id: a, uses: make}\n- {id: m, uses: measure, with: {label: m}}").apply()
    monkeypatch.setattr(fingerprint, "host_fingerprint", lambda: "another")
    assert project.to_run() == ["m"]


def test_peak_memory_is_measured_in_a_worker(project: EngineProject) -> None:
    run = project.spec("- {id: w, uses: make-worker}").apply()
    journal = Journal(project.state / "journal.db")
    (row,) = journal.stages(run.result.run)
    journal.close()
    assert row.peak_memory is not None
    assert 5e6 < row.peak_memory < 1e9


def test_workers_are_used_again(project: EngineProject) -> None:
    project.spec(
        "- {id: a, uses: make-worker}\n- {id: b, uses: append-worker}\n- {id: c, uses: append-worker}"
    )
    began = time.monotonic()
    run = project.apply()
    assert run.code == 0
    ends = [e for e in run.events if e.event == "stage_finished"]
    assert ends[2].seconds < ends[0].seconds, f"the third did not start a worker ({time.monotonic() - began})"


# -- the exit code ---------------------------------------------------------------------------------------------


def test_the_worst_end_decides_the_exit_code(project: EngineProject) -> None:
    stages = {
        "gate": "misbehave-inline, with: {how: gate-error}",
        "error": "misbehave-inline, with: {how: raise}",
        "plugin": "misbehave-inline, with: {how: plugin-error}",
    }
    for names, code in ((["gate"], 4), (["gate", "error"], 1), (["gate", "error", "plugin"], 3)):
        project.spec("\n".join(f"- {{id: {name}, needs: [], uses: {stages[name]}}}" for name in names))
        assert project.apply().code == code


# -- interrupts ------------------------------------------------------------------------------------------------

LONG = """
    - {id: a, uses: make, with: {label: a}}
    - {id: s, uses: sleep, with: {seconds: SECONDS, label: s}, needs: []}
    - {id: b, uses: append, needs: s, with: {label: b}}
    - {id: d, uses: file-deploy, needs: a, with: {wait: WAIT}}
    """


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_an_interrupt_exits_with_130_leaves_nothing_and_is_gone_on_with(
    project: EngineProject, number: int
) -> None:
    project.spec(LONG.replace("SECONDS", "30").replace("WAIT", "30"))
    token = uuid.uuid4().hex
    with project.start("apply", "spec.yaml", environ={"SHIPCTL_TEST_TOKEN": token}) as process:
        wait_for(lambda: {"begin s", "stepped preparing"} <= set(project.trace()))
        process.send_signal(number)
        said, _ = process.communicate(timeout=15)
    assert process.returncode == 130, said
    assert processes_with(token) == []
    project.assert_whole()
    journal = Journal(project.state / "journal.db")
    run = journal.runs()[0]
    assert run.exit_code == 130
    assert {row.node: row.status for row in journal.stages(run.id)} == {
        "a": "done", "s": "interrupted", "b": "interrupted", "d": "interrupted",
    }  # fmt: skip
    journal.close()
    project.edit("seconds: 30", "seconds: 0")
    project.edit("wait: 30", "wait: 0")
    before = len(project.trace())
    assert project.shipctl("apply", "spec.yaml", timeout=20)[0] == 0
    assert "run a" not in project.trace()[before:]
    assert project.serving() is not None


def test_an_interrupt_inside_an_inline_stage(project: EngineProject, monkeypatch: pytest.MonkeyPatch) -> None:
    from shipctl_test_stages.basic import Append

    def interrupted(*_: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    project.spec("- {id: a, uses: make, with: {label: a}}\n- {id: b, uses: append, with: {label: b}}")
    with monkeypatch.context() as patch:
        patch.setattr(Append, "run", interrupted)
        run = project.apply()
    assert (run.code, run.statuses) == (130, {"a": "done", "b": "interrupted"})
    project.assert_whole()
    assert project.apply().ran == ["b"]


# -- the journal -----------------------------------------------------------------------------------------------


def test_the_journal_tells_what_happened_and_why(project: EngineProject) -> None:
    project.spec(
        "- {id: a, uses: make, with: {text: aa}}\n- {id: k, uses: check, with: {max: 5}}\n- {id: d, uses: file-deploy}"
    )
    run = project.apply()
    journal = Journal(project.state / "journal.db")
    row = journal.run(run.result.run)
    assert row is not None
    assert (row.pipeline, row.version, row.exit_code, row.command) == (
        "demo",
        "1.0.0",
        0,
        "shipctl apply spec.yaml",
    )
    assert [(s.node, s.status, s.reasons) for s in journal.stages(row.id)] == [
        ("a", "done", ["it has not run yet"]), ("k", "done", ["a runs first"]), ("d", "done", ["after k, a"]),
    ]  # fmt: skip
    (node, verdict) = journal.verdicts(row.id)[0]
    assert (node, str(verdict.outcome), verdict.value, verdict.bound) == ("k", "pass", 2.0, 5.0)
    assert [step.phase for step in journal.steps(row.id)] == [
        "preparing",
        "preflight",
        "shifting",
        "promoting",
        "done",
    ]
    journal.close()


def test_a_damaged_journal_says_so(project: EngineProject) -> None:
    from shipctl import StoreError

    project.spec("- {id: a, uses: make}").apply()
    (project.state / "journal.db").write_bytes(b"no database" * 100)
    for name in ("journal.db-wal", "journal.db-shm"):
        (project.state / name).unlink(missing_ok=True)
    with pytest.raises(
        StoreError, match=r"cannot open the journal .*move it away to begin a new one \(artifacts stay\)"
    ):
        project.plan()
    (project.state / "journal.db").unlink()
    assert project.apply().ran == []
