"""What `shipctl init` finds out about a model, without importing or running any of it."""

from __future__ import annotations

import ast
import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from shipctl.errors import SpecError, UnavailableError
from shipctl.signature import Signature, TensorSpec

if TYPE_CHECKING:
    from onnx import ValueInfoProto

_TENSOR = re.compile(r"(?P<name>[^:\[\]]+):\s*(?P<dtype>\w+)\s*\[(?P<shape>[^\[\]]*)\]")
_EXAMPLE = Signature(
    inputs=(TensorSpec(name="input", dtype="float32", shape=("batch", 3, 224, 224)),),
    outputs=(TensorSpec(name="output", dtype="float32", shape=("batch", 1000)),),
)


@dataclass(frozen=True)
class Starter:
    """What a starter spec says about its model."""

    name: str
    """A DNS label made of the file's name."""
    path: Path
    function: str | None
    """The builder, for a model in Python."""
    weights: Path | None
    signature: Signature
    is_example: bool
    """Whether the signature is only an example, for the author to replace."""

    @property
    def is_torch(self) -> bool:
        """Whether the model is built in Python."""
        return self.function is not None

    def uri(self, folder: Path) -> str:
        """Return `model.uri` for a spec that lies in ``folder``."""
        path = relative(self.path, folder)
        return f"{path}:{self.function}" if self.function else path


def inspect_model(model: str, inputs: tuple[str, ...] = (), outputs: tuple[str, ...] = ()) -> Starter:
    """Look at `path.py:function` or `path.onnx`.

    ``inputs`` and ``outputs`` are tensors such as `image: float32[batch, 1, 8, 8]`; of an ONNX model they
    are read from the file.

    :raises SpecError: if there is no such model, or a tensor is not written like that
    """
    file, _, function = model.partition(":")
    path = Path(file)
    if path.suffix not in {".py", ".onnx"}:
        message = f"cannot tell what {model!r} is; name a model as path.py:function or path.onnx"
        raise SpecError(message)
    if not path.is_file():
        message = f"there is no file {file}; name a model as path.py:function or path.onnx"
        raise SpecError(message)
    if path.suffix == ".onnx":
        if inputs or outputs:
            message = (
                "an ONNX model says itself what its inputs and outputs are; leave out --input and --output"
            )
            raise SpecError(message)
        return Starter(_label(path), path, None, None, read_onnx_signature(path), is_example=False)
    _check_function(path, function)
    weights = path.with_suffix(".safetensors")
    given = bool(inputs or outputs)
    if given and not (inputs and outputs):
        message = "name both sides of the model, with --input and --output"
        raise SpecError(message)
    signature = Signature(inputs=_tensors(inputs), outputs=_tensors(outputs)) if given else _EXAMPLE
    return Starter(
        _label(path), path, function, weights if weights.is_file() else None, signature, is_example=not given
    )


def relative(path: Path, folder: Path) -> str:
    """Return ``path`` as it is written in a file that lies in ``folder``."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def read_onnx_signature(path: Path) -> Signature:
    """Read names, dtypes and shapes from an ONNX file; weights in other files are not touched.

    A dimension without a name is called `batch` where it comes first, else `<tensor>_<index>`.

    :raises SpecError: if the file is no ONNX model, or has an input that is no tensor
    """
    try:
        import onnx
    except ImportError as exc:
        message = "reading an ONNX model needs the package onnx; `pip install onnx`"
        raise UnavailableError(message) from exc
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as exc:  # protobuf raises what it likes for bytes that are no model
        message = f"{path} is not an ONNX model: {exc}"
        raise SpecError(message) from exc
    constants = {tensor.name for tensor in graph.initializer}
    try:
        return Signature(
            inputs=tuple(_from_onnx(value) for value in graph.input if value.name not in constants),
            outputs=tuple(_from_onnx(value) for value in graph.output),
        )
    except ValidationError as exc:
        message = f"{path} cannot be described: {exc.errors()[0]['msg']}; write its spec by hand"
        raise SpecError(message) from exc


def _from_onnx(value: ValueInfoProto) -> TensorSpec:
    from onnx import TensorProto, helper

    tensor = value.type.tensor_type
    if tensor.elem_type == TensorProto.STRING:
        dtype = "string"
    elif tensor.elem_type == TensorProto.BFLOAT16:
        dtype = "bfloat16"
    else:
        dtype = str(helper.tensor_dtype_to_np_dtype(tensor.elem_type)) if tensor.elem_type else "unknown"
    shape: list[int | str] = []
    for index, dimension in enumerate(tensor.shape.dim):
        if dimension.dim_value > 0:
            shape.append(dimension.dim_value)
        elif dimension.dim_param:
            shape.append(_symbol(dimension.dim_param))
        else:
            shape.append("batch" if index == 0 else _symbol(f"{value.name}_{index}"))
    return TensorSpec.model_validate({"name": value.name, "dtype": dtype, "shape": shape})


def _symbol(text: str) -> str:
    cleaned = re.sub(r"\W", "_", text, flags=re.ASCII)
    return cleaned if cleaned[:1].isalpha() or cleaned.startswith("_") else f"d_{cleaned}"


def _check_function(path: Path, function: str) -> None:
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError) as exc:
        message = f"{path} is not Python: {exc}"
        raise SpecError(message) from exc
    known = [item.name for item in tree.body if isinstance(item, ast.FunctionDef | ast.ClassDef)]
    public = [name for name in known if not name.startswith("_")]
    if not function:
        example = "build" if "build" in known or not public else public[0]
        message = f"name the function that builds the model, such as {path}:{example}"
        raise SpecError(message)
    if function not in known:
        near = difflib.get_close_matches(function, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(public) or 'none'}"
        message = f"{path} has no function {function!r} at its top level; {hint}"
        raise SpecError(message)


def _tensors(texts: tuple[str, ...]) -> tuple[TensorSpec, ...]:
    return tuple(_tensor(text) for text in texts)


def _tensor(text: str) -> TensorSpec:
    match = _TENSOR.fullmatch(text.strip())
    if match:
        dimensions = [part.strip() for part in match["shape"].split(",") if part.strip()]
        shape: list[Any] = [int(part) if part.isdigit() else part for part in dimensions]
        try:
            return TensorSpec.model_validate(
                {"name": match["name"].strip(), "dtype": match["dtype"], "shape": shape}
            )
        except ValidationError as exc:
            reason = exc.errors()[0]["msg"]
            message = f"{text!r} is not a tensor: {reason[:1].lower()}{reason[1:]}"
            raise SpecError(message) from exc
    message = f"{text!r} is not a tensor; write it like 'image: float32[batch, 1, 8, 8]'"
    raise SpecError(message)


def _label(path: Path) -> str:
    return re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")[:63].strip("-") or "model"
