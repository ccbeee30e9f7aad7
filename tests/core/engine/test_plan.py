"""What a plan says of each stage and why, and plan files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from shipctl import SpecError, StalePlanError, read_plan
from support_engine import EngineProject

CHAIN = """
    - {id: a, uses: make, with: {text: aa, label: a}}
    - {id: b, uses: append, with: {add: b, label: b}}
    - {id: k, uses: check, with: {label: k}}
    """


def test_what_has_never_run_says_so(project: EngineProject) -> None:
    project.spec(CHAIN)
    assert project.actions() == {"a": "run", "b": "run", "k": "run"}
    assert project.reasons() == {"a": ["it has not run yet"], "b": ["a runs first"], "k": ["b runs first"]}


def test_planning_changes_nothing(project: EngineProject) -> None:
    project.spec(CHAIN).plan()
    assert not project.state.exists()
    assert project.trace() == []


def test_what_has_run_is_cached_and_does_not_run(project: EngineProject) -> None:
    project.spec(CHAIN)
    assert project.apply().ran == ["a", "b", "k"]
    assert project.actions() == {"a": "cached", "b": "cached", "k": "cached"}
    again = project.apply()
    assert (again.code, again.ran, again.result.message) == (0, [], "nothing to do")
    assert set(again.statuses.values()) == {"cached"}


def test_a_changed_option_is_named_with_both_values(project: EngineProject) -> None:
    project.spec(CHAIN).apply()
    project.edit("add: b", "add: c")
    assert project.actions() == {"a": "cached", "b": "run", "k": "run"}
    assert project.reasons() == {"a": [], "b": ["option add b -> c"], "k": ["b runs first"]}
    assert project.apply().ran == ["b", "k"]


def test_a_changed_input_is_named_once_it_is_known(project: EngineProject) -> None:
    project.spec(CHAIN).apply()
    project.edit("text: aa", "text: zz")
    project.apply(project.plan(until="a"))
    assert project.reasons()["b"] == ["input thing changed"]


def test_what_comes_out_the_same_keeps_the_rest_cached(project: EngineProject) -> None:
    project.spec(CHAIN).apply()
    project.edit("label: a}", "label: other}")
    assert project.apply().ran == ["other"], "the output of `a` did not change"


def test_going_back_to_an_earlier_option_is_cached(project: EngineProject) -> None:
    project.spec(CHAIN).apply()
    project.edit("add: b", "add: c")
    project.apply()
    project.edit("add: c", "add: b")
    assert project.apply().ran == []


def test_lost_files_are_a_reason(project: EngineProject) -> None:
    project.spec(CHAIN).apply()
    project.blob_of("aab").unlink()
    assert project.reasons()["b"] == ["its outputs are gone, damaged or too old"]


def test_a_false_when_skips_and_says_so(project: EngineProject) -> None:
    project.spec(
        """
        - {id: a, uses: make, with: {label: a}}
        - {id: b, uses: append, when: "${{ vars.on }}", with: {label: b}}
        - {id: c, uses: append, with: {label: c}}
        """,
        head="vars: {on: false}",
    )
    plan = project.plan()
    assert {n.node: n.action for n in plan.nodes} == {"a": "run", "b": "skipped", "c": "skipped"}
    assert {n.node: list(n.reasons) for n in plan.nodes[1:]} == {
        "b": ["its `when` says no"],
        "c": ["b was skipped"],
    }
    assert project.apply().ran == ["a"]
    assert project.apply(project.plan(overrides=["vars.on=true"])).ran == ["b", "c"]


def test_a_cached_check_is_judged_when_planning(project: EngineProject) -> None:
    project.spec(CHAIN + "- {id: d, uses: append, needs: k, with: {label: d}}").apply()
    project.edit("label: k}", "label: k, max: 1}")
    plan = {node.node: node for node in project.plan().nodes}
    assert (plan["k"].action, plan["k"].reasons) == (
        "cached",
        ("a gate says no: length: length 3 is not <= 1 (fail)",),
    )
    assert (plan["d"].action, plan["d"].reasons) == ("blocked", ("k was rejected",))


def test_until_plans_a_stage_and_what_it_needs(project: EngineProject) -> None:
    project.spec(CHAIN)
    assert list(project.actions(until="b")) == ["a", "b"]
    assert project.apply(project.plan(until="b")).ran == ["a", "b"]
    with pytest.raises(SpecError, match=r"--until zzz: there is no such stage; it has a, b, k"):
        project.plan(until="zzz")


def test_a_release_shows_what_would_change_and_what_is_in_place(project: EngineProject) -> None:
    project.spec(CHAIN + "- {id: d, uses: file-deploy, needs: k}")
    release = project.plan().nodes[-1]
    assert (release.action, release.reasons, release.changes) == (
        "release",
        ("after k, b",),
        ("nothing -> 1.0.0",),
    )
    project.apply()
    assert project.actions()["d"] == "in-place"


def test_what_this_machine_lacks_stops_apply_before_anything_ran(project: EngineProject) -> None:
    from shipctl import UnavailableError

    project.spec(CHAIN.replace("uses: check", "uses: check, resources: {labels: {site: moon}}"))
    lacking = "k needs a machine with site=moon; if this is one, export SHIPCTL_LABELS=site=moon"
    assert project.plan().nodes[-1].unavailable == lacking
    with pytest.raises(UnavailableError, match="k: k needs a machine with site=moon"):
        project.apply()
    assert project.trace() == []
    assert project.apply(project.plan(until="b")).code == 0


# -- plan files --------------------------------------------------------------------------------------------


@pytest.fixture
def pinned(project: EngineProject) -> Path:
    """A plan file of the chain and a release."""
    project.spec(CHAIN + "- {id: d, uses: file-deploy, needs: k}")
    file = project.root / "plan.json"
    project.plan().write(file)
    return file


def test_a_plan_file_is_carried_out(project: EngineProject, pinned: Path) -> None:
    run = project.apply_file(pinned)
    assert (run.code, run.ran) == (0, ["a", "b", "k"])


def test_a_plan_file_keeps_what_was_asked_for(project: EngineProject) -> None:
    project.spec(
        "- {uses: make, id: a, with: {text: '${{ vars.t }}', label: a}}\n- {uses: append, id: b}",
        head="vars: {t: x}",
    )
    file = project.root / "plan.json"
    project.plan(until="a", overrides=["vars.t=y"]).write(file)
    assert project.apply_file(file).statuses == {"a": "done"}
    assert project.stored_texts() == {"y"}


def test_a_plan_file_has_no_paths_times_or_cache_status(project: EngineProject, pinned: Path) -> None:
    first = json.loads(pinned.read_text())
    project.apply()
    assert str(project.root) not in pinned.read_text()
    assert first["spec"] == "spec.yaml"
    project.spec(CHAIN)
    digest = project.plan().digest
    assert digest == project.plan().digest, "cached or not, it is the same plan"


def test_the_same_checkout_elsewhere_has_the_same_digest(project: EngineProject, tmp_path: Path) -> None:
    model(project)
    elsewhere = EngineProject(tmp_path / "some" / "where" / "else")
    shutil.copytree(project.root, elsewhere.root, dirs_exist_ok=True)
    assert project.plan().digest == elsewhere.plan().digest
    assert [n.fingerprint for n in project.plan().nodes] == [n.fingerprint for n in elsewhere.plan().nodes]
    project.plan().write(project.root / "plan.json")
    shutil.copy(project.root / "plan.json", elsewhere.root)
    assert elsewhere.apply_file(elsewhere.root / "plan.json").code == 0


def test_a_plan_file_has_no_secrets(project: EngineProject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "hunter2-secret")
    project.spec(
        '- {id: a, uses: make, with: {text: x, label: "${{ secrets.token }}"}}',
        head="secrets: {token: {env: TOKEN}}",
    )
    file = project.root / "plan.json"
    project.plan().write(file)
    assert "hunter2" not in file.read_text()


def model(project: EngineProject) -> None:
    """Write a project whose model is built by a module with a helper."""
    files = {"net.py": "import helper\n\n\ndef build() -> None: ...\n", "helper.py": "X = 1\n"}
    for name, text in files.items():
        (project.root / name).write_text(text)
    project.spec(
        "- {id: r, uses: read-model, with: {label: r}}\n- {id: b, uses: append, with: {label: b}}",
        head="""
        model:
          uri: net.py:build
          inputs: [{name: x, dtype: float32, shape: [batch, 2]}]
          outputs: [{name: y, dtype: float32, shape: [batch, 2]}]
        """,
    )


STALE = [
    (lambda p: p.edit("text: aa", "text: ab"), ["spec: stages changed", "stage a: option text aa -> ab"]),
    (lambda p: p.edit("1.0.0", "1.0.1"), ["spec: metadata version 1.0.0 -> 1.0.1"]),
    (lambda p: p.apply(), ["target of d: serves changed"]),
]


@pytest.mark.parametrize(("change", "named"), STALE, ids=["option", "version", "target"])
def test_a_stale_plan_file_names_what_changed_and_does_nothing(
    project: EngineProject, pinned: Path, change: Any, named: list[str]
) -> None:
    change(project)
    before = project.trace()
    with pytest.raises(StalePlanError) as caught:
        project.apply_file(pinned)
    said = str(caught.value)
    assert said.startswith("plan.json is stale, nothing was done; since it was made:\n")
    assert said.endswith("make a new one with `shipctl plan`")
    for line in named:
        assert line in said
    assert project.trace() == before


def test_a_plan_file_is_stale_when_a_module_of_the_model_changes(project: EngineProject) -> None:
    model(project)
    file = project.root / "plan.json"
    project.plan().write(file)
    (project.root / "helper.py").write_text("X = 2\n")
    code, said = project.command("apply", "plan.json")
    assert code == 5
    assert "stage r: input model changed" in said
    assert project.trace() == []


def test_a_target_that_moved_while_waiting_for_the_lock_makes_a_plan_stale(
    project: EngineProject, pinned: Path
) -> None:
    plan = read_plan(pinned)
    project.apply()
    with pytest.raises(
        StalePlanError,
        match="the plan is stale, nothing was done: the target of d changed; make a new one with",
    ):
        project.apply(plan)


def test_an_edited_plan_file_is_refused(project: EngineProject, pinned: Path) -> None:
    body = json.loads(pinned.read_text())
    body["parts"]["spec"]["metadata"]["version"] = "9.9.9"
    pinned.write_text(json.dumps(body))
    with pytest.raises(StalePlanError) as caught:
        read_plan(pinned)
    assert str(caught.value) == (
        f"{pinned} was edited or written by another version of shipctl; make it again with `shipctl plan`"
    )


@pytest.mark.parametrize("text", ["{}", "{", '{"kind": 1}', "[]", '{"spec": 1, "digest": 2, "parts": 3}'])
def test_what_is_no_plan_file_is_said_to_be_none(project: EngineProject, text: str) -> None:
    file = project.root / "plan.json"
    file.write_text(text)
    with pytest.raises(
        SpecError, match=r"is not a plan file \(\w+\); make one with `shipctl plan SPEC -o plan.json`"
    ):
        read_plan(file)
