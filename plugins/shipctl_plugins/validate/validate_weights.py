"""Stage `validate-weights`: a look at every weight before work is put into a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from shipctl.errors import SpecError, StageError
from shipctl.stages.artifacts import (
    Artifact,
    HuggingFaceModel,
    OnnxModel,
    Report,
    SklearnModel,
    TensorflowModel,
    TorchModel,
)
from shipctl.stages.base import Bound, Stage, StageInputs, StageOptions, StageOutputs
from shipctl.stages.context import CheckContext, JudgeContext, StageContext
from shipctl.stages.verdicts import Outcome, Verdict, compare
from shipctl_plugins._onnx.reports import write_report
from shipctl_plugins.validate import _tensors

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

LARGEST_HALF = 65504.0
"""The largest finite float16."""
_FLOATS = ("float", "bfloat")
_SHOWN = 20


class Options(StageOptions):
    """What stands below ``with:``."""

    ignore: tuple[str, ...] = Field(
        default=(),
        description="Patterns of tensor names (`embed*`) that may have dead channels or be constant, "
        "such as an embedding with a padding row.",
    )
    max_abs: float = Bound(
        LARGEST_HALF, gt=0, description="Largest magnitude of a weight; the default is what float16 can hold."
    )
    max_sparsity: float = Bound(
        0.99, ge=0, le=1, description="Largest fraction of zeros among matrices and kernels."
    )
    max_dead_channels: int = Bound(0, ge=0, description="How many output channels may be zero throughout.")
    max_constant_tensors: int = Bound(
        0, ge=0, description="How many matrices and kernels may hold one value only."
    )


class Inputs(StageInputs):
    """What the stage takes."""

    model: TorchModel | HuggingFaceModel | OnnxModel | TensorflowModel | SklearnModel


class Outputs(StageOutputs):
    """What the stage gives."""

    report: Report


class ValidateWeights(Stage[Options, Inputs, Outputs]):
    """Look for NaN, infinity, dead channels, constant tensors, zeros and huge values in a model's weights.

    Tensors are read a slice at a time, so the model may be larger than memory. A channel is dead when all
    weights that lead to it are zero, or when its batch normalisation multiplies it by zero. Vectors (biases,
    normalisations) and integers are often constant for good reasons and count neither as constant nor in the
    sparsity; NaN, infinity and magnitude count everywhere.

    Safetensors and ONNX can be looked at; other weights once they are a graph, after the stage that exports them.
    """

    api_version = 1
    subject = "model"
    requires: ClassVar[Mapping[str, str]] = {"numpy": "shipctl", "onnx": "shipctl"}
    metrics = (
        "weights.parameters", "weights.unchecked", "weights.nan", "weights.inf", "weights.dead_channels",
        "weights.constant_tensors", "weights.sparsity", "weights.max_abs",
    )  # fmt: skip
    tools = ("numpy", "onnx", "ml_dtypes")

    def check(self, ctx: CheckContext) -> None:
        """Refuse a model whose weights can only be looked at in its graph."""
        for source in ctx.inputs.get("model", ()):
            reason = _hidden(source.artifact) if source.artifact is not None else ""
            if reason:
                raise SpecError(reason)

    def run(self, inputs: Inputs, ctx: StageContext) -> Outputs:
        """Look at every tensor."""
        model = inputs.model
        reason = _hidden(model)
        if reason:
            raise StageError(reason)
        if isinstance(model, TorchModel) and model.weights is None:
            rows: list[dict[str, Any]] = []
            metrics: dict[str, float] = {}
        else:
            tensors = [tensor for path in _weights_files(model) for tensor in _tensors.tensors_of(path)]
            norms = _tensors.norm_weights([tensor.name for tensor in tensors])
            rows = [_look(tensor, scales_channels=tensor.name in norms) for tensor in tensors]
            metrics = self._sum_up(rows)
        report = write_report(
            ctx.workdir, subject=model.digest, title="Weights", metrics=metrics, details={"tensors": rows}
        )
        return Outputs(report=report)

    def judge(self, outputs: Outputs, ctx: JudgeContext) -> Sequence[Verdict]:
        """Compare the sums with the bounds; a model without weights cannot be judged."""
        report, options = outputs.report, self.options
        if not report.metrics:
            message = "the model has no weights file, so none was looked at; name it under `model.weights`"
            return [
                Verdict(
                    gate="weights",
                    outcome=Outcome.ERROR,
                    message=message,
                    subject=report.subject,
                    source=report.digest,
                )
            ]
        bounds: tuple[tuple[str, Any, float], ...] = (
            ("parameters", ">=", 1),
            ("unchecked", "==", 0),
            ("nan", "==", 0),
            ("inf", "==", 0),
            ("dead_channels", "<=", options.max_dead_channels),
            ("constant_tensors", "<=", options.max_constant_tensors),
            ("sparsity", "<=", options.max_sparsity),
            ("max_abs", "<=", options.max_abs),
        )
        return [
            compare(f"weights.{name}", report.metrics.get(f"weights.{name}"), how, bound, subject=report.subject,
                    source=report.digest)
            for name, how, bound in bounds
        ]  # fmt: skip

    def _sum_up(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        looked = [row for row in rows if row["checked"]]
        floats = [row for row in looked if row["dtype"].startswith(_FLOATS)]
        matrices = [row for row in floats if len(row["shape"]) > 1]
        counted = [
            row for row in looked if not any(fnmatchcase(row["name"], part) for part in self.options.ignore)
        ]
        elements = sum(row["elements"] for row in matrices)
        return {
            "weights.parameters": float(sum(row["elements"] for row in rows)),
            "weights.unchecked": float(len(rows) - len(looked)),
            "weights.nan": float(sum(row["nan"] for row in floats)),
            "weights.inf": float(sum(row["inf"] for row in floats)),
            "weights.dead_channels": float(sum(row["dead_channels"] for row in counted)),
            "weights.constant_tensors": float(
                sum(row["constant"] and len(row["shape"]) > 1 for row in counted)
            ),
            "weights.sparsity": sum(row["zeros"] for row in matrices) / elements if elements else 0.0,
            "weights.max_abs": max((row["max_abs"] for row in floats), default=0.0),
        }


def _hidden(model: Artifact) -> str:
    """Return why the weights cannot be looked at, and what to do; an empty text where they can."""
    what, exporter = "", "torch-export"
    if isinstance(model, TensorflowModel):
        what, exporter = "a TensorFlow model", "tf2onnx"
    elif isinstance(model, SklearnModel):
        what, exporter = "a scikit-learn model", "sklearn-export"
    elif isinstance(model, HuggingFaceModel) and not _safetensors(model):
        what, exporter = "a Hugging Face folder without safetensors", "hf-export"
    elif isinstance(model, TorchModel) and model.format != "builder":
        what = "a .pt2 file" if model.format == "exported-program" else f"a {model.format} file"
    elif isinstance(model, TorchModel) and not (model.weights or ".safetensors").endswith(".safetensors"):
        what = f"{model.weights}, which is no safetensors file,"
    return what and (
        f"the weights of {what} cannot be looked at before there is a graph of it; put this stage after `{exporter}`"
    )


def _safetensors(model: HuggingFaceModel) -> list[str]:
    return [entry.path for entry in model.files if entry.path.endswith(".safetensors")]


def _weights_files(model: Artifact) -> list[Path]:
    if isinstance(model, OnnxModel):
        return [model.path]
    base = model.root.parent if model.root.is_file() else model.root
    if isinstance(model, HuggingFaceModel):
        return [base / name for name in _safetensors(model)]
    weights = str(getattr(model, "weights", ""))
    if not (base / weights).is_file():
        message = f"weights {weights} are not among the model's files; correct `model.weights`"
        raise StageError(message)
    return [base / weights]


def _look(tensor: _tensors.Tensor, *, scales_channels: bool) -> dict[str, Any]:
    """Return a row for the report: counts, extremes, moments and dead channels of one tensor.

    ``scales_channels`` says that it is a vector with a factor per channel.
    """
    import numpy as np

    row: dict[str, Any] = {
        "name": tensor.name, "dtype": tensor.dtype or "unknown", "shape": list(tensor.shape),
        "elements": tensor.elements, "checked": bool(tensor.dtype), "nan": 0, "inf": 0, "zeros": 0,
        "min": None, "max": None, "max_abs": 0.0, "mean": None, "std": None, "constant": False,
        "dead_channels": 0, "first_dead": [],
    }  # fmt: skip
    if not tensor.dtype or not tensor.elements:
        return row
    finite = total = squares = 0.0
    low, high = math.inf, -math.inf
    alive: Array | None = None
    for part in tensor.slices():
        values = part.astype(np.float64)
        good = np.isfinite(values)
        if good.all():
            kept = values.ravel()
        else:
            kept = values[good]
            nan = int(np.count_nonzero(np.isnan(values)))
            row["nan"] += nan
            row["inf"] += values.size - kept.size - nan
        row["zeros"] += values.size - int(np.count_nonzero(values))
        if kept.size:
            finite += kept.size
            total += float(kept.sum())
            squares += float((kept**2).sum())
            low, high = min(low, float(kept.min())), max(high, float(kept.max()))
        if values.ndim > 1 or scales_channels:
            alive = _alive(values, tensor.channel_axis % values.ndim, alive)
    if finite:
        mean = total / finite
        row |= {"min": low, "max": high, "max_abs": max(abs(low), abs(high)), "mean": mean}
        row["std"] = math.sqrt(max(squares / finite - mean**2, 0.0))
        row["constant"] = tensor.elements > 1 and finite == tensor.elements and low == high
    if alive is not None:
        dead = np.flatnonzero(~alive)
        row |= {"dead_channels": len(dead), "first_dead": dead[:_SHOWN].tolist()}
    return row


def _alive(values: Array, axis: int, before: Array | None) -> Array:
    """Return which channels along ``axis`` have a weight other than zero in ``values`` or the slices before."""
    import numpy as np

    found: Array = (values != 0).any(axis=tuple(other for other in range(values.ndim) if other != axis))
    if before is None:
        return found
    joined: Array = np.concatenate([before, found]) if axis == 0 else before | found
    return joined
