"""Model configurations as text: writing protobuf strings, reading a configuration back, comparing it with the graph.

What is found here offline is worded as Triton words it when it refuses to load the model
(github.com/triton-inference-server/backend, src/backend_common.cc).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shipctl.errors import StageError
from shipctl.signature import Signature, TensorSpec
from shipctl_plugins._onnx.graph import load_model

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

TRITON_TYPES = {
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "bool": "TYPE_BOOL",
    "string": "TYPE_STRING",
}
DIGEST_PARAMETER = "shipctl.model_digest"
REVISION_PARAMETER = "shipctl.revision"
_CONTROL = {"\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\"}


@dataclass(frozen=True)
class GraphTensor:
    """One input or output of a graph, in Triton's terms."""

    name: str
    data_type: str
    shape: tuple[int, ...]
    """-1 for what varies."""


def quoted(text: str) -> str:
    """Return ``text`` as a string literal of the protobuf text format."""
    escaped = "".join(
        _CONTROL.get(character) or (character if character.isprintable() else _octal(character))
        for character in text
    )
    return f'"{escaped}"'


def _octal(character: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in character.encode())


def parse_config(text: str) -> ModelConfig:
    """Return the configuration that Triton would read.

    :raises StageError: with the parser's message, as Triton logs it
    """
    from google.protobuf import text_format  # type: ignore[import-untyped]
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    try:
        return text_format.Parse(text, ModelConfig())
    except text_format.ParseError as error:
        message = f"the rendered config.pbtxt cannot be read by Triton: {error}"
        raise StageError(message) from error


def graph_tensors(model: Path) -> tuple[list[GraphTensor], list[GraphTensor]]:
    """Return inputs (without initializers) and outputs of an ONNX graph; weights in other files are not read.

    :raises StageError: if it is no ONNX graph
    """
    graph = load_model(model, external=False).graph
    initializers = {tensor.name for tensor in graph.initializer}
    inputs = [_graph_tensor(value) for value in graph.input if value.name not in initializers]
    return inputs, [_graph_tensor(value) for value in graph.output]


def declared_tensors(signature: Signature) -> tuple[list[GraphTensor], list[GraphTensor]]:
    """Return inputs and outputs as a signature declares them, for a model that cannot be read without its device."""

    def tensors(specs: Sequence[TensorSpec]) -> list[GraphTensor]:
        return [
            GraphTensor(
                spec.name,
                TRITON_TYPES[spec.dtype],
                tuple(size if isinstance(size, int) else -1 for size in spec.shape),
            )
            for spec in specs
        ]

    return tensors(signature.inputs), tensors(signature.outputs)


def _graph_tensor(value: Any) -> GraphTensor:
    import onnx

    tensor = value.type.tensor_type
    if tensor.elem_type == onnx.TensorProto.STRING:
        dtype = "TYPE_STRING"
    elif tensor.elem_type == onnx.TensorProto.BFLOAT16:
        dtype = "TYPE_BF16"
    else:
        dtype = TRITON_TYPES.get(str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)), "TYPE_INVALID")
    sizes = [axis.dim_value if axis.HasField("dim_value") else -1 for axis in tensor.shape.dim]
    return GraphTensor(value.name, dtype, tuple(sizes))


def disagreements(
    config: ModelConfig, inputs: Sequence[GraphTensor], outputs: Sequence[GraphTensor]
) -> list[str]:
    """Return why Triton would not load the graph with this configuration; empty when it would."""
    found: list[str] = []
    if len(config.input) != len(inputs):
        found.append(
            f"unable to load model '{config.name}', configuration expects {len(config.input)} inputs, "
            f"model provides {len(inputs)}"
        )
    for side, configured, tensors in (("input", config.input, inputs), ("output", config.output, outputs)):
        known = {tensor.name: tensor for tensor in tensors}
        for entry in configured:
            found += _disagreement(config, side, entry, known)
    return found


def _disagreement(config: ModelConfig, side: str, entry: Any, known: Mapping[str, GraphTensor]) -> list[str]:
    if entry.name not in known:
        allowed = ", ".join(sorted(known))
        return [f"unexpected inference {side} '{entry.name}', allowed {side}s are: {allowed}"]
    tensor, declared = known[entry.name], type(config).DESCRIPTOR.file.enum_types_by_name["DataType"]
    dtype = declared.values_by_number[entry.data_type].name
    if dtype != tensor.data_type:
        return [
            (
                f"unable to load model '{config.name}', configuration expects datatype {dtype} for {side} "
                f"'{entry.name}', model provides {tensor.data_type}"
            )
        ]
    where = f"model '{config.name}', tensor '{entry.name}'"
    dims = list(entry.reshape.shape if entry.HasField("reshape") else entry.dims)
    if config.max_batch_size > 0 and tensor.shape[:1] != (-1,):
        return [
            (
                f"{where}: for the model to support batching the shape should have at least 1 dimension and the first "
                f"dimension must be -1; but shape expected by the model is {_shape(tensor.shape)}"
            )
        ]
    full = [-1, *dims] if config.max_batch_size > 0 else dims
    fits = len(full) == len(tensor.shape) and all(
        have in (-1, want) for want, have in zip(full, tensor.shape, strict=True)
    )
    if fits:
        return []
    how = "shape"
    if config.max_batch_size > 0:
        how = (
            "an initial batch dimension because max_batch_size > 0 followed by the explicit tensor shape, "
            "making complete shape"
        )
    return [
        (
            f"{where}: the model expects {len(tensor.shape)} dimensions (shape {_shape(tensor.shape)}) but the "
            f"model configuration specifies {len(full)} dimensions ({how} {_shape(full)})"
        )
    ]


def _shape(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"


def configured_tensors(tensors: Sequence[TensorSpec], *, batched: bool) -> list[dict[str, Any]]:
    """Return what the template needs of each tensor; the batch dimension is not part of `dims`.

    Triton does not accept empty `dims`, so one number per sample is declared as `[1]` and reshaped to `[]`.
    """
    rows = []
    for tensor in tensors:
        dims = [size if isinstance(size, int) else -1 for size in tensor.shape[1 if batched else 0 :]]
        rows.append(
            {
                "name": tensor.name,
                "data_type": TRITON_TYPES[tensor.dtype],
                "dims": dims or [1],
                "is_scalar": not dims,
            }
        )
    return rows
