"""What Triton's tensorrt backend takes of an engine."""

from __future__ import annotations

from typing import Literal

from shipctl.stages.artifacts import TensorrtEngine


def check_engine(engine: TensorrtEngine, kind: Literal["auto", "cpu", "gpu"]) -> str | None:
    """Return why Triton would not serve ``engine`` in instances of ``kind``, or None."""
    if engine.flavor == "tensorrt-rtx":
        return (
            "this engine is one of TensorRT for RTX, which Triton's tensorrt backend does not load; build it with "
            "`backend: tensorrt` or `trtexec`, or serve the ONNX model"
        )
    if kind == "cpu":
        return "instance_group: a TensorRT engine runs on a GPU, not in instances of kind cpu"
    return None


def largest_batch(engine: TensorrtEngine) -> int:
    """Return the largest batch that an engine with a batch dimension takes: that of the profile which goes furthest."""
    batch = str(engine.signature.inputs[0].shape[0])
    return max((profile[batch][2] for profile in engine.profiles if batch in profile), default=1)
