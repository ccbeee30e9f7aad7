from __future__ import annotations

import json
from pathlib import Path

import pytest

from shipctl.cli.planning import summary_line, what_still_works
from shipctl.stages.events import PlannedNode
from shipctl.testing.fixtures import SampleProject
from support_cli import RELEASING, SPEC, Call


def node(
    name: str, action: str = "run", needs: tuple[str, ...] = (), unavailable: str | None = None
) -> PlannedNode:
    return PlannedNode.model_validate(
        {"node": name, "stage": name.partition("[")[0], "uses": "x", "kind": "transform", "action": action,
         "needs": needs, "unavailable": unavailable}
    )  # fmt: skip


def test_plan_says_what_runs_and_why(light: SampleProject, call: Call) -> None:
    result = call("plan", "spec.yaml")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.lines == [
        "run       copy   it has not run yet",
        "run       score  copy runs first",
        "plan: 2 to run, 0 cached, 0 skipped",
    ]


def test_plan_names_the_option_that_changed(light: SampleProject, call: Call) -> None:
    call("apply", "spec.yaml")
    assert call("plan", "spec.yaml").lines == [
        "cached    copy",
        "cached    score",
        "plan: 0 to run, 2 cached, 0 skipped",
    ]
    light.write({"spec.yaml": SPEC.replace("uses: light-copy", "uses: light-copy\n    with: {level: 2}")})
    assert call("plan", "spec.yaml").lines[0] == "run       copy   option level 1 -> 2"


def test_plan_shows_what_would_change_on_the_target(light: SampleProject, call: Call) -> None:
    light.write({"spec.yaml": RELEASING})
    lines = call("plan", "spec.yaml").lines
    assert lines[2].startswith("release   release")
    assert lines[3] == "change    release  a new data set comes onto the shelf"
    assert lines[4] == "plan: 2 to run, 0 cached, 0 skipped, 1 release"


def test_plan_shows_what_is_missing_and_the_command_that_still_works(
    light: SampleProject, call: Call
) -> None:
    light.write({"spec.yaml": f"{SPEC}  - {{id: hard, uses: light-missing, needs: copy}}\n"})
    result = call("plan", "spec.yaml", "--set", "seed=1")
    assert result.exit_code == 0
    assert "missing   hard   needs a quantum computer: buy one" in result.lines
    assert result.lines[-1] == (
        "up to 'score' it works here: shipctl apply spec.yaml --set seed=1 --until score"
    )


def test_plan_json_is_one_document(light: SampleProject, call: Call) -> None:
    document = call("plan", "spec.yaml", "--json", "-o", "plan.json").document
    assert document["schema"] == "shipctl.plan/1"
    assert (document["pipeline"], document["version"], document["file"]) == ("light", "1.0.0", "plan.json")
    assert document["counts"] == {"run": 2}
    assert [item["node"] for item in document["nodes"]] == ["copy", "score"]


def test_plan_file_is_applied_and_refused_once_stale(light: SampleProject, call: Call) -> None:
    assert call("plan", "spec.yaml", "-o", "plan.json").lines[-1] == (
        "written to plan.json; carry it out with `shipctl apply plan.json`"
    )
    light.write({"spec.yaml": SPEC.replace("1.0.0", "1.0.1")})
    refused = call("apply", "plan.json")
    assert refused.exit_code == 5
    assert refused.stderr.startswith("error: plan.json is stale, nothing was done; since it was made:\n")
    assert "1.0.1" in refused.stderr
    light.write({"spec.yaml": SPEC})
    assert call("apply", "plan.json").exit_code == 0


def test_plan_file_takes_no_options_of_its_own(light: SampleProject, call: Call) -> None:
    call("plan", "spec.yaml", "-o", "plan.json")
    result = call("apply", "plan.json", "--until", "copy")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: plan.json is a plan file, which pins all of that: leave out -e, --set, --context and --until\n"
    )


def test_spec_left_out_is_the_only_one(light: SampleProject, call: Call) -> None:
    light.write({"values.yaml": "kind: Something\n"})
    assert call("plan").lines[-1] == "plan: 2 to run, 0 cached, 0 skipped"


def test_spec_left_out_with_several_lists_them(light: SampleProject, call: Call) -> None:
    light.write({"specs/other.yaml": SPEC})
    result = call("plan")
    assert result.exit_code == 2
    assert result.stderr == "error: which spec is meant: specs/other.yaml, spec.yaml? name one of them\n"


def test_spec_left_out_with_none_says_how_to_begin(project: SampleProject, call: Call) -> None:
    assert call("plan").stderr == (
        "error: there is no spec in ./specs or here; name one, or write a starter with `shipctl init MODEL`\n"
    )


def test_spec_error_has_its_place(light: SampleProject, call: Call) -> None:
    light.write({"spec.yaml": SPEC.replace("uses: light-copy", "uses: light-cpy")})
    result = call("plan", "spec.yaml")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: spec.yaml:8:11: no stage named 'light-cpy' is installed; did you mean 'light-copy'?\n"
        "        uses: light-cpy\n"
        "              ^\n"
    )


def test_colours_only_on_request_of_a_terminal(light: SampleProject, call: Call) -> None:
    assert "\x1b" not in call("plan", "spec.yaml").stdout


@pytest.mark.parametrize(
    ("actions", "expected"),
    [
        ([], "plan: 0 to run, 0 cached, 0 skipped"),
        (["run", "release"], "plan: 1 to run, 0 cached, 0 skipped, 1 release"),
        (["cached", "in-place", "blocked"], "plan: 0 to run, 1 cached, 0 skipped, 1 in place, 1 blocked"),
        (["release", "release"], "plan: 0 to run, 0 cached, 0 skipped, 2 releases"),
    ],
)
def test_summary_counts_by_action(actions: list[str], expected: str) -> None:
    assert summary_line([node(str(index), action) for index, action in enumerate(actions)]) == expected


def test_nothing_unavailable_needs_no_hint() -> None:
    assert what_still_works([node("a"), node("b", needs=("a",))], Path("s.yaml")) is None


def test_hint_avoids_every_variant_and_everything_behind_it() -> None:
    nodes = [
        node("a"),
        node("b[x=1]", needs=("a",)),
        node("b[x=2]", needs=("a",), unavailable="no"),
        node("c", needs=("b[x=1]", "b[x=2]")),
    ]
    assert what_still_works(nodes, Path("s.yaml")) == (
        "up to 'a' it works here: shipctl apply s.yaml --until a"
    )
    assert (
        what_still_works([node("a", unavailable="no")], Path("s"))
        == "nothing of this spec can run on this machine"
    )


def test_plan_file_holds_no_path_of_this_machine(light: SampleProject, call: Call) -> None:
    call("plan", "spec.yaml", "-o", "plan.json")
    text = (light.root / "plan.json").read_text()
    assert json.loads(text)["spec"] == "spec.yaml"
    assert str(light.root) not in text
