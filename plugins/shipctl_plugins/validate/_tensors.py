"""The weights of a model as a stream of slices, so that a file larger than memory can be looked at."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shipctl.errors import StageError
from shipctl_plugins._onnx.graph import every_graph, external_place, is_external, load_model

if TYPE_CHECKING:
    import numpy as np
    from onnx import GraphProto, TensorProto

    Array = np.ndarray[Any, np.dtype[Any]]

SLICE_BYTES = 16 * 2**20
"""How much of a tensor is in memory at a time (at least one row of its first dimension)."""
MAX_HEADER = 100 * 2**20
"""The largest header that safetensors itself reads."""

# https://github.com/huggingface/safetensors#format; the names on the right are numpy's and ml_dtypes'
_SAFETENSORS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """One tensor and where its bytes are."""

    name: str
    dtype: str
    """By its numpy (or ml_dtypes) name; empty for one that cannot be looked at."""
    shape: tuple[int, ...]
    channel_axis: int
    """The dimension that counts output channels."""
    source: tuple[Path, int] | Array
    """The file and the offset of the first byte, or the array itself where it is in memory anyway."""

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def slices(self) -> Iterator[Array]:
        """Yield the tensor in parts along its first dimension.

        :raises StageError: if the file ends before the tensor does
        """
        import ml_dtypes
        import numpy as np

        if not isinstance(self.source, tuple):
            yield self.source.reshape(self.shape)
            return
        dtype = np.dtype(getattr(ml_dtypes, self.dtype, None) or self.dtype).newbyteorder("<")
        rows, *rest = self.shape or (1,)
        row_bytes = math.prod(rest) * dtype.itemsize
        step = max(1, SLICE_BYTES // max(row_bytes, 1))
        path, offset = self.source
        with path.open("rb") as file:
            file.seek(offset)
            for start in range(0, rows, step):
                count = min(step, rows - start)
                data = file.read(count * row_bytes)
                if len(data) != count * row_bytes:
                    message = f"{path.name} ends inside of tensor {self.name!r}; make the file again"
                    raise StageError(message)
                yield np.frombuffer(data, dtype).reshape(count, *rest)


def safetensors_file(path: Path) -> Iterator[Tensor]:
    """Yield the tensors of a safetensors file in the order of their names.

    :raises StageError: if the file is not one
    """
    size = path.stat().st_size
    try:
        header, length = _header(path)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        tensors = [
            Tensor(
                name, _SAFETENSORS.get(entry["dtype"], ""), tuple(map(int, entry["shape"])), 0,
                (path, 8 + length + int(entry["data_offsets"][0])),
            )
            for name, entry in sorted(entries.items())
        ]  # fmt: skip
        ends = [8 + length + int(entry["data_offsets"][1]) for entry in entries.values()]
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        message = f"weights {path.name} are no safetensors file: {exc}; save them again"
        raise StageError(message) from exc
    end = max(ends, default=8 + length)
    if end != size:
        message = f"weights {path.name} should be {end} bytes long and are {size}; save them again"
        raise StageError(message)
    yield from tensors


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header and its length, which stands in the first eight bytes."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(MAX_HEADER, path.stat().st_size):
            raise ValueError(f"its header would be {length} bytes long")
        header: dict[str, Any] = json.loads(file.read(length))
    return header, length


def onnx_file(path: Path) -> Iterator[Tensor]:
    """Yield the weights of an ONNX model: initialisers and constants, in subgraphs too, external data included.

    :raises StageError: if the file is no ONNX model, or external data lies outside of its folder
    """
    model = load_model(path, external=False)
    for graph in every_graph(model.graph):
        axes = _channel_axes(graph)
        constants = [
            (attribute.t, node.output[0])
            for node in graph.node if node.op_type == "Constant"
            for attribute in node.attribute if attribute.HasField("t")
        ]  # fmt: skip
        named = [(tensor, tensor.name) for tensor in graph.initializer]
        for tensor, name in (*named, *constants):
            yield _from_proto(tensor, name, axes.get(name, 0), path)


def _channel_axes(graph: GraphProto) -> dict[str, int]:
    """Return where output channels are not in the first dimension of a weight."""
    axes: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in {"MatMul", "ConvTranspose"} and len(node.input) > 1:
            axes[node.input[1]] = 1 if node.op_type == "ConvTranspose" else -1
        elif node.op_type == "Gemm":
            transposed = next((attribute.i for attribute in node.attribute if attribute.name == "transB"), 0)
            axes[node.input[1]] = 0 if transposed else 1
    return axes


def _from_proto(tensor: TensorProto, name: str, axis: int, model: Path) -> Tensor:
    import onnx

    shape = tuple(tensor.dims)
    if tensor.data_type == onnx.TensorProto.STRING:
        return Tensor(name, "", shape, axis, (model, 0))
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if not is_external(tensor):
        return Tensor(name, dtype.name, shape, axis, onnx.numpy_helper.to_array(tensor))
    path, offset, _ = external_place(tensor, model.parent)
    packed = dtype.name in {"int4", "uint4", "int2", "uint2", "float4_e2m1fn"}
    return Tensor(name, "" if packed else dtype.name, shape, axis, (path, offset))


def tensors_of(path: Path) -> Iterator[Tensor]:
    """Yield the tensors of a safetensors file or an ONNX model, by its suffix."""
    return onnx_file(path) if path.suffix == ".onnx" else safetensors_file(path)


def norm_weights(names: Sequence[str]) -> set[str]:
    """Return those of PyTorch state-dict names that are the factors of a batch normalisation."""
    return {name.removesuffix("running_var") + "weight" for name in names if name.endswith("running_var")}
