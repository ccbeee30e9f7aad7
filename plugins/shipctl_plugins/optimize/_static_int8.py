"""Static INT8 by ONNX Runtime's quantiser: prepared and calibrated once, quantised with any layers left out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from shipctl.errors import StageError
from shipctl.stages.artifacts import OnnxModel
from shipctl.stages.base import StageOptions
from shipctl_plugins._onnx import graph
from shipctl_plugins._onnx.plain_graphs import known_nodes, plain_graph, replace_nodes
from shipctl_plugins._onnx.session import first_line, too_new

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

OLDEST_OPSET = 13
HISTOGRAM_BINS = {"minmax": 0, "entropy": 512, "percentile": 2048}
"""Bins per tensor. ONNX Runtime's own 128 for entropy leave its search a single candidate, the full range."""

NOISE = (
    "Collecting tensor data", "Finding optimal threshold", "Number of ", "Percentile :",
    "is out-of-range for weight",
)  # fmt: skip
"""Progress of the calibrators, and that a weight of one dimension has one scale."""

_FLOAT = 1
"""onnx.TensorProto.FLOAT."""

Quiet = Callable[[], AbstractContextManager[None]]


class StaticOptions(StageOptions):
    """How ranges are chosen and what is quantised to what."""

    method: Literal["minmax", "entropy", "percentile"] = Field(
        default="minmax", description="How the range of each activation is chosen from the calibration data."
    )
    percentile: float = Field(
        default=99.999,
        gt=50,
        le=100,
        description="With method percentile: the share (in percent) of values kept.",
    )
    per_channel: bool = Field(
        default=True, description="Give every output channel of a weight a scale of its own."
    )
    activation_type: Literal["quint8", "qint8"] = Field(
        default="quint8",
        description="Type of quantised activations: quint8 is fast on CPUs, TensorRT needs qint8.",
    )
    symmetric: bool = Field(
        default=False, description="Let activations have zero point 0, as TensorRT needs it."
    )
    quantize_bias: bool = Field(
        default=True, description="Quantise biases to INT32; TensorRT does not take those."
    )
    op_types: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Operator types to quantise; left out, all that ONNX Runtime can.",
    )
    exclude: tuple[str, ...] = Field(default=(), description="Names of nodes that stay in floating point.")


class StaticInt8:
    """A model with the ranges of its activations."""

    def __init__(
        self,
        source: OnnxModel,
        feeds: Sequence[Mapping[str, Any]],
        options: StaticOptions,
        scratch: Path,
        quiet: Quiet,
    ) -> None:
        """Prepare and calibrate; ``quiet`` is entered around everything that prints.

        :raises StageError: if the quantiser fails, the opset is too old, or `exclude` names what is not there
        """
        self.options, self._quiet = options, quiet
        plain = plain_graph(graph.load_source(source))
        if graph.opset_of(plain) < OLDEST_OPSET:
            message = (
                f"the graph has opset {graph.opset_of(plain)}, scales per channel came with {OLDEST_OPSET}; "
                "export it with a newer opset"
            )
            raise StageError(message)
        self._large = plain.ByteSize() > graph.INLINE_LIMIT
        path = graph.save_model(plain, scratch / "source") / graph.MODEL_FILE
        prepared = scratch / "prepared.onnx"
        with quiet(), _faults():
            _prepare(path, prepared, large=self._large)
            self.before = _named(graph.load_model(prepared))
            named = graph.save_model(self.before, scratch / "prepared") / graph.MODEL_FILE
            self._ranges = _ranges(named, feeds, options, scratch, large=self._large)
        self._excluded = _after_fusion(options.exclude, plain, self.before)

    def build(self, kept: frozenset[str]) -> ModelProto:
        """Quantise all that the options say but these nodes of :attr:`before`.

        :raises StageError: if the quantiser fails
        """
        from onnxruntime.quantization import QDQQuantizer, QuantType

        options, types = self.options, self._op_types()
        zone = _zone(self.before, kept | self._excluded, types)
        with self._quiet(), _faults():
            quantizer = QDQQuantizer(
                _copied(self.before), options.per_channel,
                reduce_range=False, weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QInt8 if options.activation_type == "qint8" else QuantType.QUInt8,
                # it changes the ranges that it is given
                tensors_range=copy.deepcopy(self._ranges), nodes_to_quantize=[], nodes_to_exclude=sorted(zone),
                op_types_to_quantize=types,
                extra_options={
                    "ActivationSymmetric": options.symmetric, "WeightSymmetric": True,
                    "QuantizeBias": options.quantize_bias,
                },
            )  # fmt: skip
            quantizer.quantize_model()
            quantizer.model.topological_sort()
        quantized: ModelProto = quantizer.model.model
        if zone:
            _feed_exactly(quantized, self.before, zone)
        return quantized

    def _op_types(self) -> list[str]:
        return list(self.options.op_types or quantizable())


def quantizable() -> list[str]:
    """Return the operator types that ONNX Runtime can quantise, sorted."""
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return sorted({*QDQRegistry, *QLinearOpsRegistry})


@contextmanager
def _faults() -> Iterator[None]:
    """Turn what ONNX Runtime's quantiser raises into a stage error."""
    try:
        yield
    except StageError:
        raise
    except Exception as exc:  # it raises whatever an operator makes it raise
        message = too_new(exc) or f"ONNX Runtime's quantiser fails: {type(exc).__name__}: {first_line(exc)}"
        raise StageError(message) from exc


def _prepare(source: Path, target: Path, *, large: bool) -> None:
    from onnxruntime.quantization.shape_inference import quant_pre_process

    # onnx's own inference is enough here; the symbolic one would need sympy
    quant_pre_process(source, target, skip_symbolic_shape=True, save_as_external_data=large)


