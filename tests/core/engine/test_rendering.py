"""What a release would put on its target, and how that differs from what is live there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shipctl.engine.rendering import diff, render
from shipctl.errors import GateError, PluginError, SpecError, StageError, UnavailableError
from support_cli import install
from support_engine import EngineProject

MODULE = '''
"""A release to a folder that keeps one file per object."""

from pydantic import Field

from shipctl import (
    Phase, ReleaseStage, ReleaseState, StageError, StageInputs, StageOptions, Step, UnavailableError,
)
from shipctl_test_stages.artifacts import Thing


class Inputs(StageInputs):
    thing: Thing


class Options(StageOptions):
    target: str = Field(default="cluster", description="Where to.")
    color: str = Field(default="blue", description="A value in the manifest.")
    token: str = Field(default="", description="A secret.")
    path: str = Field(default="thing.yaml", description="The file's name.")
    problem: str = Field(default="", description="What keeps the target from being asked.")
    gone: bool = Field(default=False, description="Whether the check finds no target.")


class Shelve(ReleaseStage[Options, Inputs, ReleaseState]):
    """Put a manifest into a folder."""

    api_version = 1

    def target(self):
        return self.options.target

    def check(self, ctx):
        if self.options.gone:
            raise UnavailableError("no cluster answers; start one")

    def manifests(self, inputs, ctx):
        if self.options.target == "plain":
            return {}
        thing = f"thing: {inputs.thing.digest[:8]}\\ncolor: {self.options.color}\\ntoken: {self.options.token}\\n"
        return {self.options.path: thing, "b/more.yaml": f"revision: {ctx.revision}\\n"}

    def diff(self, inputs, ctx):
        if self.options.problem:
            raise StageError(f"{self.options.problem} {self.options.token}")
        live = ctx.target_dir / "live.yaml"
        new = self.manifests(inputs, ctx)[self.options.path]
        old = live.read_text() if live.exists() else ""
        if old == new:
            return ()
        return ["--- live", "+++ new", *(f"-{line}" for line in old.splitlines()),
                *(f"+{line}" for line in new.splitlines())]

    def in_place(self, inputs, ctx):
        live = ctx.target_dir / "live.yaml"
        return live.exists() and live.read_text() == self.manifests(inputs, ctx)[self.options.path]

    def step(self, state, inputs, ctx):
        ctx.target_dir.mkdir(parents=True, exist_ok=True)
        (ctx.target_dir / "live.yaml").write_text(self.manifests(inputs, ctx)[self.options.path])
        return state, Step(phase=Phase.DONE, message="there")

    def abort(self, state, inputs, ctx):
        return state, Step(phase=Phase.ROLLED_BACK, message="gone")

    def status(self, ctx):
        return ()
'''

CHAIN = """
    - {id: a, uses: make, with: {text: aa, label: a}}
    - {id: b, uses: append, with: {add: b, label: b}}
    - {id: k, uses: check, with: {label: k}}
    - {id: d, uses: shelve, needs: [b, k]OPTIONS}
    """


@pytest.fixture(autouse=True)
def shelve(tmp_path: Path, test_stages: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The release stage `shelve` is installed."""
    install(tmp_path / "site", "shelve_stages", MODULE, "[shipctl.stages]\nshelve = shelve_stages:Shelve\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield
    sys.modules.pop("shelve_stages", None)


def releasing(project: EngineProject, options: str = "", head: str = "") -> EngineProject:
    """Write a spec that releases with these options."""
    return project.spec(CHAIN.replace("OPTIONS", f", with: {{{options}}}" if options else ""), head=head)


@pytest.fixture
def made(project: EngineProject) -> EngineProject:
    """A project in which all that is to be released has been made."""
    releasing(project)
    assert project.apply(project.plan(until="k")).code == 0
    return project


def test_what_would_be_released_comes_from_the_store(made: EngineProject) -> None:
    (found,) = render(made.path)
    assert (found.stage, found.target, found.environment, found.version) == ("d", "cluster", None, "1.0.0")
    assert list(found.files) == ["thing.yaml", "b/more.yaml"]
    assert "color: blue\n" in found.files["thing.yaml"]
    assert found.files["b/more.yaml"] == f"revision: {found.revision}\n"


def test_the_revision_is_the_one_that_apply_releases(made: EngineProject) -> None:
    (found,) = render(made.path)
    released = [event.revision for event in made.apply().events if hasattr(event, "revision")]
    assert set(released) == {found.revision}
    assert render(made.path) == [found]  # in place by now


def test_rendering_changes_nothing(made: EngineProject) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.root.rglob("*")}
    render(made.path)
    assert {path: path.stat().st_mtime_ns for path in made.root.rglob("*")} == before


