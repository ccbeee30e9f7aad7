"""Stages whose requirements cannot live beside shipctl's."""

from __future__ import annotations

import json
from typing import ClassVar

from shipctl.stages.artifacts import OnnxModel, Report
from shipctl.stages.base import NoOptions, Stage, StageInputs, StageOutputs
from shipctl.stages.context import StageContext


class ModelInput(StageInputs):
    """A model."""

    model: OnnxModel


class Outputs(StageOutputs):
    """What was seen."""

    report: Report


class OlderOnnx(Stage[NoOptions, ModelInput, Outputs]):
    """Read a model with an onnx that is years old, and numpy 1."""

    api_version = 1
    subject = "model"
    requirements: ClassVar[tuple[str, ...]] = ("onnx==1.16.2", "numpy<2", "protobuf<5")

    def run(self, inputs: ModelInput, ctx: StageContext) -> Outputs:
        import numpy as np
        import onnx

        model = onnx.load(inputs.model.path)
        path = ctx.workdir / "seen.json"
        path.write_text(json.dumps({"nodes": [node.op_type for node in model.graph.node]}))
        title = f"onnx {onnx.__version__}, numpy {np.__version__.partition('.')[0]}"
        return Outputs(report=Report.at(path, subject=inputs.model.digest, title=title))


class Contradiction(OlderOnnx):
    """Ask for what cannot be."""

    requirements = ("onnx==1.16.2", "onnx==1.17.0")
