"""The artifact of a graph that was made from another model: where it comes from, and what it takes along."""

from __future__ import annotations

from pathlib import Path

from shipctl.signature import Signature
from shipctl.stages.artifacts import OnnxModel, SourceModel
from shipctl_plugins._onnx.companions import take_companions
from shipctl_plugins._onnx.quantized import precision_of
from shipctl_plugins._onnx.reports import sealed


def made_from(
    source: OnnxModel | SourceModel,
    folder: Path,
    opset: int,
    *,
    precision: str | None = None,
    signature: Signature | None = None,
) -> OnnxModel:
    """Return the model in ``folder``, which was made from ``source``, with the files that lie beside a graph there.

    Left out, precision and signature are those of ``source``; a model that was no graph yet has fp32.

    :raises StageError: if the graph of ``source`` cannot be read
    """
    if isinstance(source, OnnxModel):
        take_companions(source, folder)
        precision = precision or precision_of(source)
    model = OnnxModel.at(
        folder,
        signature=signature or source.signature,
        opset=opset,
        precision=precision or "fp32",
        derived_from=source.digest,
    )
    return sealed(model)
