"""How stages are wired: matched by type, multiplied by matrices, and every way in which that can be wrong."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from shipctl import PluginError, SpecError
from support_engine import EngineProject

MODEL = """
    model:
      uri: net.py:build
      inputs: [{name: x, dtype: float32, shape: [batch, 2]}]
      outputs: [{name: y, dtype: float32, shape: [batch, 2]}]
    """


def needs(project: EngineProject) -> dict[str, list[str]]:
    return {node.node: list(node.needs) for node in project.plan().nodes}


def refused(project: EngineProject) -> list[str]:
    """Return the messages of a spec that is refused, without excerpts."""
    with pytest.raises(SpecError) as caught:
        project.plan()
    return [line for line in str(caught.value).splitlines() if line.startswith("spec.yaml:")]


def test_a_stage_follows_the_one_before_it(project: EngineProject) -> None:
    project.spec("- {id: a, uses: make}\n- {id: b, uses: append}\n- {id: c, uses: append}")
    assert needs(project) == {"a": [], "b": ["a"], "c": ["b"]}


def test_needs_none_stands_alone(project: EngineProject) -> None:
    project.spec("- {id: a, uses: make}\n- {id: b, uses: make, needs: []}")
    assert needs(project) == {"a": [], "b": []}


def test_the_order_in_the_spec_is_free(project: EngineProject) -> None:
    project.spec(
        "- {id: b, uses: append, needs: a, with: {label: b}}\n- {id: a, uses: make, needs: [], with: {label: a}}"
    )
    assert project.apply().ran == ["a", "b"]


def test_a_check_passes_its_subject_through(project: EngineProject) -> None:
    project.spec("- {id: a, uses: make}\n- {id: k, uses: check}\n- {id: b, uses: append}")
    assert needs(project) == {"a": [], "k": ["a"], "b": ["k", "a"]}
    project.apply()
    assert "xy" in project.stored_texts()


def test_a_matrix_runs_a_stage_once_per_variant_and_those_after_it_too(project: EngineProject) -> None:
    project.spec(
        """
        - {id: a, uses: make}
        - {id: m, uses: append, matrix: {n: [p, q], o: [r, s]}, with: {add: "${{ matrix.n }}${{ matrix.o }}"}}
        - {id: b, uses: append}
        """
    )
    variants = ["n=p,o=r", "n=p,o=s", "n=q,o=r", "n=q,o=s"]
    assert list(needs(project)) == ["a", *(f"m[{v}]" for v in variants), *(f"b[{v}]" for v in variants)]
    assert needs(project)["b[n=q,o=r]"] == ["m[n=q,o=r]"]
    project.apply()
    assert {"xpry", "xpsy", "xqry", "xqsy"} <= project.stored_texts()


def test_a_variant_that_chooses_its_input_does_not_wait_for_those_of_the_others(
    project: EngineProject,
) -> None:
    project.spec(
        """
        - {id: a, uses: make}
        - {id: b, uses: append, needs: a}
        - {id: wrong, uses: check, needs: b, with: {fail: true}}
        - {id: look, uses: check, needs: [a, wrong], matrix: {at: [a, wrong]}, inputs: {thing: "${{ matrix.at }}"}}
        - {id: best, uses: join, needs: [a, wrong, look]}
        """
    )
    assert needs(project)["look[at=a]"] == ["a"]
    assert needs(project)["look[at=wrong]"] == ["wrong", "b"]
    run = project.apply()
    assert run.statuses["look[at=a]"] == "done"
    assert run.statuses["look[at=wrong]"] == "blocked"
    assert run.statuses["best"] == "done", "a failed candidate is left out"


def test_two_matrices_multiply(project: EngineProject) -> None:
    project.spec(
        """
        - {id: a, uses: make}
        - {id: m, uses: append, matrix: {n: [p, q]}}
        - {id: b, uses: append, matrix: {o: [r, s]}}
        """
    )
    assert [node for node in needs(project) if node.startswith("b")] == [
        "b[o=r,n=p]", "b[o=r,n=q]", "b[o=s,n=p]", "b[o=s,n=q]",
    ]  # fmt: skip


def test_variants_whose_names_look_alike_do_not_meet(project: EngineProject) -> None:
    project.spec(
        '- {id: m, uses: make-worker, matrix: {n: [a/b, a_b, "a b"]}, with: {text: "${{ matrix.n }}"}}'
    )
    assert project.apply(jobs=3).code == 0
    assert project.stored_texts() == {"a/b", "a_b", "a b"}


def test_a_long_variant_is_no_problem(project: EngineProject) -> None:
    project.spec(
        f'- {{id: m, uses: make, matrix: {{n: [{"v" * 300}]}}, with: {{text: "${{{{ matrix.n }}}}"}}}}'
    )
    assert project.apply().code == 0


def test_a_list_collects_in_the_order_of_the_spec(project: EngineProject) -> None:
    project.spec(
        """
        - {id: z, uses: make, with: {text: z}}
        - {id: m, uses: append, matrix: {n: ["2", "1"]}, with: {add: "${{ matrix.n }}"}}
        - {id: y, uses: make, needs: [], with: {text: y}}
        - {id: j, uses: join, needs: [y, m, z]}
        """
    )
    project.apply()
    assert "y+z2+z1+z" in project.stored_texts()


def test_two_candidates_are_an_error_that_shows_the_line_that_decides(project: EngineProject) -> None:
    project.spec(
        """
        - {id: a, uses: make}
        - {id: b, uses: make, needs: []}
        - {id: c, uses: append, needs: [a, b]}
        """
    )
    assert refused(project) == [
        "spec.yaml:7:34: c: input 'thing' may come from a or b; choose with `inputs: {thing: a}`"
    ]
    project.edit("needs: [a, b]", "needs: [a, b], inputs: {thing: b}")
    assert project.apply().code == 0


def test_two_outputs_that_fit_are_named(project: EngineProject) -> None:
    project.spec("- {id: p, uses: pair}\n- {id: c, uses: append}")
    assert refused(project) == [
        "spec.yaml:6:19: c: input 'thing' may come from p.left or p.right; choose with `inputs: {thing: p.left}`"
    ]
    project.spec("- {id: p, uses: pair}\n- {id: c, uses: append, inputs: {thing: p.right}}").apply()
    assert "righty" in project.stored_texts()


def test_an_input_that_nothing_feeds_says_what_there_is(project: EngineProject) -> None:
    project.spec("- {id: c, uses: append, needs: []}")
    (message,) = refused(project)
    assert message == (
        "spec.yaml:5:34: c: input 'thing' wants a thing, and it needs no stage; "
        "name a stage that makes one in `needs`, or choose with `inputs: {thing: STAGE}`"
    )


def test_an_edge_of_the_wrong_type_is_an_error_at_its_line(project: EngineProject) -> None:
    project.spec("- {id: a, uses: make}\n- {id: o, uses: convert}\n- {id: c, uses: append}")
    (message,) = refused(project)
    assert message == (
        "spec.yaml:7:19: c: input 'thing' wants a thing, and o gives other; "
        "name a stage that makes one in `needs`, or choose with `inputs: {thing: STAGE}`"
    )


def test_missing_data_is_named(project: EngineProject) -> None:
    project.spec("- {id: r, uses: read-data}")
    (message,) = refused(project)
    assert message == (
        "spec.yaml:5:19: r: input 'evaluation' wants a dataset, and it needs no stage, nor does the spec have "
        "`data.evaluation`; name a stage that makes one in `needs`, or choose with `inputs: {evaluation: STAGE}`"
    )


def test_the_model_feeds_who_wants_it(project: EngineProject) -> None:
    (project.root / "net.py").write_text("def build() -> None: ...\n")
    project.spec("- {id: a, uses: make}\n- {id: r, uses: read-model}", head=MODEL)
    project.apply()
    assert "net.py" in project.stored_texts()


@pytest.mark.parametrize(("chosen", "message"), [
    ("{thng: a}", "append has no input 'thng'; did you mean 'thing'?"),
    ("{thing: a.left}", "a has no output 'left' for input 'thing'; it has thing"),
    ("{thing: [a, a]}", "input 'thing' of append takes one artifact, not 2"),
])  # fmt: skip
def test_a_wrong_choice_of_input_is_said(project: EngineProject, chosen: str, message: str) -> None:
    project.spec(f"- {{id: a, uses: make}}\n- {{id: c, uses: append, inputs: {chosen}}}")
    assert any(line.endswith(message) for line in refused(project)), refused(project)


def test_unknown_names_come_with_what_is_near_all_at_once(project: EngineProject) -> None:
    project.spec(
        """
        - {id: a, uses: mak}
        - {id: b, uses: make, needs: [], with: {txt: x}}
        - {id: c, uses: no-such-thing, needs: []}
        """
    )
    assert refused(project) == [
        "spec.yaml:5:19: no stage named 'mak' is installed; did you mean 'make'?",
        "spec.yaml:6:43: 'txt' is not known in stages[1].with; did you mean 'text'?",
        "spec.yaml:7:19: no stage named 'no-such-thing' is installed; `shipctl stages list` shows what is installed",
    ]


# -- when ------------------------------------------------------------------------------------------------------


def test_a_skip_propagates_except_into_a_list(project: EngineProject) -> None:
    project.spec(
        """
        - {id: a, uses: make, with: {text: a}}
        - {id: b, uses: make, needs: [], when: false}
        - {id: c, uses: append}
        - {id: j, uses: join, needs: [a, b, c]}
        - {id: after, uses: append}
        """
    )
    run = project.apply()
    assert run.statuses == {"a": "done", "b": "skipped", "c": "skipped", "j": "done", "after": "done"}
    assert run.code == 0
    assert project.stored_texts() == {"a", "ay"}


def test_a_list_with_nothing_left_fails(project: EngineProject) -> None:
    project.spec("- {id: a, uses: make, when: false}\n- {id: j, uses: join}")
    run = project.apply()
    assert run.messages["j"] == "no candidate is left for input 'things' (a.thing: a was skipped)"
    assert (run.code, run.statuses["j"]) == (4, "failed")


def test_when_over_metrics_is_decided_once_they_are_known(project: EngineProject) -> None:
    project.spec(
        """
        - {id: a, uses: make, with: {text: abcd}}
        - {id: k, uses: check}
        - {id: long, uses: append, when: "${{ stages.k.metrics.length > 3 }}", with: {label: long}}
        - {id: short, uses: append, needs: k, when: "${{ stages.k.metrics.length <= 3 }}", with: {label: short}}
        """
    )
    plan = {node.node: node for node in project.plan().nodes}
    assert (plan["long"].action, plan["long"].reasons) == ("run", ("k, a run first",))
    run = project.apply()
    assert (run.ran[2:], run.statuses["short"]) == (["long"], "skipped")
    project.edit("text: abcd", "text: ab")
    assert project.apply().ran[2:] == ["short"]


def test_an_option_over_metrics_is_filled_in_and_counts(project: EngineProject) -> None:
    project.spec(
        """
        - {id: a, uses: make, with: {text: abcd}}
        - {id: k, uses: check}
        - {id: b, uses: append, with: {add: " is ${{ stages.k.metrics.length | int }} long", label: b}}
        """
    )
    project.apply()
    assert "abcd is 4 long" in project.stored_texts()
    assert project.apply().ran == []
    assert project.actions()["b"] == "cached"
    project.edit("text: abcd", "text: ab")
    project.apply()
    assert "ab is 2 long" in project.stored_texts()


def test_a_when_that_is_no_yes_or_no_fails_its_stage(project: EngineProject) -> None:
    project.spec(
        '- {id: a, uses: make}\n- {id: k, uses: check}\n- {id: b, uses: append, when: "${{ stages.k.metrics.length }}"}'
    )
    run = project.apply()
    assert (run.statuses["b"], run.code) == ("failed", 2)
    assert run.messages["b"].endswith("`when` of b came to 1.0; write a comparison")


def test_survivors_of_failed_variants_go_on(project: EngineProject) -> None:
    project.spec(
        """
        - {id: m, uses: misbehave-inline, matrix: {h: [well, raise, stage-error]}, with: {how: "${{ matrix.h }}"}}
        - {id: w, uses: append}
        - {id: j, uses: choose, needs: w, with: {label: j}}
        - {id: after, uses: append-worker, with: {label: after}}
        """
    )
    run = project.apply()
    assert run.statuses["w[h=well]"] == "done"
    assert run.statuses["w[h=raise]"] == "blocked"
    assert (run.statuses["j"], run.statuses["after"], run.code) == ("done", "done", 0)


def test_a_list_input_in_a_worker_takes_the_survivors_too(project: EngineProject) -> None:
    project.spec(
        """
        - {id: m, uses: misbehave-inline, matrix: {h: [raise, well]}, with: {how: "${{ matrix.h }}"}}
        - {id: j, uses: join, timeout: 20s}
        """
    )
    run = project.apply()
    assert (run.statuses["j"], run.code) == ("done", 0), run.messages


def test_no_survivor_is_a_failure_that_says_why(project: EngineProject) -> None:
    project.spec(
        """
        - {id: m, uses: misbehave-inline, matrix: {h: [raise, stage-error]}, with: {how: "${{ matrix.h }}"}}
        - {id: j, uses: choose}
        """
    )
    run = project.apply()
    assert run.messages["j"] == (
        "no candidate is left for input 'things' (m[h=raise].thing: m[h=raise] failed; "
        "m[h=stage-error].thing: m[h=stage-error] failed)"
    )
    assert run.code == 1, "what failed first is what is told"


# -- plugins ---------------------------------------------------------------------------------------------------


def install(folder: Path, name: str, module: str, entries: str) -> None:
    """Put a distribution with one module on the path."""
    package = name.replace("-", "_")
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[shipctl.stages]\n{entries}\n")
    (folder / f"{package}.py").write_text(textwrap.dedent(module))
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


@pytest.fixture
def plug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", sys.path[:])
    return tmp_path / "plug"


def test_one_name_in_two_distributions_is_an_error(project: EngineProject, plug: Path) -> None:
    for name in ("left-plug", "right-plug"):
        install(plug, name, "", f"twice = {name.replace('-', '_')}:Stage")
    project.spec("- {uses: twice}")
    with pytest.raises(PluginError) as caught:
        project.plan()
    assert str(caught.value) == (
        "stage 'twice' is declared by left-plug 1.0 (left_plug:Stage) and right-plug 1.0 (right_plug:Stage); "
        "uninstall one of them"
    )
    project.spec("- {uses: make}")
    assert project.apply().code == 0, "who does not use it is not concerned"


def test_a_plugin_that_does_not_import_names_itself_and_breaks_nothing_else(
    project: EngineProject, plug: Path
) -> None:
    install(plug, "torn-plug", "import nothing_of_that_name", "torn = torn_plug:Stage")
    project.spec("- {uses: torn}")
    with pytest.raises(PluginError) as caught:
        project.plan()
    assert str(caught.value) == (
        "stage 'torn' of torn-plug 1.0 (torn_plug:Stage) does not import: "
        "ModuleNotFoundError: No module named 'nothing_of_that_name'"
    )
    assert caught.value.exit_code == 3
    project.spec("- {uses: make}")
    assert project.apply().code == 0


STAGE = """
    from shipctl import NoOptions, Stage, StageInputs, StageOutputs

    class Silent(Stage[NoOptions, StageInputs, StageOutputs]):
        def run(self, inputs, ctx): ...

    class Newer(Silent):
        api_version = 2

    class Bare(Stage):
        api_version = 1

        def run(self, inputs, ctx): ...

    class Thief:
        api_version = 1
    """


BASE = "name the models in the base: Stage[Options, Inputs, Outputs]"
NOW = "this shipctl has version 1: set `api_version = 1` once it fits"


@pytest.mark.parametrize(("name", "message"), [
    ("newer", f"was written for plugin API 2; {NOW}"),
    ("silent", f"does not say for which plugin API it was written; {NOW}"),
    ("bare", f"has no options_model, inputs_model, outputs_model; {BASE}"),
    ("thief", "is not a subclass of shipctl.Stage or shipctl.ReleaseStage"),
])  # fmt: skip
def test_a_plugin_that_is_no_stage_of_this_api_is_refused(
    project: EngineProject, plug: Path, name: str, message: str
) -> None:
    package = f"{name}_plug"
    install(plug, package, STAGE, f"{name} = {package}:{name.title()}")
    project.spec(f"- {{uses: {name}}}")
    with pytest.raises(PluginError) as caught:
        project.plan()
    assert str(caught.value) == f"stage '{name}' of {package} 1.0 ({package}:{name.title()}) {message}"


def test_only_what_a_spec_uses_is_imported(project: EngineProject, plug: Path) -> None:
    install(plug, "idle-plug", "raise RuntimeError('imported')", "idle = idle_plug:Stage")
    project.spec("- {uses: make}")
    project.plan()
    assert "idle_plug" not in sys.modules


def test_what_the_spec_brings_can_be_named_under_inputs(project: EngineProject) -> None:
    (project.root / "net.py").write_text("def build(): ...\n")
    project.spec("- {id: a, uses: make}\n- {id: b, uses: append, inputs: {thing: model}}", head=MODEL)
    assert refused(project) == [
        "spec.yaml:10:43: model is a torch-model, and input 'thing' wants a thing",
    ]


def test_a_stage_reads_the_axis_that_it_inherits(project: EngineProject) -> None:
    project.spec(
        """
        - {id: a, uses: make, matrix: {n: [one, two]}, with: {text: "${{ matrix.n }}"}}
        - {id: b, uses: append, with: {add: "-${{ matrix.n }}"}}
        """
    )
    assert project.apply().code == 0
    assert {"one-one", "two-two"} <= set(project.stored_texts())
