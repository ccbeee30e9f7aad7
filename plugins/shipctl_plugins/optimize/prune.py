"""Stage `prune`: fewer weights, or fewer channels and with them smaller shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from shipctl.errors import SpecError, StageError
from shipctl.stages.artifacts import Dataset, OnnxModel, Report
from shipctl.stages.base import Bound, Stage, StageInputs, StageOutputs
from shipctl.stages.context import CheckContext, JudgeContext, StageContext
from shipctl.stages.verdicts import Verdict, compare
from shipctl_plugins._onnx import arrays, costs, graph, parity, plain_graphs
from shipctl_plugins._onnx.activations import observe
from shipctl_plugins._onnx.cases import parity_cases
from shipctl_plugins._onnx.made import made_from
from shipctl_plugins._onnx.reports import write_report
from shipctl_plugins._onnx.session import open_session, run_session
from shipctl_plugins.optimize import _prune_channels as channels
from shipctl_plugins.optimize import _prune_weights as single
from shipctl_plugins.optimize._prune_fit import fit
from shipctl_plugins.optimize._prune_rules import track

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto

    Array = np.ndarray[Any, np.dtype[Any]]

TRACKING_BATCH = 5
"""Batch in which shapes are looked at: a number that no other dimension is likely to have."""
_FOR_METHODS = {
    "ratio": ("magnitude", "channels"),
    "layers": ("magnitude", "channels"),
    "scope": ("magnitude",),
    "norm": ("channels",),
    "multiple_of": ("channels",),
    "compensate": ("channels",),
}


class Options(parity.ExactParityOptions):
    """What stands below ``with:``."""

    method: Literal["channels", "magnitude", "2:4"] = Field(
        default="channels",
        description="channels takes whole output channels out, so that shapes shrink; magnitude sets single small "
        "weights to zero; 2:4 two of every four, as sparse tensor cores take it.",
    )
    ratio: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="With channels and magnitude: the fraction to prune of every layer that `layers` does not name.",
    )
    layers: dict[str, float] = Field(
        default_factory=dict,
        description="With channels and magnitude: node names (patterns as in a shell) with a fraction of their own.",
    )
    exclude: tuple[str, ...] = Field(
        default=(), description="Node names (patterns as in a shell) of layers that are left alone."
    )
    scope: Literal["layer", "global"] = Field(
        default="layer",
        description="With magnitude: whether the fraction holds for each layer or for all weights together.",
    )
    norm: Literal["l1", "l2"] = Field(
        default="l2", description="With channels: the norm of a channel's weights that is its importance."
    )
    multiple_of: int = Field(
        default=1,
        ge=1,
        description="With channels: keep so many that it is a multiple of this; 16 suits the kernels of CPUs.",
    )
    compensate: bool | None = Field(
        default=None,
        description="With channels: fit the layers after it to what the model answered before, on calibration "
        "data; left out, where there is such data.",
    )
    max_abs_error: float | None = Bound(
        None, ge=0, description="Largest absolute error of any output element."
    )
    max_rel_error: float | None = Bound(
        None, ge=0, description="Largest absolute error of an output, divided by its largest magnitude."
    )
    min_cosine: float | None = Bound(
        None, ge=-1, le=1, description="Smallest cosine similarity of a sample's outputs before and after."
    )
    min_top1: float | None = Bound(
        None, ge=0, le=1, description="Smallest fraction of samples whose largest output stays the same."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, methods in _FOR_METHODS.items():
            # every field is given on the way to a worker
            default = Options.model_fields[name].get_default(call_default_factory=True)
            if self.method not in methods and getattr(self, name) != default:
                message = f"{name} is not for method {self.method}, but for {' and '.join(methods)}"
                raise ValueError(message)
        if self.method != "2:4" and self.ratio is None and not self.layers:
            message = f"method {self.method} needs a ratio, such as 0.25, or layers"
            raise ValueError(message)
        if self.scope == "global" and (self.layers or self.ratio is None):
            raise ValueError("scope global takes one ratio for all layers, and no layers")
        wrong = next((value for value in self.layers.values() if not 0 < value < 1), None)
        if wrong is not None:
            message = f"layers: {wrong} is no fraction between 0 and 1; name layers to leave alone in exclude"
            raise ValueError(message)
        return self


class Inputs(StageInputs):
    """What the stage takes."""

    model: OnnxModel
    calibration: Dataset | None = None


class Outputs(StageOutputs):
    """What the stage gives."""

    model: OnnxModel
    report: Report


@dataclass
class _Pruned:
    model: ModelProto
    rows: list[dict[str, Any]]
    numbers: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


class Prune(Stage[Options, Inputs, Outputs]):
    """Prune the weights or the channels of an ONNX graph.

    - `channels` takes the least important output channels out of every Conv, Gemm and MatMul with everything
      that depends on them: biases, normalisations, depthwise convolutions, the inputs of the layers after it, both
      sides of a residual addition, the right part of a concatenation. What an operator works across (softmax,
      layer normalisation), splits or gives out of the model is left alone. With calibration data the layers
      after it are fitted to the old answers by least squares.
    - `magnitude` and `2:4` set weights to zero, which makes nothing faster by itself: 2:4 is for TensorRT's
      sparse tensor cores, the other for compression.

    Pruning is meant to change the answers, so parity is measured and not judged unless bounds are given; only
    outputs that are not finite fail. Whether the answers are still good is for `evaluate` to say. A stage that
    prunes nothing fails.
    """

    api_version = 1
    requires: ClassVar[Mapping[str, str]] = {"onnxruntime": "shipctl[cpu]"}
    metrics = (
        *parity.METRICS, "outputs.not_finite", "parameters.before", "parameters.after", "sparsity", "flops.before",
        "flops.after", "size.before", "size.after", "pruned.channels", "pruned.weights", "pruned.layers",
    )  # fmt: skip
    tools = ("numpy", "onnx", "onnxruntime")

    def check(self, ctx: CheckContext) -> None:
        """Look for the calibration data that compensating needs."""
        if self.options.compensate and not ctx.inputs.get("calibration"):
            raise SpecError("compensate needs calibration data: name some below `data:`, or leave it out")

    def run(self, inputs: Inputs, ctx: StageContext) -> Outputs:
        """Prune, check, compare."""
        source = inputs.model
        plain = plain_graphs.plain_graph(graph.load_source(source))
        pruned = self._pruned(plain, inputs, ctx)
        differences = graph.graph_differences(pruned.model, source.signature)
        if differences:
            message = f"the pruned graph has another signature: {'; '.join(differences)}; this is a fault of the stage"
            raise StageError(message)
        graph.declare(pruned.model, source.signature)
        graph.strip_notes(pruned.model)
        folder = graph.save_model(pruned.model, ctx.workdir / "model")
        graph.check_model(folder / graph.MODEL_FILE)
        model = made_from(source, folder, graph.opset_of(pruned.model))
        measured, not_finite = _compare(inputs, model, self.options, ctx)
        numbers = pruned.numbers | self._costs(plain, pruned.model, inputs, ctx)
        numbers |= {
            "outputs.not_finite": float(not_finite), "size.before": float(source.size), "size.after": float(model.size),
            "pruned.layers": float(sum(row["before"] != row["after"] for row in pruned.rows)),
        }  # fmt: skip
        report = write_report(
            ctx.workdir, subject=model.digest, title=f"Pruned by {self.options.method}",
            metrics=measured.metrics() | numbers,
            details=measured.details() | {"layers": pruned.rows} | pruned.details,
        )  # fmt: skip
        return Outputs(model=model, report=report)

    def judge(self, outputs: Outputs, ctx: JudgeContext) -> Sequence[Verdict]:
        """Ask for finite outputs, and compare parity with its bounds."""
        report = outputs.report
        finite = compare(
            "outputs.not_finite", report.metrics.get("outputs.not_finite"), "==", 0,
            subject=report.subject, source=report.digest,
        )  # fmt: skip
        return [finite, *parity.judge_parity(report, self.options)]

    def _pruned(self, plain: ModelProto, inputs: Inputs, ctx: StageContext) -> _Pruned:
        weights = plain_graphs.weights_of(plain.graph)
        layers = costs.layer_weights(plain, weights)
        names = [node.name for nodes in layers.values() for node in nodes]
        if not names:
            message = (
                f"nothing was pruned: the graph has no {', '.join(costs.WEIGHTED)} with a float weight; "
                "leave the stage out"
            )
            raise StageError(message)
        for option, patterns in (("layers", tuple(self.options.layers)), ("exclude", self.options.exclude)):
            for pattern in channels.unused(patterns, names):
                message = f"`{option}`: {pattern!r} fits no layer; there are {', '.join(sorted(names))}"
                raise StageError(message)
        if self.options.method == "channels":
            return self._without_channels(plain, inputs, weights, ctx)
        return self._with_zeros(plain, weights, layers)

    def _without_channels(
        self, plain: ModelProto, inputs: Inputs, weights: Mapping[str, Array], ctx: StageContext
    ) -> _Pruned:
        options = self.options
        shapes = self._shapes(plain, inputs, TRACKING_BATCH, ctx)
        tracked = track(plain, shapes, weights)
        ratio = channels.matching(options.layers, options.ratio, options.exclude)
        cut = channels.cut_channels(tracked, ratio, options.norm, options.multiple_of)
        if not cut.removed:
            reasons = "; ".join(f"{row['layer']}: {row['why']}" for row in cut.rows)
            message = f"nothing was pruned ({reasons}); raise the ratio, or leave the stage out"
            raise StageError(message)
        fitted: list[str] = []
        if options.compensate is not False and inputs.calibration is not None:
            feeds = partial(_samples, inputs.calibration, inputs.model, options)
            fitted = fit(tracked, cut, feeds, ctx.workdir / "tmp", seed=ctx.seed, threads=ctx.threads)
        layers = sum(row["before"] != row["after"] for row in cut.rows)
        ctx.log(f"{cut.removed} channels of {layers} layers taken out, {len(fitted)} layers fitted")
        return _Pruned(cut.model, cut.rows, {"pruned.channels": float(cut.removed)}, {"fitted": fitted})

    def _with_zeros(
        self, plain: ModelProto, weights: Mapping[str, Array], layers: Mapping[str, list[Any]]
    ) -> _Pruned:
        import numpy as np
        import onnx
        from onnx import numpy_helper

        reasons: dict[str, str] = {}
        made = self._zeroed(weights, layers, reasons)
        model = onnx.ModelProto()
        model.CopyFrom(plain)
        for tensor in model.graph.initializer:
            if tensor.name in made:
                tensor.CopyFrom(numpy_helper.from_array(made[tensor.name], tensor.name))
        rows = [
            {
                "layer": nodes[0].name, "elements": weights[name].size,
                "before": int(np.count_nonzero(weights[name])),
                "after": int(np.count_nonzero(made.get(name, weights[name]))),
                "why": reasons.get(name, ""),
            }
            for name, nodes in layers.items()
        ]  # fmt: skip
        count = sum(row["before"] - row["after"] for row in rows)
        if not count:
            said = "; ".join(f"{row['layer']}: {row['why'] or 'has that many zeros already'}" for row in rows)
            message = f"nothing was pruned ({said}); raise the ratio, or leave the stage out"
            raise StageError(message)
        return _Pruned(model, rows, {"pruned.weights": float(count)})

    def _zeroed(
        self, weights: Mapping[str, Array], layers: Mapping[str, list[Any]], reasons: dict[str, str]
    ) -> dict[str, Array]:
        """Return the weights that get zeros, by name, and fill in why others do not."""
        options = self.options
        chosen: dict[str, str] = {}
        for name, nodes in layers.items():
            if any(fnmatchcase(node.name, pattern) for node in nodes for pattern in options.exclude):
                reasons[name] = "it is in exclude"
            else:
                chosen[name] = nodes[0].name
        if options.method == "2:4":
            return _two_of_four(weights, {name: layers[name] for name in chosen}, reasons)
        if options.scope == "global" and options.ratio is not None:
            return single.smallest_of_all(weights, chosen, options.ratio)
        ratio = channels.matching(options.layers, options.ratio, ())
        reasons |= {name: "it was not asked for" for name, layer in chosen.items() if ratio(layer) is None}
        return single.smallest_per_layer(weights, chosen, ratio)

    def _costs(
        self, before: ModelProto, after: ModelProto, inputs: Inputs, ctx: StageContext
    ) -> dict[str, float]:
        import numpy as np

        found: dict[str, float] = {}
        for when, model in (("before", before), ("after", after)):
            weights = plain_graphs.weights_of(model.graph)
            shapes = self._shapes(model, inputs, 1, ctx) | {
                name: array.shape for name, array in weights.items()
            }
            found[f"parameters.{when}"] = float(costs.parameters(weights))
            found[f"flops.{when}"] = float(costs.flops(model, shapes))
        weights = plain_graphs.weights_of(after.graph)
        chosen = [weights[name] for name in costs.layer_weights(after, weights)]
        zeros = sum(array.size - int(np.count_nonzero(array)) for array in chosen)
        return found | {"sparsity": zeros / sum(array.size for array in chosen)}

    def _shapes(
        self, model: ModelProto, inputs: Inputs, batch: int, ctx: StageContext
    ) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all activations for ``batch`` samples (or what the model takes)."""
        signature = inputs.model.signature
        size = arrays.batch_sizes(signature, [batch])[0]
        feed = arrays.random_inputs(signature, size, ctx.seed, self.options.dimensions)
        seen = observe(model, [feed], ctx.workdir / "tmp" / "shapes", threads=ctx.threads)
        return {name: observed.shape for name, observed in seen.items()}


