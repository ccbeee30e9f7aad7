"""On a machine with a GPU: the engine inspector's own answer, and an engine that runs beside its model."""

from __future__ import annotations

from typing import Any

import pytest

from shipctl.stages.artifacts import Dataset, OnnxModel
from shipctl.stages.context import JudgeContext
from shipctl.stages.verdicts import Outcome
from shipctl_plugins._tensorrt.backends import AHEAD_OF_TIME
from shipctl_plugins._tensorrt.devices import gpus
from shipctl_plugins.optimize.trtexec import Inputs, Options, Trtexec

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_engine_is_inspected_and_runs_like_its_model(
    backend: str, digits_onnx: OnnxModel, calibration: Dataset, context: Any
) -> None:
    pytest.importorskip(backend.replace("-", "_"), reason=f"{backend} is not installed")
    gpu = gpus()[0]
    if backend == "tensorrt-rtx" and gpu.capability not in AHEAD_OF_TIME:
        pytest.skip(f"TensorRT for RTX does not support {gpu.name}")
    name = gpu.name.removeprefix("NVIDIA ")
    options = {"backend": backend} | ({"gpu": name} if backend == "tensorrt" else {})
    stage = Trtexec(Options.model_validate(options))
    outputs = stage.run(Inputs(model=digits_onnx, calibration=calibration), context())
    assert outputs.report.details["not_run"] == ""
    assert outputs.report.metrics["inspected"] == 1
    assert outputs.report.metrics["parity.top1"] == 1
    assert outputs.model.compute_capabilities == (gpu.capability,)
    assert {verdict.outcome for verdict in stage.judge(outputs, JudgeContext())} == {Outcome.PASS}
