from __future__ import annotations

from collections.abc import Callable

from shipctl.stages.artifacts import Dataset, OnnxModel
from shipctl.testing.fixtures import (
    FakeClock,
    SampleProject,
    SpecRunner,
    fake_clock,
    make_dataset,
    make_onnx_model,
    project,
    run_spec,
)  # fmt: skip

__all__ = ["fake_clock", "make_dataset", "make_onnx_model", "project", "run_spec"]

SPEC = """\
apiVersion: shipctl.dev/v1
kind: Pipeline
metadata: {name: small, version: 1.0.0}
stages:
  - uses: validate-weights
"""


def test_run_spec_writes_the_project_and_runs_the_real_command(
    run_spec: SpecRunner, project: SampleProject
) -> None:
    result = run_spec(SPEC, "validate", "--json", files={"data/x.bin": b"\x00"})
    assert (result.exit_code, result.document["valid"]) == (2, False)
    assert "input 'model' wants" in result.document["specs"][0]["message"]
    assert (project.root / "data/x.bin").read_bytes() == b"\x00"
    assert run_spec(SPEC.replace("uses", "use"), "validate").exit_code == 2


def test_a_project_runs_commands_with_an_environment(project: SampleProject) -> None:
    assert project.run("--version").lines[0].startswith("shipctl ")
    assert project.run("nonsense", environ={"NO_COLOR": "1"}).stderr.startswith(
        "error: no command named 'nonsense'"
    )


def test_the_clock_moves_when_it_is_told_to(fake_clock: FakeClock) -> None:
    begun = fake_clock()
    fake_clock.advance(5)
    fake_clock.sleep(2.5)
    assert fake_clock() == begun + 7.5
    assert fake_clock.slept == [2.5]


def test_artifacts_are_made_on_request(
    make_onnx_model: Callable[..., OnnxModel], make_dataset: Callable[..., Dataset]
) -> None:
    assert make_onnx_model(precision="int8").precision == "int8"
    assert make_dataset("golden").role == "golden"
