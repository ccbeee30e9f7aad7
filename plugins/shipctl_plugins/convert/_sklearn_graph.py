"""The graph that skl2onnx makes of an estimator, given the inputs and outputs of a signature."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from shipctl.errors import StageError
from shipctl.signature import TensorSpec
from shipctl_plugins._sources.sklearn_source import NUMBERS, SklearnSource

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

INPUT_TYPES: Mapping[str, str] = {
    "float32": "FloatTensorType",
    "float64": "DoubleTensorType",
    "int64": "Int64TensorType",
    "int32": "Int32TensorType",
    "bool": "BooleanTensorType",
    "string": "StringTensorType",
}
"""dtype to skl2onnx's type of an input."""
TABLE = "shipctl_features"
"""The table of all features inside of the graph."""


def convert(
    source: SklearnSource,
    opsets: Mapping[str, int],
    unconvertible: Callable[[Exception, Any], StageError],
) -> ModelProto:
    """Return the graph of the estimator: one input, :data:`TABLE`, and the outputs that skl2onnx gives it.

    :raises StageError: made by ``unconvertible`` from what skl2onnx raises
    """
    from skl2onnx import convert_sklearn
    from skl2onnx.common import data_types

    estimator = source.estimator
    dtype = source.inputs[0].dtype
    kind = getattr(data_types, INPUT_TYPES[dtype])
    arguments: dict[str, Any] = {
        "initial_types": [(TABLE, kind([None, source.features]))],
        "target_opset": dict(opsets),
        "name": "model",
    }
    model: ModelProto
    try:
        try:
            model = convert_sklearn(estimator, options={id(estimator): {"zipmap": False}}, **arguments)
        except NameError:  # it has no such option, and so no ZipMap
            model = convert_sklearn(estimator, **arguments)
    except Exception as exc:  # converters raise whatever an estimator makes them raise
        raise unconvertible(exc, estimator) from exc
    _declare_each_opset_once(model)
    return model


def _declare_each_opset_once(model: ModelProto) -> None:
    """Take out repetitions: skl2onnx lists the default operator set twice for some models."""
    versions = {entry.domain: entry.version for entry in model.opset_import}
    del model.opset_import[:]
    for domain, version in sorted(versions.items()):
        entry = model.opset_import.add()
        entry.domain, entry.version = domain, version


def take_declared_inputs(model: ModelProto, source: SklearnSource) -> None:
    """Replace the table by the declared inputs, joined in the order of the features."""
    from onnx import helper

    declared = source.signature.inputs
    if len(declared) == 1:
        return
    element = model.graph.input[0].type.tensor_type.elem_type
    del model.graph.input[:]
    model.graph.input.extend(
        helper.make_tensor_value_info(f"{TABLE}_{spec.name}", element, [None, spec.shape[1]])
        for spec in declared
    )
    join = helper.make_node(
        "Concat", [f"{TABLE}_{spec.name}" for spec in source.inputs], [TABLE], name="features", axis=1
    )
    nodes = [join, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def give_declared_outputs(model: ModelProto, source: SklearnSource) -> None:
    """Leave the declared outputs, in the order, number of dimensions and precision of the signature.

    :raises StageError: if the graph has none of that kind
    """
    there = list(model.graph.output)
    labels = [value for value in there if not _is_float(value)]
    floats = [value for value in there if _is_float(value)]
    chosen = []
    for spec in source.signature.outputs:
        candidates = floats if spec.dtype in NUMBERS else labels
        if len(candidates) != 1:
            shown = ", ".join(value.name for value in there)
            message = (
                f"the graph of this {type(source.estimator).__name__} has the outputs {shown}, no {spec}"
            )
            raise StageError(message)
        chosen.append(_as_declared(model.graph, candidates[0], spec))
    del model.graph.output[:]
    model.graph.output.extend(chosen)


def _is_float(value: Any) -> bool:
    import onnx

    return value.type.tensor_type.elem_type in {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE}


def _as_declared(graph: GraphProto, value: Any, spec: TensorSpec) -> Any:
    """Return the output ``value`` as ``spec`` wants it, with what nodes that takes."""
    import numpy as np
    from onnx import helper, numpy_helper

    element, name = value.type.tensor_type.elem_type, value.name
    sizes = value.type.tensor_type.shape.dim
    shape: list[Any] = [dim.dim_value if dim.HasField("dim_value") else None for dim in sizes]
    if len(spec.shape) == 1 and shape[1:] == [1]:
        axes = f"{name}_axes"
        graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), axes))
        graph.node.append(helper.make_node("Reshape", [name, axes], [f"{name}_flat"], name=f"{name}_flat"))
        name, shape = f"{name}_flat", [None]
    if spec.dtype in NUMBERS:
        wanted = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
        if element != wanted:
            graph.node.append(
                helper.make_node("Cast", [name], [f"{name}_cast"], name=f"{name}_cast", to=wanted)
            )
            name, element = f"{name}_cast", wanted
    return helper.make_tensor_value_info(name, element, shape)
