"""ONNX graphs as bytes that depend on nothing but their content, and their signatures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from shipctl.errors import StageError
from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import OnnxModel

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto

MODEL_FILE = "model.onnx"
EXTERNAL_FILE = "model.onnx.data"
INLINE_LIMIT = 1_800_000_000
"""Bytes up to which a model is one file; protobuf itself ends at 2 GiB."""


def load_model(path: Path, *, external: bool = True) -> ModelProto:
    """Read the ONNX model at ``path``, with its external data unless told otherwise.

    :raises StageError: if it is not one
    """
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as exc:  # protobuf's errors have no public base
        message = f"{path.name} cannot be read as an ONNX model: {exc}"
        raise StageError(message) from exc
    if external:
        for tensor in every_tensor(model.graph):
            if is_external(tensor):
                _attach(tensor, path.parent)
    return model


def load_source(model: OnnxModel) -> ModelProto:
    """Read the graph of ``model``, and see that its inputs and outputs are those of the signature.

    Dimensions that the graph leaves open may be declared as numbers.

    :raises StageError: if it is no ONNX model, or not as the signature says
    """
    loaded = load_model(model.path)
    require_signature(loaded, model.signature)
    return loaded


def require_signature(model: ModelProto, signature: Signature) -> None:
    """See that a graph that a stage is given has the inputs and outputs of its signature.

    :raises StageError: where it has not
    """
    if wrong := graph_differences(model, signature, open_inputs=True):
        message = (
            f"the graph is not what `model` says: {'; '.join(wrong)}; correct `inputs` and `outputs` there"
        )
        raise StageError(message)


def is_external(tensor: TensorProto) -> bool:
    """Whether the tensor's bytes are in another file."""
    import onnx

    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def external_place(tensor: TensorProto, folder: Path) -> tuple[Path, int, int | None]:
    """Return file, offset and length (None: the rest of the file) of an external tensor's bytes.

    :raises StageError: if they are not in a file below ``folder``
    """
    where = {entry.key: entry.value for entry in tensor.external_data}
    location = PurePosixPath(where.get("location", ""))
    path = folder / location
    if location.is_absolute() or ".." in location.parts or not path.is_file():
        message = (
            f"the external data of tensor {tensor.name!r}, {str(location)!r}, is no file beside the model"
        )
        raise StageError(message)
    length = where.get("length")
    return path, int(where.get("offset", 0)), int(length) if length is not None else None


def _attach(tensor: TensorProto, folder: Path) -> None:
    """Read external data into the tensor.

    onnx's own loader refuses files with several hard links, and a content-addressed store hands out such.
    """
    import onnx

    path, offset, length = external_place(tensor, folder)
    with path.open("rb") as file:
        file.seek(offset)
        tensor.raw_data = file.read() if length is None else file.read(length)
    if length is not None and len(tensor.raw_data) != length:
        message = f"{path.name} ends inside of tensor {tensor.name!r}; make the model again"
        raise StageError(message)
    tensor.data_location = onnx.TensorProto.DEFAULT
    del tensor.external_data[:]


def save_model(model: ModelProto, folder: Path) -> Path:
    """Write ``model`` to ``folder`` (made if need be) and return the folder.

    The same graph gives the same bytes. Above :data:`INLINE_LIMIT` the weights go to a file beside it.
    """
    import onnx

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MODEL_FILE
    if model.ByteSize() > INLINE_LIMIT:
        onnx.save_model(model, path, save_as_external_data=True, location=EXTERNAL_FILE)
    else:
        path.write_bytes(model.SerializeToString(deterministic=True))
    return folder


