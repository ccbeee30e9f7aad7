"""ONNX Runtime on the CPU: opening a model and running it, with its faults as stage errors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shipctl.errors import StageError

if TYPE_CHECKING:
    import numpy as np
    from onnxruntime import InferenceSession

    Array = np.ndarray[Any, np.dtype[Any]]

_ERRORS_ONLY = 3


def open_session(path: Path, *, threads: int = 1) -> InferenceSession:
    """Open the ONNX model at ``path`` on the CPU with ``threads`` threads inside operators.

    :raises StageError: if ONNX Runtime does not accept it
    """
    import onnxruntime

    # for sessions that libraries open in this process as well
    onnxruntime.set_default_logger_severity(_ERRORS_ONLY)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # its exceptions share no base of their own
        message = f"{path.name} does not load in ONNX Runtime {onnxruntime.__version__}: {first_line(exc)}"
        raise StageError(message) from exc


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


def first_line(exc: BaseException) -> str:
    """Return the first line of what an exception says, or its class where it says nothing."""
    return str(exc).strip().partition("\n")[0] or type(exc).__name__