def _named(model: ModelProto) -> ModelProto:
    """Return the plain form of ``model``, still with the shapes of its tensors, which the quantiser asks for."""
    plain = plain_graph(model)
    made = {name for node in plain.graph.node for name in node.output}
    plain.graph.value_info.extend(value for value in model.graph.value_info if value.name in made)
    return plain


def _copied(model: ModelProto) -> ModelProto:
    import onnx

    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    return twin


def _ranges(
    model: Path, feeds: Sequence[Mapping[str, Any]], options: StaticOptions, scratch: Path, *, large: bool
) -> Any:
    """Return the range of every activation over ``feeds``.

    Not left to `quantize_static`, which has no option for the number of bins and keeps the activations of all
    samples in memory; here it is one batch at a time.
    """
    import numpy as np
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    method = {
        "minmax": CalibrationMethod.MinMax, "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }[options.method]  # fmt: skip

    # in ONNX Runtime, no choice of operators means all; the calibrator then looks at every float tensor
    calibrator = create_calibrator(
        model, list(options.op_types or ()), str(scratch / "augmented.onnx"), method, large,
        extra_options={"symmetric": options.symmetric, "percentile": options.percentile}
        | ({"num_bins": HISTOGRAM_BINS[options.method]} if method != CalibrationMethod.MinMax else {}),
    )  # fmt: skip
    for feed in feeds:
        calibrator.collect_data(_Reader(feed))
    found = calibrator.compute_data()
    for name, seen in found.items():
        if not all(np.isfinite(getattr(seen, end, 0.0)).all() for end in ("lowest", "highest")):
            message = (
                f"tensor {name!r} becomes NaN or infinite on calibration data, which makes no range; leave out such "
                "samples, or the stage"
            )
            raise StageError(message)
    return found


class _Reader:
    """A calibration data reader, as ONNX Runtime wants it, over one batch."""

    def __init__(self, feed: Mapping[str, Any]) -> None:
        self._feeds: Iterator[dict[str, Any]] = iter([dict(feed)])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def _after_fusion(names: Sequence[str], plain: ModelProto, prepared: ModelProto) -> frozenset[str]:
    """Return what the preparation, which fuses nodes, has made of nodes of the model."""
    there = {node.name for node in prepared.graph.node}
    makers = {output: node.name for node in prepared.graph.node for output in node.output}
    nodes = {node.name: node for node in plain.graph.node}
    found: set[str] = set()
    for name in sorted(known_nodes(names, plain.graph, "exclude")):
        same = {name} & there or {other for other in there if other.startswith(f"{name}/")}
        same = same or {makers[output] for output in nodes[name].output if output in makers}
        if not same:
            message = (
                f"`exclude` names node {name!r}, which ONNX Runtime folds into its neighbours; exclude those"
            )
            raise StageError(message)
        found |= same
    return frozenset(found)


def _zone(model: ModelProto, kept: frozenset[str], op_types: Sequence[str]) -> frozenset[str]:
    """Return the nodes that stay in floating point so that the ``kept`` ones get and give exact values.

    Those are the nodes without weights that lead to a kept one from the layers before it, and those from which no
    further layer is reached.
    """
    if not kept:
        return kept
    weights = {
        tensor.name for tensor in model.graph.initializer if tensor.dims and tensor.data_type == _FLOAT
    }
    nodes = {node.name: node for node in model.graph.node}
    makers = {output: node.name for node in nodes.values() for output in node.output if output}
    layers = {
        name
        for name, node in nodes.items()
        if node.op_type in op_types and node.op_type != "Resize" and weights.intersection(node.input)
    }
    zone, waiting = set(kept), list(kept)
    while waiting:
        for name in nodes[waiting.pop()].input:
            maker = makers.get(name)
            if maker is not None and maker not in layers and maker not in zone:
                zone.add(maker)
                waiting.append(maker)
    for name in _tail(nodes, layers):
        if any(makers.get(tensor) in zone for tensor in nodes[name].input):
            zone.add(name)
    return frozenset(zone)


def _tail(nodes: Mapping[str, NodeProto], layers: set[str]) -> list[str]:
    """Return the nodes, in order, from which no layer is reached."""
    used: set[str] = set()
    tail: list[str] = []
    for name, node in reversed(list(nodes.items())):
        if name in layers or used.intersection(node.output):
            used.update(node.input)
        else:
            tail.append(name)
    return tail[::-1]


def _feed_exactly(quantized: ModelProto, before: ModelProto, zone: frozenset[str]) -> None:
    """Let the nodes of ``zone`` read the tensors that they read in ``before``, not rounded ones."""
    old = {node.name: node for node in before.graph.node}
    weights = {tensor.name: tensor for tensor in before.graph.initializer}
    there = {tensor.name for tensor in quantized.graph.initializer}
    there |= {value.name for value in quantized.graph.input}
    there |= {name for node in quantized.graph.node for name in node.output}
    for node in quantized.graph.node:
        if node.name not in zone:
            continue
        for index, name in enumerate(old[node.name].input):
            if name in weights and name not in there:
                quantized.graph.initializer.add().CopyFrom(weights[name])
                there.add(name)
            if name in there:
                node.input[index] = name
    _drop_unused(quantized)


def _drop_unused(model: ModelProto) -> None:
    """Take out nodes and weights that nothing reads any more."""
    needed = {value.name for value in model.graph.output}
    nodes = []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    replace_nodes(model.graph, nodes[::-1])
    for index in reversed(range(len(model.graph.initializer))):
        if model.graph.initializer[index].name not in needed:
            del model.graph.initializer[index]
