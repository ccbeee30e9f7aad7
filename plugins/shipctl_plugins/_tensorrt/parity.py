"""The engine beside the model that it was made from: the same inputs to both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from shipctl.errors import StageError
from shipctl.stages.artifacts import Dataset, OnnxModel
from shipctl.stages.context import StageContext
from shipctl_plugins._onnx import arrays
from shipctl_plugins._onnx.parity import Parity
from shipctl_plugins._onnx.session import open_session, run_session
from shipctl_plugins._tensorrt.backends import installed
from shipctl_plugins._tensorrt.building import Job
from shipctl_plugins._tensorrt.devices import gpus
from shipctl_plugins._tensorrt.options import Profile
from shipctl_plugins._tensorrt.running import Engine
from shipctl_plugins._tensorrt.with_module import logger_of

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]


def why_not_run(job: Job, source: OnnxModel) -> str:
    """Return why the engine cannot be compared with its model here; empty where it can."""
    if not gpus():
        return "this machine has no GPU (or no driver)"
    here = gpus()[0]
    if job.capabilities and here.capability not in job.capabilities:
        return f"it is for {', '.join(job.capabilities)}, and {here.name} is {here.capability}"
    if not installed(job.backend.flavor):
        return f"running it takes the module of {job.backend.flavor}, which is not installed"
    if any(
        spec.dtype in {"string", "bfloat16"} for spec in (*source.signature.inputs, *source.signature.outputs)
    ):
        return "there are no arrays of its inputs' or outputs' type"
    try:
        open_session(source.path)
    except StageError as exc:
        return f"the model it was made from is nothing to compare with: {exc}"
    return ""


def run_beside(
    job: Job,
    source: OnnxModel,
    calibration: Dataset | None,
    profiles: Sequence[Profile],
    samples: int,
    ctx: StageContext,
) -> Parity:
    """Run model and engine at the smallest, the tuned and the largest sizes of the first profile, and on real data.

    :raises StageError: if one does not run
    """
    import importlib

    module = "tensorrt_rtx" if job.backend.flavor == "tensorrt-rtx" else "tensorrt"
    before = open_session(source.path, threads=ctx.threads)
    measured = Parity()
    with Engine(module, job.plan.read_bytes(), logger_of(importlib.import_module(module))) as engine:
        for case, feed in _feeds(source, calibration, profiles, samples, ctx):
            measured.add(case, run_session(before, feed), engine.run(feed))
    return measured


def _feeds(
    source: OnnxModel,
    calibration: Dataset | None,
    profiles: Sequence[Profile],
    samples: int,
    ctx: StageContext,
) -> Iterator[tuple[str, dict[str, Array]]]:
    largest = 1
    for end in ("min", "opt", "max") if profiles else ("opt",):
        sizes = {name: getattr(spread, end) for name, spread in (profiles[0] if profiles else {}).items()}
        batch = next((sizes[str(spec.shape[0])] for spec in source.signature.inputs if spec.is_batched), 1)
        largest = max(largest, batch)
        yield (
            f"random inputs, {end} sizes",
            arrays.random_inputs(source.signature, batch, ctx.seed + 1, sizes),
        )
    if calibration is not None:
        yield from arrays.sample_batches(calibration, source.signature, samples, largest)