def check_model(path: Path) -> None:
    """Run the ONNX checker, shape inference included, on the file at ``path``.

    :raises StageError: with what it finds
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        message = f"the ONNX checker refuses the graph: {exc}"
        raise StageError(message) from exc


def strip_notes(model: ModelProto) -> None:
    """Take out doc strings and metadata everywhere: exporters write file paths and stack traces there."""
    _clear(model)
    for function in model.functions:
        _clear(function)
        for node in function.node:
            _strip_node(node)
    _strip_graph(model.graph)


def _strip_graph(graph: GraphProto) -> None:
    _clear(graph)
    for item in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        _clear(item)
    for node in graph.node:
        _strip_node(node)


def _strip_node(node: Any) -> None:
    _clear(node)
    for attribute in node.attribute:
        attribute.ClearField("doc_string")
        if attribute.HasField("t"):
            _clear(attribute.t)
        for graph in (attribute.g, *attribute.graphs):
            if graph.node:
                _strip_graph(graph)


def _clear(message: Any) -> None:
    message.ClearField("doc_string")
    message.ClearField("metadata_props")


def every_graph(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield ``graph`` and all graphs inside of its nodes (branches and loop bodies)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from every_graph(inner)


def every_tensor(graph: GraphProto) -> Iterator[TensorProto]:
    """Yield initialisers and tensors in attributes, of all graphs inside too."""
    for inner in every_graph(graph):
        yield from inner.initializer
        for node in inner.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


def node_count(model: ModelProto) -> int:
    """Return the number of nodes in the graph and all graphs inside of it."""
    return sum(len(graph.node) for graph in every_graph(model.graph))


def opset_of(model: ModelProto) -> int:
    """Return the version of the default operator set."""
    return next((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), 0)


def graph_differences(model: ModelProto, signature: Signature, *, open_inputs: bool = False) -> list[str]:
    """Say, a line each, where the graph's inputs and outputs are not as ``signature`` says.

    An output dimension that the graph leaves open may be declared as a number: shape inference does not
    know every one, and running the model shows it. With ``open_inputs``, one of an input may be, too.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    found = _side("input", inputs, signature.inputs, open_ok=open_inputs)
    return found + _side("output", list(model.graph.output), signature.outputs, open_ok=True)


def _side(
    side: str, values: Sequence[ValueInfoProto], declared: Sequence[TensorSpec], *, open_ok: bool
) -> list[str]:
    have, want = [value.name for value in values], [spec.name for spec in declared]
    if have != want:
        return [f"{side}s are {', '.join(have)}, declared are {', '.join(want)}"]
    found: list[str] = []
    for value, spec in zip(values, declared, strict=True):
        dtype, shape = _type_of(value)
        if dtype != spec.dtype:
            found.append(f"{side} {spec.name!r} is {dtype}, declared is {spec.dtype}")
        if not value.type.tensor_type.HasField("shape"):
            continue
        if len(shape) != len(spec.shape):
            found.append(
                f"{side} {spec.name!r} has {len(shape)} dimensions {_show(shape)}, declared is {spec}"
            )
            continue
        for axis, (size, wanted) in enumerate(zip(shape, spec.shape, strict=True)):
            is_open = not isinstance(size, int)
            fits = (is_open or size == wanted) if isinstance(wanted, int) and open_ok else (
                is_open if isinstance(wanted, str) else size == wanted
            )  # fmt: skip
            if not fits:
                shown = "varies" if is_open else f"is {size}"
                found.append(f"{side} {spec.name!r}: dimension {axis} {shown}, declared is {wanted}")
    return found


def _show(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _type_of(value: ValueInfoProto) -> tuple[str, list[int | str]]:
    import onnx

    tensor = value.type.tensor_type
    name = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    dtype = {"float": "float32", "double": "float64"}.get(name, name)
    shape: list[int | str] = [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim
    ]
    return dtype, shape


def declare(model: ModelProto, signature: Signature) -> None:
    """Write the dimensions of ``signature`` into the graph's inputs and outputs, which have its names."""
    specs = {spec.name: spec for spec in (*signature.inputs, *signature.outputs)}
    for value in (*model.graph.input, *model.graph.output):
        if value.name in specs:
            shape = value.type.tensor_type.shape
            shape.ClearField("dim")
            for size in specs[value.name].shape:
                dim = shape.dim.add()
                if isinstance(size, int):
                    dim.dim_value = size
                else:
                    dim.dim_param = size


def array_differences(outputs: dict[str, Any], feed: dict[str, Any], signature: Signature) -> list[str]:
    """Say, a line each, where arrays that a model returned for ``feed`` are not as ``signature`` says.

    A varying dimension that an input has too must have the input's size.
    """
    sizes = {
        name: size
        for spec in signature.inputs
        for name, size in zip(spec.shape, feed[spec.name].shape, strict=True)
        if isinstance(name, str)
    }
    found: list[str] = []
    for spec in signature.outputs:
        array = outputs[spec.name]
        wanted = [sizes.get(size, size) if isinstance(size, str) else size for size in spec.shape]
        if str(array.dtype) != spec.dtype and not (spec.dtype == "string" and array.dtype.kind in "OU"):
            found.append(f"output {spec.name!r} is {array.dtype}, declared is {spec}")
        fits = len(wanted) == array.ndim and all(
            isinstance(want, str) or want == have for want, have in zip(wanted, array.shape, strict=True)
        )
        if not fits:
            found.append(f"output {spec.name!r} has shape {list(array.shape)}, declared is {spec}")
    return found