def test_stages_that_have_not_run_are_named_with_the_command_that_runs_them(project: EngineProject) -> None:
    releasing(project)
    text = (
        r"^d has nothing to release yet: b, k have not run; "
        r"run `shipctl apply spec.yaml --set vars.x=1 --until k` first$"
    )
    project.edit("stages:", "vars: {x: 0}\nstages:")
    for act in (render, diff):
        with pytest.raises(UnavailableError, match=text):
            act(project.path, overrides=["vars.x=1"])


def test_what_a_gate_refuses_is_not_rendered(made: EngineProject) -> None:
    made.edit("{label: k}", "{label: k, max: 1}")
    with pytest.raises(GateError, match=r"^d has nothing to release: .*k was rejected"):
        render(made.path)


def test_an_option_that_a_stage_decides_is_known_by_then(made: EngineProject) -> None:
    made.edit("needs: [b, k]", 'needs: [b, k], with: {color: "x${{ stages.k.metrics.length }}"}')
    (found,) = render(made.path)
    assert "color: x3.0\n" in found.files["thing.yaml"]


def test_secrets_are_in_nothing_that_is_shown(made: EngineProject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_TOKEN", "hush-hush-123")
    made.edit("stages:", "secrets: {token: {env: THE_TOKEN}}\nstages:")
    made.edit("needs: [b, k]", 'needs: [b, k], with: {token: "${{ secrets.token }}"}')
    assert "token: ***\n" in render(made.path)[0].files["thing.yaml"]
    assert "+token: ***" in diff(made.path)[0].lines
    made.edit("with: {token:", "with: {problem: no answer for, token:")
    with pytest.raises(StageError) as caught:
        diff(made.path)
    assert str(caught.value) == "no answer for ***"


def test_a_target_that_is_not_there_is_rendered_for_and_not_compared_with(made: EngineProject) -> None:
    made.edit("needs: [b, k]", "needs: [b, k], with: {gone: true}")
    assert render(made.path)[0].files
    with pytest.raises(UnavailableError, match=r"^d: no cluster answers; start one$"):
        diff(made.path)


def test_nothing_differs_once_it_is_released(made: EngineProject) -> None:
    (before,) = diff(made.path)
    assert before.lines[:2] == ("--- live", "+++ new")
    made.apply()
    assert diff(made.path)[0].lines == ()
    (made.state / "targets" / "cluster" / "live.yaml").write_text("color: red\n")
    (drift,) = diff(made.path)
    assert "-color: red" in drift.lines
    assert "+color: blue" in drift.lines


def test_one_of_several_releases(made: EngineProject) -> None:
    made.edit(
        "uses: shelve, needs: [b, k]}",
        "uses: shelve, needs: [b, k]}\n  - {id: e, uses: shelve, needs: b, environment: far, with: {target: far}}",
    )
    made.edit("stages:", "environments: {far: {}}\nstages:")
    assert [item.stage for item in render(made.path)] == ["d"]
    assert [(item.stage, item.environment) for item in render(made.path, environment="far")] == [
        ("d", "far"),
        ("e", "far"),
    ]
    assert [item.stage for item in render(made.path, environment="far", stage="e")] == ["e"]
    with pytest.raises(
        SpecError, match=r"^e is skipped: it releases to far only, .*; choose it with -e far$"
    ):
        render(made.path, stage="e")
    with pytest.raises(SpecError, match=r"^--stage x: spec.yaml has no such release stage; it has d, e$"):
        render(made.path, stage="x")


def test_a_spec_that_releases_nothing_says_so(project: EngineProject) -> None:
    project.spec("- {id: a, uses: make}")
    with pytest.raises(
        SpecError, match=r"^spec.yaml has no release stage, so there is nothing to put on a target$"
    ):
        render(project.path)


@pytest.mark.parametrize("name", ["/etc/passwd", "../up.yaml", "a/../../up.yaml"])
def test_a_manifest_does_not_leave_its_folder(made: EngineProject, name: str) -> None:
    made.edit("needs: [b, k]", f"needs: [b, k], with: {{path: {name}}}")
    with pytest.raises(PluginError, match="which is no path inside a folder"):
        render(made.path)
