"""Tiny artifacts that are real: a model that runs, a data set that fits it, and an input for any stage."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, TypeVar

from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import Artifact, Dataset, FileEntry, OnnxModel, Report, TorchModel

ArtifactT = TypeVar("ArtifactT", bound=Artifact)

_WEIGHTS = ((1.0, -1.0, 0.25), (-0.5, 1.5, 0.0), (0.5, -0.25, -1.0), (-1.0, 0.0, 1.25))
_BIAS = (0.25, 0.0, -0.25)
FEATURES, CLASSES = len(_WEIGHTS), len(_BIAS)
SAMPLES = 12
OPSET = 21
SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", FEATURES)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", CLASSES)),),
)
"""Of the tiny model: float32 `x [batch, 4]` to float32 `y [batch, 3]`."""

_BUILDER = '''"""A linear layer."""

import torch


def build():
    torch.manual_seed(0)
    return torch.nn.Linear(4, 3)
'''


def sealed(artifact: ArtifactT) -> ArtifactT:
    """Return the artifact with its files listed and digested, as the engine does when it stores it."""
    root = artifact.root
    paths = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
    base = root.parent if root.is_file() else root
    entries = []
    for path in paths:
        content = path.read_bytes()
        entries.append(
            FileEntry(
                path=path.relative_to(base).as_posix(),
                sha256=hashlib.sha256(content).hexdigest(),
                size=len(content),
            )
        )
    return artifact.model_copy(update={"files": tuple(entries)}).located(root)


def tiny_onnx_model(folder: Path, **fields: Any) -> OnnxModel:
    """Write `model.onnx`, one Gemm with fixed weights and the signature :data:`SIGNATURE`, and return it.

    ``fields`` replace those of the artifact, such as ``precision="fp16"``.
    """
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights, bias = np.array(_WEIGHTS, dtype=np.float32), np.array(_BIAS, dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "weights", "bias"], ["y"], name="linear")],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10, producer_name="shipctl"
    )
    onnx.checker.check_model(model, full_check=True)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return sealed(OnnxModel.at(path, **{"signature": SIGNATURE, "opset": OPSET, **fields}))


def tiny_dataset(folder: Path, role: str = "evaluation") -> Dataset:
    """Write `<role>.npz` and return it: `x` float32 [12, 4] and `label` int64 [12], the classes of the tiny model."""
    import numpy as np

    x = np.random.default_rng(7).standard_normal((SAMPLES, FEATURES)).astype(np.float32)
    y = x @ np.array(_WEIGHTS, dtype=np.float32) + np.array(_BIAS, dtype=np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{role}.npz"
    np.savez(path, x=x, label=y.argmax(axis=1).astype(np.int64), y=y)
    return sealed(Dataset.at(path, role=role))


def tiny_torch_model(folder: Path) -> TorchModel:
    """Write a builder of one linear layer and return it; nothing here imports PyTorch."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(_BUILDER, encoding="utf-8")
    return sealed(TorchModel.at(folder, builder="model.py:build", signature=SIGNATURE))


def tiny_report(folder: Path, subject: str = "0" * 64) -> Report:
    """Write an empty report about ``subject`` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.json"
    path.write_text("{}\n", encoding="utf-8")
    return sealed(Report.at(path, subject=subject, title="Sample", metrics={"latency.p95": 0.001}))


def sample_for(kinds: tuple[type[Artifact], ...], name: str, folder: Path) -> Artifact | None:
    """Return a tiny artifact of the first of ``kinds`` that there is one for; None if there is none.

    ``name`` is the input's: it is the role of a data set.
    """
    for kind in kinds:
        if kind is OnnxModel:
            return tiny_onnx_model(folder)
        if kind is Dataset:
            return tiny_dataset(folder, name)
        if kind is TorchModel:
            return tiny_torch_model(folder)
        if kind is Report:
            return tiny_report(folder)
    return None
