"""Stages with requirements of their own run in an environment made for them, and plans tell of it."""

from __future__ import annotations

import pytest

from shipctl.testing.samples import tiny_onnx_model
from support_engine import EngineProject

HEAD = """
model:
  uri: model.onnx
  inputs: [{name: x, dtype: float32, shape: [batch, 4]}]
  outputs: [{name: y, dtype: float32, shape: [batch, 3]}]
"""


@pytest.fixture
def onnx_project(project: EngineProject) -> EngineProject:
    tiny_onnx_model(project.root)
    return project


@pytest.mark.slow
def test_a_stage_runs_with_an_older_onnx_than_shipctl(onnx_project: EngineProject) -> None:
    """The environment (the user's cache keeps it) has versions that shipctl's own could not."""
    project = onnx_project.spec("- {id: old, uses: older-onnx}", head=HEAD)
    (node,) = project.plan().nodes
    assert node.action == "run"
    assert node.environment is not None
    assert node.environment.startswith(
        "runs in an environment of its own with numpy<2, onnx==1.16.2, protobuf<5 ("
    )

    run = project.apply()
    assert run.code == 0
    assert '"title": "onnx 1.16.2, numpy 1"' in project.command("report", "--json")[1]

    (again,) = project.plan().nodes
    assert (again.action, again.environment) == ("cached", None)


@pytest.mark.slow
def test_the_lock_counts_in_the_fingerprint(
    onnx_project: EngineProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shipctl.engine import isolation
    from shipctl.engine.resolving import Lock, lock_of

    project = onnx_project.spec("- {id: old, uses: older-onnx}", head=HEAD)
    (before,) = project.plan().nodes

    def newer(requirements: object, progress: object = None) -> Lock:
        lock = lock_of(requirements)  # type: ignore[arg-type]
        return lock.model_copy(update={"pins": (*lock.pins[:-1], "typing_extensions==99")})

    monkeypatch.setattr(isolation, "lock_of", newer)
    (after,) = project.plan().nodes
    assert before.fingerprint != after.fingerprint


@pytest.mark.slow
def test_requirements_that_contradict_each_other_are_told_by_the_plan(onnx_project: EngineProject) -> None:
    project = onnx_project.spec("- {id: never, uses: contradiction}", head=HEAD)
    (node,) = project.plan().nodes
    assert node.unavailable is not None
    assert node.unavailable.startswith(
        "the environment of contradiction cannot be made: pip cannot resolve onnx==1.16.2, onnx==1.17.0, "
    )
    assert "Cannot install" in node.unavailable
