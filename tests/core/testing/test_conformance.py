"""The conformance kit passes good stages and catches each kind of bad one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from shipctl.stages.registry import StageClass
from shipctl.testing import StageConformance
from shipctl.testing.checks import frameworks_imported_by, static_problems
from support_cli import install

MODULE = '''
import itertools, pathlib
from shipctl import (Bound, Dataset, OnnxModel, ReleaseStage, ReleaseState, Report, Stage, StageInputs, StageOptions,
                     StageOutputs, TritonRepository, compare, Outcome, Verdict)
from pydantic import Field

counter = itertools.count()
ELSEWHERE = pathlib.Path(__file__).with_name("stray.txt")


class Options(StageOptions):
    least: float = Bound(0.5, description="The least score.")


class Inputs(StageInputs):
    model: OnnxModel
    samples: Dataset
    more: list[Report]
    repository: TritonRepository | None = None


class Outputs(StageOutputs):
    report: Report


class Good(Stage[Options, Inputs, Outputs]):
    """Do it right."""

    api_version = 1
    isolation = "inline"
    subject = "model"
    metrics = ("score",)

    def text(self, inputs):
        return "same"

    def metric(self):
        return {"score": 0.9}

    def run(self, inputs, ctx):
        path = ctx.workdir / "report.json"
        path.write_text(self.text(inputs))
        return Outputs(report=Report.at(path, subject=inputs.model.digest, title="t", metrics=self.metric()))

    def judge(self, outputs, ctx):
        return [compare("score", outputs.report.metrics.get("score"), ">=", self.options.least)]


class Random(Good):
    """Give something else each time."""

    def text(self, inputs):
        return str(next(counter))


class Stray(Good):
    """Write elsewhere."""

    def text(self, inputs):
        ELSEWHERE.write_text("stray")
        return "same"


class Spoil(Good):
    """Change an input."""

    def text(self, inputs):
        with inputs.samples.path.open("ab") as file:
            file.write(b"!")
        return "same"


class Generous(Good):
    """Let everything pass."""

    def judge(self, outputs, ctx):
        value = outputs.report.metrics.get("score", 1.0)
        outcome = Outcome.FAIL if value < self.options.least else Outcome.PASS
        return [Verdict(gate="score", outcome=outcome, message="fine", metric="score", value=value)]


class Silent(Good):
    """Forget the gate where the metric is missing."""

    def judge(self, outputs, ctx):
        return super().judge(outputs, ctx) if "score" in outputs.report.metrics else []


class Chatty(Good):
    """Measure more than it says."""

    def metric(self):
        return {"score": 0.9, "undeclared": 1.0}


class Elsewhere(Good):
    """Name a file outside of the work directory."""

    def run(self, inputs, ctx):
        return Outputs(report=Report.at(inputs.samples.root, subject="0" * 64, title="t", metrics={"score": 0.9}))


class Liar(Good):
    """Return something else."""

    def run(self, inputs, ctx):
        return inputs
'''
NAMES = ("good", "random", "stray", "spoil", "generous", "silent", "chatty", "elsewhere", "liar")


@pytest.fixture(autouse=True)
def sample_stages(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("site")
    points = "".join(f"sample-{name} = sample_stages:{name.capitalize()}\n" for name in NAMES)
    install(folder, "sample_stages", MODULE, f"[shipctl.stages]\n{points}")
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    sys.modules.pop("sample_stages", None)


def suite(name: str, **attributes: Any) -> StageConformance:
    suite = type("Suite", (StageConformance,), {"stage": f"sample-{name}", **attributes})()
    assert isinstance(suite, StageConformance)
    return suite


class TestGoodStage(StageConformance):
    """The kit as a third party uses it."""

    stage = "sample-good"
    options: ClassVar[dict[str, Any]] = {"least": 0.4}


@pytest.mark.parametrize(
    ("name", "test", "text"),
    [
        (
            "random",
            "test_same_inputs_give_the_same_outputs",
            "the outputs of two runs with the same inputs differ",
        ),
        ("stray", "test_nothing_else_is_written", "files outside of ctx.workdir were opened for writing"),
        ("spoil", "test_nothing_else_is_written", "files outside of ctx.workdir were opened for writing"),
        ("chatty", "test_metrics_are_declared", "undeclared"),
        ("elsewhere", "test_declared_outputs_lie_in_the_work_directory", "output 'report' lies at"),
        ("liar", "test_same_inputs_give_the_same_outputs", "run returned Inputs"),
    ],
)
def test_a_bad_stage_fails_its_test(
    tmp_path_factory: pytest.TempPathFactory, name: str, test: str, text: str
) -> None:
    with pytest.raises(AssertionError, match=text):
        getattr(suite(name), test)(tmp_path_factory)


@pytest.mark.parametrize(
    ("name", "value"), [("generous", "nan"), ("generous", "missing"), ("generous", "inf")]
)
def test_a_gate_that_lets_the_unknown_pass_fails(
    tmp_path_factory: pytest.TempPathFactory, name: str, value: str
) -> None:
    with pytest.raises(AssertionError, match=f"these gates pass a metric that is {value}: score"):
        suite(name).test_gates_fail_closed(tmp_path_factory, value)


def test_a_gate_that_vanishes_with_its_metric_fails(tmp_path_factory: pytest.TempPathFactory) -> None:
    suite("silent").test_gates_fail_closed(tmp_path_factory, "nan")
    with pytest.raises(AssertionError, match="gates vanished together with their metrics"):
        suite("silent").test_gates_fail_closed(tmp_path_factory, "missing")


def test_an_input_without_a_sample_skips_with_what_to_do(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    triton = type("Suite", (StageConformance,), {"stage": "triton-deploy"})()
    with pytest.raises(pytest.skip.Exception, match="a release stage changes a system outside"):
        triton.test_same_inputs_give_the_same_outputs(tmp_path_factory)
    with pytest.raises(
        pytest.skip.Exception, match="no sample of triton-repository for input 'repository'; override"
    ):
        triton.inputs(tmp_path)


def test_unknown_option_is_looked_for(tmp_path: Path) -> None:
    suite("good").test_unknown_option_is_refused()
    with pytest.raises(ValueError, match="nonsense"):
        suite("good", options={"nonsense": 1}).test_options_are_accepted()


def test_static_problems_of_a_good_stage_are_none(sample_stages: Path) -> None:
    stage: StageClass = suite("good")._class()
    assert static_problems(stage) == []


def test_frameworks_are_found_in_a_fresh_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "heavy_module.py").write_text("import json, numpy\n")
    (tmp_path / "light_module.py").write_text("import json\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert frameworks_imported_by("heavy_module") == ["numpy"]
    assert frameworks_imported_by("light_module") == []


def test_the_environment_is_as_before_after_a_run(tmp_path_factory: pytest.TempPathFactory) -> None:
    before = (Path.cwd(), dict(os.environ))
    suite("good").test_same_inputs_give_the_same_outputs(tmp_path_factory)
    assert (Path.cwd(), dict(os.environ)) == before
