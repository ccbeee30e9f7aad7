"""Parity between two ONNX models."""

from __future__ import annotations

from pathlib import Path

from shipctl.stages.artifacts import Dataset, OnnxModel
from shipctl.stages.context import StageContext
from shipctl_plugins._onnx.cases import parity_cases
from shipctl_plugins._onnx.graph import MODEL_FILE
from shipctl_plugins._onnx.parity import ExactParityOptions, Parity
from shipctl_plugins._onnx.session import open_session, run_session


def compare_models(
    before: OnnxModel,
    after: Path,
    calibration: Dataset | None,
    options: ExactParityOptions,
    ctx: StageContext,
) -> Parity:
    """Run ``before`` and the model in the folder ``after`` on random inputs, and on calibration data if given.

    :raises StageError: if one does not run, or the data does not fit
    """
    old = open_session(before.path, threads=ctx.threads)
    new = open_session(after / MODEL_FILE, threads=ctx.threads)
    measured = Parity()
    for case, feed in parity_cases(before.signature, calibration, options, ctx.seed):
        measured.add(case, run_session(old, feed), run_session(new, feed))
    return measured
