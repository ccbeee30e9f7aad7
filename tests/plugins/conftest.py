"""The digits model and its data as artifacts, and places for stages to work in."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import Dataset, OnnxModel, TorchModel
from shipctl.stages.context import Objectives, StageContext
from shipctl.testing.samples import sealed

SPECS = Path(__file__).parents[2] / "specs"
DIGITS = Signature(
    inputs=(TensorSpec(name="image", dtype="float32", shape=("batch", 1, 8, 8)),),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 10)),),
)

MakeContext = Callable[..., StageContext]
MakeDataset = Callable[..., Dataset]
MakeOnnx = Callable[..., OnnxModel]


@pytest.fixture
def context(tmp_path: Path) -> MakeContext:
    """Make a stage context with a fresh work directory."""
    numbers = count()

    def make(*, log: Callable[[str], None] = lambda line: None, **objectives: Any) -> StageContext:
        workdir = tmp_path / f"work-{next(numbers)}"
        workdir.mkdir()
        return StageContext(workdir=workdir, objectives=Objectives(**objectives), log=log)

    return make


@pytest.fixture
def dataset(tmp_path: Path) -> MakeDataset:
    """Make a data set of the arrays given by name."""
    numbers = count()

    def make(role: str = "evaluation", **arrays: Any) -> Dataset:
        path = tmp_path / f"{role}-{next(numbers)}.npz"
        np.savez(path, allow_pickle=False, **{name: np.asarray(array) for name, array in arrays.items()})
        return sealed(Dataset.at(path, role=role))

    return make


@pytest.fixture
def onnx_model(tmp_path: Path) -> MakeOnnx:
    """Make an ONNX model of nodes, weights and a signature."""
    numbers = count()

    def make(
        nodes: list[onnx.NodeProto], weights: Mapping[str, np.ndarray], signature: Signature, **fields: Any
    ) -> OnnxModel:
        return build_onnx(tmp_path / f"model-{next(numbers)}", nodes, weights, signature, **fields)

    return make


@pytest.fixture(scope="session")
def specs() -> Path:
    """The folder with the example specs, models and data."""
    return SPECS


@pytest.fixture(scope="session")
def calibration() -> Dataset:
    return sealed(Dataset.at(SPECS / "data" / "digits-calibration.npz", role="calibration"))


@pytest.fixture(scope="session")
def evaluation() -> Dataset:
    return sealed(Dataset.at(SPECS / "data" / "digits-evaluation.npz", role="evaluation"))


@pytest.fixture(scope="session")
def digits_torch(tmp_path_factory: pytest.TempPathFactory) -> TorchModel:
    """The digits model as source, with its weights."""
    return place_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture
def digits_at() -> Callable[[Path], TorchModel]:
    """Copy the digits model to a folder of one's own."""
    return place_digits


@pytest.fixture(scope="session")
def digits_onnx(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    """The digits model as an ONNX graph, made here from its weights: without torch, normalisation folded."""
    load_file = pytest.importorskip("safetensors.numpy").load_file
    tensors = load_file(SPECS / "models" / "digits.safetensors")
    nodes, weights, last = [], {}, "image"
    for block in (0, 1, 2, 4):
        prefix = f"features.{block}"
        factor = tensors[f"{prefix}.norm.weight"] / np.sqrt(tensors[f"{prefix}.norm.running_var"] + 1e-5)
        weights[f"w{block}"] = tensors[f"{prefix}.conv.weight"] * factor[:, None, None, None]
        weights[f"b{block}"] = (
            tensors[f"{prefix}.norm.bias"] - tensors[f"{prefix}.norm.running_mean"] * factor
        )
        nodes.append(
            helper.make_node("Conv", [last, f"w{block}", f"b{block}"], [f"c{block}"], pads=[1, 1, 1, 1])
        )
        nodes.append(helper.make_node("Relu", [f"c{block}"], [f"r{block}"]))
        last = f"r{block}"
        if block in {2, 4}:
            nodes.append(
                helper.make_node("MaxPool", [last], [f"p{block}"], kernel_shape=[2, 2], strides=[2, 2])
            )
            last = f"p{block}"
    weights["w"], weights["b"] = tensors["head.weight"], tensors["head.bias"]
    nodes.append(helper.make_node("Flatten", [last], ["flat"]))
    nodes.append(helper.make_node("Gemm", ["flat", "w", "b"], ["logits"], transB=1))
    return build_onnx(tmp_path_factory.mktemp("digits-onnx") / "model", nodes, weights, DIGITS)


def place_digits(folder: Path) -> TorchModel:
    """Copy the digits model to ``folder``, made if need be, and return it."""
    folder.mkdir(exist_ok=True)
    for name in ("digits.py", "layers.py", "digits.safetensors"):
        shutil.copy(SPECS / "models" / name, folder)
    fields = {"builder": "digits.py:build", "weights": "digits.safetensors", "signature": DIGITS}
    return sealed(TorchModel.at(folder, **fields))


def build_onnx(
    folder: Path,
    nodes: list[onnx.NodeProto],
    weights: Mapping[str, np.ndarray],
    signature: Signature,
    *,
    opset: int = 21,
    **fields: Any,
) -> OnnxModel:
    def info(spec: TensorSpec) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(
            spec.name, helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), spec.shape
        )

    graph = helper.make_graph(
        nodes,
        "test",
        [info(spec) for spec in signature.inputs],
        [info(spec) for spec in signature.outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return sealed(OnnxModel.at(folder, signature=signature, opset=opset, **fields))
