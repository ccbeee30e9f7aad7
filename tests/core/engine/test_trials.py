"""A stage that takes only so many of a list: what is beyond is not made, unless somebody else needs it."""

from __future__ import annotations

from pathlib import Path

from support_engine import EngineProject

MATRIX = """
    - {id: a, uses: make, with: {label: a}}
    - id: m
      uses: append
      matrix: {n: [p, q, r]}
      with: {add: "${{ matrix.n }}", label: "m ${{ matrix.n }}"}
    """
WHY = "not tried: best takes 2 of 3 candidates"


def test_candidates_beyond_the_limit_are_not_made_and_every_account_says_so(project: EngineProject) -> None:
    project.spec(MATRIX + "- {id: best, uses: join, with: {most: 2, label: best}}")
    assert project.actions() == {
        "a": "run",
        "m[n=p]": "run",
        "m[n=q]": "run",
        "m[n=r]": "skipped",
        "best": "run",
    }
    assert project.reasons()["m[n=r]"] == [WHY]
    run = project.apply(jobs=1)
    assert run.ran == ["a", "m p", "m q", "best"]
    assert (run.code, run.statuses["m[n=r]"], run.messages["m[n=r]"]) == (0, "skipped", WHY)
    assert "xp+xq" in project.stored_texts()
    assert project.to_run() == []


def test_without_a_limit_all_are_made(project: EngineProject) -> None:
    project.spec(MATRIX + "- {id: best, uses: join}")
    assert "skipped" not in project.actions().values()


def test_what_only_leads_to_a_candidate_or_looks_at_it_is_left_out_too(project: EngineProject) -> None:
    project.spec(
        """
        - {id: a, uses: make}
        - {id: b, uses: append, needs: a}
        - {id: before, uses: append, needs: a}
        - {id: between, uses: append, needs: before}
        - {id: c, uses: append, needs: between}
        - {id: look, uses: check, needs: [b, c], matrix: {what: [b, c]}, inputs: {thing: "${{ matrix.what }}"}}
        - {id: aside, uses: check, needs: c}
        - {id: best, uses: join, needs: [b, c, look], with: {most: 1}}
        """
    )
    actions = project.actions()
    assert [node for node, action in actions.items() if action == "skipped"] == [
        "before", "between", "c", "look[what=c]", "aside",
    ]  # fmt: skip
    run = project.apply()
    assert (run.code, run.statuses["best"]) == (0, "done")


def test_what_somebody_else_needs_is_made_all_the_same(project: EngineProject) -> None:
    project.spec(
        """
        - {id: a, uses: make}
        - {id: b, uses: append, needs: a, with: {add: b}}
        - {id: c, uses: append, needs: b, with: {add: c}}
        - {id: d, uses: append, needs: a, with: {add: d}}
        - {id: user, uses: append, needs: d}
        - {id: best, uses: join, needs: [c, b, d], with: {most: 1}}
        """
    )
    assert [node for node, action in project.actions().items() if action == "skipped"] == []
    project.edit("needs: d}", "needs: a}")
    assert [node for node, action in project.actions().items() if action == "skipped"] == ["d"]


def test_a_release_behind_the_choice_does_not_wait_for_the_gates_of_what_was_not_tried(
    project: EngineProject, tmp_path: Path
) -> None:
    project.spec(
        f"""
        - {{id: a, uses: make, with: {{text: a}}}}
        - {{id: b, uses: make, needs: [], with: {{text: b}}}}
        - {{id: look, uses: check, needs: [a, b], matrix: {{at: [a, b]}}, inputs: {{thing: "${{{{ matrix.at }}}}"}}}}
        - {{id: best, uses: join, needs: [a, b, look], with: {{most: 1}}}}
        - {{id: release, uses: file-deploy, with: {{target: {tmp_path / "live"}}}}}
        """
    )
    run = project.apply()
    assert run.statuses["look[at=b]"] == "skipped"
    assert (run.code, run.statuses["release"]) == (0, "done")


def test_a_plan_file_does_the_same(project: EngineProject) -> None:
    project.spec(MATRIX + "- {id: best, uses: join, with: {most: 1}}")
    file = project.root / "plan.json"
    project.plan().write(file)
    run = project.apply_file(file)
    assert [node for node, status in run.statuses.items() if status == "skipped"] == ["m[n=q]", "m[n=r]"]


def test_a_limit_that_is_known_only_later_leaves_out_nothing(project: EngineProject) -> None:
    project.spec(
        """
        - {id: a, uses: make}
        - {id: k, uses: check}
        - {id: m, uses: append, needs: a, matrix: {n: [p, q]}}
        - {id: best, uses: join, needs: [m, k], with: {most: "${{ stages.k.metrics.length }}"}}
        """
    )
    assert "skipped" not in project.actions().values()
