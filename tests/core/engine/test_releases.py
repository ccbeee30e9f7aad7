"""Releases: step by step, in place, rejected, undone, gone back from, gone on with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from shipctl import Hooks, SpecError
from shipctl.engine import driving, operations
from shipctl.stages.artifacts import Artifact
from shipctl.store.local import LocalStore
from support_engine import EngineProject, Run, Watcher, flip_bit

STEPS = ["preparing", "preflight", "shifting", "promoting", "done"]


def release(
    project: EngineProject, version: str, text: str | None = None, options: str = "", extra: str = ""
) -> EngineProject:
    return project.spec(
        f"""
        - {{id: a, uses: make, with: {{text: {text or f"text {version}"}, label: a}}}}
        - {{id: d, uses: file-deploy, with: {{{options}}}{extra}}}
        """,
        version=version,
    )


def rollback(project: EngineProject, **options: Any) -> Run:
    watcher = Watcher()
    result = operations.rollback(project.path, hooks=Hooks([watcher], installed=False), **options)
    return Run(result, watcher.heard, [], [])


def serving(project: EngineProject) -> str | None:
    found = project.serving()
    return found["version"] if found else None


def records(project: EngineProject) -> list[tuple[str, str, str, bool]]:
    """Return version, intent, phase and whether it was left, oldest first."""
    rows = operations.history(project.path)
    found = sorted((row.record for row in rows), key=lambda record: record.number)
    return [(item.version, item.intent, str(item.phase), item.rolled_back) for item in found]


def test_a_first_release_takes_its_steps(project: EngineProject) -> None:
    run = release(project, "1.0.0").apply()
    assert (run.code, run.phases) == (0, STEPS)
    assert run.statuses == {"a": "done", "d": "done"}
    assert project.serving() is not None
    assert records(project) == [("1.0.0", "apply", "done", False)]


def test_what_serves_is_left_alone(project: EngineProject) -> None:
    release(project, "1.0.0").apply()
    again = project.apply()
    assert (again.code, again.phases, again.statuses["d"]) == (0, [], "in-place")
    assert again.result.message == "nothing to do"
    assert len(records(project)) == 1


def test_the_same_thing_under_another_version_is_released_under_that_version(project: EngineProject) -> None:
    release(project, "1.0.0", "same").apply()
    assert release(project, "1.0.1", "same").apply().statuses["d"] == "done"
    assert serving(project) == "1.0.1"
    assert project.apply().statuses["d"] == "in-place"


def test_an_apply_finishes_a_killed_rollback_and_is_refused_what_that_left(project: EngineProject) -> None:
    release(project, "1.0.0").apply()
    release(project, "2.0.0").apply()
    kill = {"SHIPCTL_TEST_KILL": "inside promoting"}
    assert project.shipctl("rollback", "spec.yaml", environ=kill)[0] == -9
    again = project.apply()
    assert again.code == 7
    assert "(2.0.0) was rolled back on " in again.messages["d"]
    assert serving(project) == "1.0.0"


def test_a_newer_release_replaces_an_unfinished_one_whose_files_are_gone(project: EngineProject) -> None:
    release(project, "1.0.0").apply()
    release(project, "2.0.0")
    kill = {"SHIPCTL_TEST_KILL": "inside shifting"}
    assert project.shipctl("apply", "spec.yaml", environ=kill)[0] == -9
    shutil.rmtree(project.root / ".shipctl" / "store")
    assert release(project, "3.0.0").apply().code == 0
    assert serving(project) == "3.0.0"


def test_a_target_that_lost_what_it_served_gets_it_again(project: EngineProject) -> None:
    release(project, "1.0.0").apply()
    assert operations.down(project.path, say=print) == ["stopped 1.0.0"]
    assert serving(project) is None
    run = project.apply()
    assert (run.code, run.phases) == (0, STEPS)
    assert serving(project) == "1.0.0"


def test_a_second_release_replaces_the_first(project: EngineProject) -> None:
    release(project, "1.0.0").apply()
    assert release(project, "2.0.0").plan().nodes[-1].changes == ("1.0.0 -> 2.0.0",)
    assert project.apply().code == 0
    assert serving(project) == "2.0.0"
    shown = operations.status(project.path)
    assert [(s.name, s.version) for s in shown[0].serving] == [("demo", "2.0.0")]
    assert [(row.record.version, row.serves) for row in operations.history(project.path)] == [
        ("2.0.0", True),
        ("1.0.0", False),
    ]


def test_a_rejected_release_exits_with_4_and_touches_nothing(project: EngineProject) -> None:
    release(project, "1.0.0").apply()
    run = release(project, "2.0.0", "bad").apply()
    assert (run.code, run.statuses["d"]) == (4, "rejected")
    assert run.messages["d"] == "the golden sample differs"
    assert run.phases == ["preparing", "rejected"]
    assert serving(project) == "1.0.0"
    assert release(project, "1.0.0").apply().statuses["d"] == "in-place"


@pytest.mark.parametrize("how", ["raise", "abort"])
@pytest.mark.parametrize("phase", ["preparing", "shifting", "promoting", "done"])
def test_a_failed_step_puts_back_what_served_before(project: EngineProject, phase: str, how: str) -> None:
    release(project, "1.0.0").apply()
    before = project.serving()
    run = release(project, "2.0.0", options=f"fail_at: {phase}, fail_how: {how}").apply()
    untouched = phase == "preparing"
    given_up = 1 if how == "raise" else 4  # an error is a failure, and what a stage gives up is its verdict
    assert run.code == (given_up if untouched else 7)
    assert run.phases[-2:] == ["aborting", "rejected" if untouched else "rolled-back"]
    assert (
        run.messages["d"] == f"{phase} went wrong; {'nothing was touched' if untouched else '1.0.0 serves'}"
    )
    assert project.serving() == before


@pytest.mark.parametrize("phase", ["shifting", "done"])
def test_a_first_release_that_fails_leaves_nothing_serving(project: EngineProject, phase: str) -> None:
    run = release(project, "1.0.0", options=f"fail_at: {phase}").apply()
    assert (run.code, run.phases[-2:]) == (1, ["aborting", "rejected"])
    assert run.messages["d"] == f"{phase} went wrong; nothing serves"
    assert serving(project) is None


def test_what_was_rolled_back_is_refused_without_retry(project: EngineProject) -> None:
    release(project, "1.0.0").apply()
    release(project, "2.0.0", options="fail_at: shifting").apply()
    again = project.apply()
    assert (again.code, again.phases) == (7, [])
    assert "(2.0.0) was rolled back on " in again.messages["d"]
    assert again.messages["d"].endswith("; `apply --retry` releases it again")
    assert project.apply(retry=True).phases[-1] == "rolled-back", "it was tried, and failed as before"


def test_an_abort_that_fails_is_tried_again(project: EngineProject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driving, "ABORT_DELAY", 0.001)
    release(project, "1.0.0").apply()
    run = release(project, "2.0.0", options="fail_at: shifting, fail_aborts: 3").apply()
    assert (run.code, serving(project)) == (7, "1.0.0")
    assert run.phases[-5:] == ["aborting", "aborting", "aborting", "aborting", "rolled-back"]


def test_an_abort_that_cannot_be_done_stays_unfinished_and_is_gone_on_with(
    project: EngineProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driving, "ABORT_DELAY", 0.001)
    release(project, "1.0.0").apply()
    run = release(project, "2.0.0", options="fail_at: shifting, fail_aborts: 6").apply()
    assert (run.code, run.messages["d"]) == (1, "the shelf is stuck")
    assert records(project)[-1][2] == "aborting"
    again = project.apply()
    assert (again.code, again.phases[-1], serving(project)) == (7, "rolled-back", "1.0.0")


def test_something_newer_aborts_an_unfinished_release_first(project: EngineProject) -> None:
    release(project, "1.0.0").apply()
    assert release(project, "2.0.0", options="fail_at: promoting, fail_how: pause").apply().code == 6
    run = release(project, "3.0.0").apply()
    assert run.code == 0
    assert run.phases == ["rolled-back", *STEPS]
    assert "d: release 2 of 2.0.0 is unfinished; aborting it for 3.0.0" in run.log
    assert records(project) == [
        ("1.0.0", "apply", "done", False),
        ("2.0.0", "apply", "rolled-back", False),
        ("3.0.0", "apply", "done", False),
    ]


def test_a_paused_release_waits_with_6_and_is_gone_on_with(project: EngineProject) -> None:
    release(project, "2.0.0", options="fail_at: promoting, fail_how: pause").apply()
    again = project.apply()
    assert (again.code, again.statuses["d"], again.phases) == (6, "waiting", ["paused"])
    assert any("going on with release 1 of 2.0.0, which stood at paused" in line for line in again.log)


def test_a_release_that_needs_an_approval_waits_and_releases_nothing(project: EngineProject) -> None:
    release(project, "1.0.0", extra=", approval: {required: true, roles: [model-owner]}")
    run = project.apply()
    assert (run.code, run.statuses) == (6, {"a": "done", "d": "waiting"})
    assert run.messages["d"].startswith("waits for an approval by model-owner")
    assert (run.phases, serving(project)) == ([], None)


def test_rollback_goes_to_the_release_before(project: EngineProject) -> None:
    release(project, "1.0.0").apply()
    release(project, "2.0.0").apply()
    run = rollback(project)
    assert (run.code, run.phases) == (0, STEPS)
    assert serving(project) == "1.0.0"
    assert records(project)[1:] == [("2.0.0", "apply", "done", True), ("1.0.0", "rollback", "done", False)]


def test_what_was_left_by_a_rollback_is_not_put_back_by_the_next_apply(project: EngineProject) -> None:
    release(project, "1.0.0").apply()
    release(project, "2.0.0").apply()
    rollback(project)
    run = project.apply()
    assert (run.code, serving(project)) == (7, "1.0.0")
    assert project.apply(retry=True).code == 0
    assert serving(project) == "2.0.0"


@pytest.mark.parametrize("by", ["version", "digest"])
def test_rollback_to_a_named_release(project: EngineProject, by: str) -> None:
    for version in ("1.0.0", "2.0.0", "3.0.0"):
        release(project, version).apply()
    first = min(operations.history(project.path), key=lambda row: row.record.number).record
    run = rollback(project, to="1.0.0" if by == "version" else first.revision[:8])
    assert (run.code, serving(project)) == (0, "1.0.0")


def test_rollback_with_nothing_to_go_back_to_says_so(project: EngineProject) -> None:
    release(project, "1.0.0").apply()
    run = rollback(project)
    assert (run.code, run.result.message) == (
        2, "nothing to roll back to; releases that were done and never rolled back, beside what serves: none",
    )  # fmt: skip
    run = rollback(project, to="7.7.7")
    assert run.result.message.startswith("no release '7.7.7' to roll back to; ")
    assert serving(project) == "1.0.0"


def test_rollback_twice_does_not_go_forward(project: EngineProject) -> None:
    for version in ("1.0.0", "2.0.0", "3.0.0"):
        release(project, version).apply()
    for version in ("2.0.0", "1.0.0"):
        assert rollback(project).code == 0
        assert serving(project) == version
    assert rollback(project).code == 2


def test_rollback_of_an_unfinished_release_aborts_it(project: EngineProject) -> None:
    release(project, "1.0.0").apply()
    release(project, "2.0.0", options="fail_at: promoting, fail_how: pause").apply()
    run = rollback(project)
    assert (run.phases, serving(project)) == (["rolled-back"], "1.0.0")
    assert run.messages["d"] == "aborted: rolled back by hand; 1.0.0 serves"


def test_a_rollback_checks_what_it_ships(project: EngineProject) -> None:
    release(project, "1.0.0", "old").apply()
    release(project, "2.0.0", "new").apply()
    flip_bit(project.blob_of("old"))
    run = rollback(project)
    assert run.code == 1
    assert "is damaged" in run.result.message
    assert serving(project) == "2.0.0"


@pytest.mark.parametrize("point", ["before preparing", "inside promoting", "hook release_stepped done"])
@pytest.mark.slow
def test_a_killed_rollback_is_gone_on_with(project: EngineProject, point: str) -> None:
    for version in ("1.0.0", "2.0.0", "3.0.0"):
        release(project, version).apply()
    assert project.shipctl("rollback", "spec.yaml", environ={"SHIPCTL_TEST_KILL": point})[0] == -9
    if point != "hook release_stepped done":
        assert rollback(project).code == 0
    assert serving(project) == "2.0.0"
    assert [row[3] for row in records(project)] == [False, False, True, False], "3.0.0 is what was left"
    assert rollback(project).code == 0
    assert serving(project) == "1.0.0"


def test_a_release_that_was_killed_still_knows_what_served_before(project: EngineProject) -> None:
    release(project, "1.0.0").apply()
    release(project, "2.0.0", options="fail_at: done")
    point = "hook release_stepped promoting"
    assert project.shipctl("apply", "spec.yaml", environ={"SHIPCTL_TEST_KILL": point})[0] == -9
    assert serving(project) == "2.0.0"
    run = project.apply()
    assert (run.code, run.phases, serving(project)) == (7, ["aborting", "rolled-back"], "1.0.0")


@pytest.mark.parametrize(
    "point", ["hook release_stepped aborting", "inside abort", "hook release_stepped rolled-back"]
)
@pytest.mark.slow
def test_a_killed_abort_is_gone_on_with(project: EngineProject, point: str) -> None:
    release(project, "1.0.0").apply()
    release(project, "2.0.0", options="fail_at: done")
    assert project.shipctl("apply", "spec.yaml", environ={"SHIPCTL_TEST_KILL": point})[0] == -9
    assert project.apply().code == 7
    assert serving(project) == "1.0.0"
    assert records(project)[-1] == ("2.0.0", "apply", "rolled-back", False)


def test_two_specs_share_a_target_without_mixing_their_records(project: EngineProject) -> None:
    release(project, "1.0.0").apply()
    project.edit("name: demo", "name: other")
    assert project.apply().phases == STEPS
    assert records(project) == [("1.0.0", "apply", "done", False)]


SEVERAL = """
    - {id: a, uses: make}
    - {id: d, uses: file-deploy, with: {target: one}}
    - {id: e, uses: file-deploy, needs: a, with: {target: two}}
    """


def test_releases_side_by_side_have_files_of_their_own(
    project: EngineProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid_out: list[Path] = []
    view = LocalStore.view

    def watched(store: LocalStore, artifact: Artifact, folder: Path) -> Artifact:
        laid_out.append(folder)
        return view(store, artifact, folder)

    monkeypatch.setattr(LocalStore, "view", watched)
    assert project.spec(SEVERAL).apply().statuses == {"a": "done", "d": "done", "e": "done"}
    assert len(laid_out) == len(set(laid_out)) == 4  # each verifies its input, and opens it


def test_several_releases_need_a_stage_to_roll_back(project: EngineProject) -> None:
    assert project.spec(SEVERAL).apply().code == 0
    with pytest.raises(SpecError, match="say which release to roll back with `--stage`: d, e"):
        rollback(project)
    assert operations.down(project.path, say=print) == ["stopped 1.0.0", "stopped 1.0.0"]


def test_a_spec_without_release_has_no_status(project: EngineProject) -> None:
    project.spec("- {id: a, uses: make}")
    with pytest.raises(SpecError, match=r"spec.yaml has no release stage, so nothing of it serves anywhere"):
        operations.status(project.path)


def test_a_target_that_cannot_be_asked_is_shown_with_the_reason(
    project: EngineProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shipctl_test_stages.file_deploy import FileDeploy

    from shipctl import StageError

    def fail(*_: object) -> None:
        raise StageError("the shelf is locked away")

    release(project, "1.0.0")
    monkeypatch.setattr(FileDeploy, "status", fail)
    (shown,) = operations.status(project.path)
    assert (shown.serving, shown.problem, shown.record) == ((), "the shelf is locked away", None)


GATED = """
    - {id: a, uses: make, with: {text: aaaa, label: a}}
    - {id: k, uses: check, EXTRA}
    - {id: b, uses: append, needs: a, with: {label: b}}
    - {id: d, uses: file-deploy, needs: b}
    """


@pytest.mark.parametrize(("extra", "said", "code"), [
    ("with: {max: 1}", "gate k was rejected", 4),
    ("when: false", "gate k was skipped", 4),
    ("with: {fail: true}", "gate k failed", 1),
    ("with: {judge: raise}", "gate k was rejected", 4),
])  # fmt: skip
def test_a_gate_on_the_lineage_that_does_not_pass_blocks_a_release(
    project: EngineProject, extra: str, said: str, code: int
) -> None:
    """It was asked about what the release is made from, though nothing names it in `needs`."""
    run = project.spec(GATED.replace("EXTRA", extra)).apply()
    assert run.statuses["d"] == "blocked"
    assert run.messages["d"] == f"{said}; a release needs every gate on what it ships to pass"
    assert (run.code, serving(project)) == (code, None)


def test_a_gate_that_passes_lets_the_release_through(project: EngineProject) -> None:
    assert project.spec(GATED.replace("EXTRA", "with: {max: 10}")).apply().code == 0


def test_a_gate_that_crashes_while_judging_is_an_error_and_no_pass(project: EngineProject) -> None:
    run = project.spec(GATED.replace("EXTRA", "with: {judge: raise}")).apply()
    assert run.messages["k"] == "check: judging crashed with ValueError: no idea (error)"


SELECTED = """
    - {id: a, uses: make, with: {text: aaaa, label: a}}
    - {id: m, uses: append, matrix: {n: [x, y]}, with: {add: "${{ matrix.n }}", label: m}}
    - {id: k, uses: check, with: {max: MAX, label: k}}
    - {id: s, uses: choose, needs: [m, k], with: {label: s}}
    - {id: d, uses: file-deploy}
    """


def test_the_rejected_gate_of_a_variant_that_lost_blocks_nothing(project: EngineProject) -> None:
    project.spec(
        """
        - {id: short, uses: make, with: {text: z}}
        - {id: long, uses: make, needs: [], with: {text: aaaaaa}}
        - {id: k, uses: check, needs: [], inputs: {thing: long}, with: {max: 3}}
        - {id: s, uses: choose, needs: [short, long, k]}
        - {id: d, uses: file-deploy}
        """
    )
    run = project.apply()
    assert run.statuses == {"short": "done", "long": "done", "k": "rejected", "s": "done", "d": "done"}
    assert run.code == 0, "what a selection did without is no failure"
    assert (project.serving() or {})["text"] == "z"


def test_the_gate_of_the_variant_that_won_counts(project: EngineProject) -> None:
    run = project.spec(SELECTED.replace("MAX", "5")).apply()
    assert (run.code, run.statuses["d"], (project.serving() or {})["text"]) == (0, "done", "aaaax")
    run = project.spec(SELECTED.replace("MAX", "4")).apply()
    assert run.messages["s"] == (
        "no candidate is left for input 'things' "
        "(m[n=x].thing: k[n=x] was rejected; m[n=y].thing: k[n=y] was rejected)"
    )
    assert run.code == 4


def test_the_records_file_says_when_it_is_damaged(project: EngineProject) -> None:
    release(project, "1.0.0").apply()
    path: Path = project.state / "targets" / "shelf" / "releases" / "demo" / "d.json"
    path.write_text("{")
    code, said = project.command("history", "spec.yaml")
    assert code == 1
    assert "d.json is damaged (1 errors); restore it, or move it away" in said