def _two_of_four(
    weights: Mapping[str, Array], layers: Mapping[str, list[Any]], reasons: dict[str, str]
) -> dict[str, Array]:
    made: dict[str, Array] = {}
    for name, nodes in layers.items():
        axes = {single.reduction_axis(node) for node in nodes}
        axis = axes.pop() if len(axes) == 1 else None
        if axis is None:
            reasons[name] = "sparse tensor cores do not take it"
            continue
        array = single.two_of_four(weights[name], axis)
        if array is None:
            reasons[name] = f"its {weights[name].shape[axis]} inputs are no multiple of {single.GROUP}"
        elif not single.is_two_of_four(array, axis):  # pragma: no cover
            message = (
                f"the weights of {nodes[0].name!r} do not have the pattern; this is a fault of the stage"
            )
            raise StageError(message)
        else:
            made[name] = array
    return made


def _samples(calibration: Dataset, model: OnnxModel, options: Options) -> Iterator[dict[str, Array]]:
    size = max(options.batches)
    for _, feed in arrays.sample_batches(calibration, model.signature, options.samples, size):
        yield feed


def _compare(
    inputs: Inputs, model: OnnxModel, options: Options, ctx: StageContext
) -> tuple[parity.Parity, int]:
    """Return parity, and how many outputs are not finite that were before."""
    import numpy as np

    old, new = (open_session(path, threads=ctx.threads) for path in (inputs.model.path, model.path))
    measured, not_finite = parity.Parity(), 0
    for case, feed in parity_cases(model.signature, inputs.calibration, options, ctx.seed):
        before, after = run_session(old, feed), run_session(new, feed)
        measured.add(case, before, after)
        for name, array in after.items():
            if array.dtype.kind == "f":
                not_finite += int((np.isfinite(before[name]) & ~np.isfinite(array)).sum())
    return measured, not_finite
