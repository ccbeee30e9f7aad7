"""Stage `sklearn-export`: from a scikit-learn estimator to an ONNX graph that answers the same."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from shipctl.errors import SpecError, StageError
from shipctl.stages.artifacts import Dataset, OnnxModel, Report, SklearnModel
from shipctl.stages.base import Bound, Stage, StageInputs, StageOutputs
from shipctl.stages.context import CheckContext, JudgeContext, StageContext
from shipctl.stages.verdicts import Verdict
from shipctl_plugins._onnx import graph, parity
from shipctl_plugins._onnx.made import made_from
from shipctl_plugins._onnx.naming import name_as_declared
from shipctl_plugins._onnx.noise import routed, temporary_files_in
from shipctl_plugins._onnx.reports import write_report
from shipctl_plugins._onnx.session import first_line
from shipctl_plugins._sources.sklearn_source import SklearnSource, sklearn_source
from shipctl_plugins._sources.source_parity import compare_with_source, require
from shipctl_plugins.convert import _sklearn_graph
from shipctl_plugins.convert._answers import Answers, judge_answers

if TYPE_CHECKING:
    from onnx import ModelProto

NEWEST_OPSET = 22
"""What skl2onnx 1.20 is tested with."""
NEWEST_ML_OPSET = 3
"""Tree ensembles have another operator from 5 on, which skl2onnx does not write."""


class Options(parity.ExactParityOptions):
    """What stands below ``with:``."""

    opset: int = Field(
        default=21,
        ge=9,
        le=NEWEST_OPSET,
        description="Newest version of the ONNX operator set that the graph may use; skl2onnx declares the oldest "
        "that has all it needs.",
    )
    ml_opset: int = Field(
        default=NEWEST_ML_OPSET,
        ge=1,
        le=NEWEST_ML_OPSET,
        description="The same for the operator set ai.onnx.ml, which has the trees.",
    )
    max_abs_error: float | None = Bound(
        None,
        ge=0,
        description="Largest absolute error of a probability or value; left out, only the relative one counts.",
    )
    min_agreement: float = Bound(
        1.0, ge=0, le=1, description="Smallest fraction of samples that get the same label."
    )


class Inputs(StageInputs):
    """What the stage takes."""

    model: SklearnModel
    calibration: Dataset | None = None


class Outputs(StageOutputs):
    """What the stage gives."""

    model: OnnxModel
    report: Report


class SklearnExport(Stage[Options, Inputs, Outputs]):
    """Convert a scikit-learn classifier or regressor, or a pipeline that ends in one, to ONNX and compare the two.

    The signature in the spec decides about names and types: one table `[batch, n]`, or an input `[batch, 1]` per
    column, named like the columns; a classifier's labels are the output of int64 or string, its probabilities
    (`[batch, classes]`, without ZipMap) the one of floats, and either may be left out; a regressor has one output of
    floats, `[batch]` or `[batch, 1]`::

        outputs:
          - {name: label, dtype: int64, shape: [batch]}
          - {name: probabilities, dtype: float32, shape: [batch, 2]}

    Graphs compute in float32 where scikit-learn computes in float64. Trees alone give identical labels; where a
    scaler stands before them, a sample at a threshold may fall on its other side: lower `min_agreement` then, or
    train the trees without the scaler, which they do not need.

    Models come as `.skops` files. What skops does not trust (trees are among it, since their indices are not
    checked), and pickles, take `trust_pickle: true` in the spec.
    """

    api_version = 1
    requires: ClassVar[Mapping[str, str]] = {
        "sklearn": "shipctl[sklearn]",
        "skl2onnx": "shipctl[sklearn]",
        "skops": "shipctl[sklearn]",
        "onnxruntime": "shipctl[cpu]",
    }
    metrics = (*parity.METRICS, "parity.agreement")
    tools = ("scikit-learn", "skl2onnx", "skops", "onnx", "onnxruntime", "numpy")

    def check(self, ctx: CheckContext) -> None:
        """Look at the types of the declared inputs."""
        for source in ctx.inputs.get("model", ()):
            if isinstance(source.artifact, SklearnModel):
                unknown = [
                    spec for spec in source.artifact.signature.inputs
                    if spec.dtype not in _sklearn_graph.INPUT_TYPES
                ]  # fmt: skip
                if unknown:
                    known = ", ".join(_sklearn_graph.INPUT_TYPES)
                    message = f"skl2onnx takes no input {unknown[0]}; declare one of {known}"
                    raise SpecError(message)

    def run(self, inputs: Inputs, ctx: StageContext) -> Outputs:
        """Open, convert, check against the signature, compare."""
        source_model, options = inputs.model, self.options
        signature = source_model.signature
        with (
            routed(ctx.log),
            temporary_files_in(ctx.workdir / "tmp"),
            sklearn_source(source_model, threads=ctx.threads) as source,
        ):
            converted = _converted(source, options)
            require(graph.graph_differences(converted, signature), "the converted graph")
            graph.declare(converted, signature)
            graph.strip_notes(converted)
            folder = graph.save_model(converted, ctx.workdir / "model")
            graph.check_model(folder / graph.MODEL_FILE)
            measured = compare_with_source(
                source, folder / graph.MODEL_FILE, signature, inputs.calibration, options, ctx, Answers()
            )
        if source.trusted_types:
            ctx.log(f"trusted, as the spec says: {', '.join(source.trusted_types)}")
        model = made_from(source_model, folder, graph.opset_of(converted))
        kind = type(source.estimator).__name__
        notes = {
            "nodes": graph.node_count(converted), "estimator": kind,
            "trusted_types": list(source.trusted_types),
        }  # fmt: skip
        report = write_report(
            ctx.workdir, subject=model.digest, title=f"Conversion of a {kind} to ONNX",
            metrics=measured.metrics(), details=measured.details() | notes,
        )  # fmt: skip
        return Outputs(model=model, report=report)

    def judge(self, outputs: Outputs, ctx: JudgeContext) -> Sequence[Verdict]:
        """Compare parity and the agreement of labels with their bounds."""
        return judge_answers(outputs.report, self.options, self.options.min_agreement)


def _converted(source: SklearnSource, options: Options) -> ModelProto:
    """Return the graph of ``source`` with the inputs and outputs of its signature."""
    model = _sklearn_graph.convert(
        source, {"": options.opset, "ai.onnx.ml": options.ml_opset}, _unconvertible
    )
    _sklearn_graph.take_declared_inputs(model, source)
    _sklearn_graph.give_declared_outputs(model, source)
    name_as_declared(model, source.signature)
    return model


def _unconvertible(exc: Exception, estimator: Any) -> StageError:
    """Return what to say when skl2onnx does not convert ``estimator``."""
    import skl2onnx

    # `Unable to find a shape calculator for type '<class 'package.Estimator'>'.`, or the bare class as a key
    found = re.search(r"<class '([\w.]+)'>", str(exc))
    if found is not None and type(exc).__name__ in {"MissingShapeCalculator", "MissingConverter", "KeyError"}:
        text = f"skl2onnx {skl2onnx.__version__} has no converter for {found[1]}; replace that estimator"
    else:
        text = (
            f"skl2onnx {skl2onnx.__version__} does not convert this {type(estimator).__name__}: "
            f"{type(exc).__name__}: {first_line(exc)}"
        )
    return StageError(text)
