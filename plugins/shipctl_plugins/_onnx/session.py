"""ONNX Runtime on the CPU: opening a model and running it, with its faults as stage errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shipctl.errors import StageError

if TYPE_CHECKING:
    import numpy as np
    from onnxruntime import InferenceSession

    Array = np.ndarray[Any, np.dtype[Any]]

_ERRORS_ONLY = 3
_NO_KERNEL = re.compile(
    r"Could not find an implementation for (?P<operator>\w+)\(\d+\) node with name '(?P<node>[^']*)'"
)
_TOO_NEW = (
    re.compile(
        r"Opset (?P<have>\d+) is under development.*domain (?P<domain>\S+) is till opset (?P<newest>\d+)",
        re.DOTALL,
    ),
    re.compile(r"Unsupported model IR version: (?P<have>\d+), max supported IR version: (?P<newest>\d+)"),
)


class NoKernelError(StageError):
    """ONNX Runtime has no kernel for an operator of a model, at least not here and on these element types."""


def open_session(path: Path, *, threads: int = 1, optimize: bool = True) -> InferenceSession:
    """Open the ONNX model at ``path`` on the CPU with ``threads`` threads inside operators.

    Without ``optimize`` every node stays as the graph has it.

    :raises NoKernelError: if it is in order, but not for this machine's CPU
    :raises StageError: if ONNX Runtime does not accept it
    """
    import onnxruntime

    # for sessions that libraries open in this process as well
    onnxruntime.set_default_logger_severity(_ERRORS_ONLY)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # its exceptions share no base of their own
        runtime = f"ONNX Runtime {onnxruntime.__version__}"
        message = f"{path.name} does not load in {runtime}: {first_line(exc)}"
        missing = _NO_KERNEL.search(str(exc))
        if missing:
            where = _element_types(path, missing["node"])
            said = (
                f"{path.name} does not run on this machine's CPU: {runtime} has no kernel for "
                f"{missing['operator']}{where}; use the model where there is one (a GPU, TensorRT), or keep such "
                "operators in float32"
            )
            raise NoKernelError(said) from exc
        raise StageError(too_new(exc) or message) from exc


def run_session(session: InferenceSession, feed: Mapping[str, Array]) -> dict[str, Array]:
    """Return the outputs of ``session`` by name.

    :raises StageError: if the inputs do not fit or an operator fails
    """
    names = [output.name for output in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, dict(feed)), strict=True))
    except Exception as exc:  # its exceptions share no base of their own
        shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in feed.items())
        message = f"the model does not run in ONNX Runtime on {shapes}: {first_line(exc)}"
        raise StageError(message) from exc


def too_new(exc: Exception) -> str:
    """Return what is wrong where a graph is newer than the runtime, as it says itself; nothing for other faults."""
    import onnxruntime

    found = next((match for pattern in _TOO_NEW if (match := pattern.search(str(exc)))), None)
    if found is None:
        return ""
    what = found.groupdict().get("domain")
    what = {None: "IR version", "ai.onnx": "opset"}.get(what, f"opset of {what}")
    return (
        f"the graph has {what} {found['have']}, ONNX Runtime {onnxruntime.__version__} takes up to {found['newest']}; "
        f"export the model with {what} {found['newest']}"
    )


def _element_types(path: Path, name: str) -> str:
    """Return ` on bfloat16 (node 'conv_1')` of a node, and nothing about what is not known."""
    import onnx

    try:
        # type inference needs no weights
        model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
    except Exception:  # noqa: BLE001  a message is being written: it is the better for it or stays as it was
        return ""
    graph = model.graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    types |= {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.input, *graph.output, *graph.value_info)
    }
    node = next((node for node in graph.node if node.name == name), None)
    found = {types[tensor] for tensor in (node.input if node else ()) if types.get(tensor)}
    names = sorted(onnx.TensorProto.DataType.Name(number).lower() for number in found)
    on = f" on {' and '.join(names)}" if names else ""
    return f"{on} (node {name!r})" if name else on


def first_line(exc: BaseException) -> str:
    """Return the first line of what an exception says, or its class where it says nothing."""
    return str(exc).strip().partition("\n")[0] or type(exc).__name__
