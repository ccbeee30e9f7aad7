"""Graphs, sessions and input arrays that the ONNX stages share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from shipctl.errors import StageError
from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import Dataset, OnnxModel
from shipctl.testing.samples import sealed
from shipctl_plugins._onnx import arrays, graph
from shipctl_plugins._onnx.session import open_session, run_session
from shipctl_plugins.optimize.onnx_simplify import Inputs, OnnxSimplify, Options


@pytest.fixture
def external(digits_onnx: OnnxModel, tmp_path: Path) -> OnnxModel:
    """The digits model with external data, seen through hard links as a content-addressed store gives them."""
    model = onnx.load(digits_onnx.path)
    (tmp_path / "made").mkdir()
    (tmp_path / "view").mkdir()
    place = tmp_path / "made" / "model.onnx"
    onnx.save_model(model, place, save_as_external_data=True, location="model.onnx.data")
    for path in (tmp_path / "made").iterdir():
        os.link(path, tmp_path / "view" / path.name)
    return sealed(OnnxModel.at(tmp_path / "view", signature=digits_onnx.signature, opset=21))


def spec(name: str, *shape: int | str, dtype: Any = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def signature(*inputs: TensorSpec) -> Signature:
    return Signature(inputs=inputs, outputs=(spec("y", "batch", 1),))


def test_external_data_behind_hard_links_is_read(
    external: OnnxModel, calibration: Dataset, context: Any
) -> None:
    with pytest.raises(onnx.checker.ValidationError, match="hard links"):
        onnx.load(external.path)
    outputs = OnnxSimplify(Options()).run(Inputs(model=external, calibration=calibration), context())
    assert outputs.report.metrics["parity.max_abs_error"] == 0


def test_external_data_that_ends_early_is_named(external: OnnxModel) -> None:
    os.truncate(external.root / "model.onnx.data", 1000)
    with pytest.raises(
        StageError, match=r"^model\.onnx\.data ends inside of tensor 'w\d'; make the model again$"
    ):
        graph.load_model(external.path)


def test_large_model_is_written_with_external_data_and_read_back(
    digits_onnx: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "INLINE_LIMIT", 100_000)
    model = graph.load_model(digits_onnx.path)
    folder = graph.save_model(graph.load_model(digits_onnx.path), tmp_path / "out")
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "model.onnx.data"]
    again = graph.load_model(folder / "model.onnx")
    for before, after in zip(model.graph.initializer, again.graph.initializer, strict=True):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(before), onnx.numpy_helper.to_array(after))


def test_differences_are_all_named() -> None:
    value = helper.make_tensor_value_info
    model = helper.make_model(
        helper.make_graph([], "g", [value("x", 1, ["n", 4]), value("z", 1, [2])], [value("y", 11, ["n", 3])])
    )
    declared = Signature(inputs=(spec("x", 8, 4), spec("z", 2, 2)), outputs=(spec("y", "batch", 3),))
    assert graph.graph_differences(model, declared) == [
        "input 'x': dimension 0 varies, declared is 8",
        "input 'z' has 1 dimensions [2], declared is z: float32[2, 2]",
        "output 'y' is float64, declared is float32",
    ]


def test_file_that_is_no_model_does_not_open(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"rubbish")
    with pytest.raises(StageError, match=r"^model\.onnx does not load in ONNX Runtime [0-9.]+: "):
        open_session(tmp_path / "model.onnx")


def test_input_that_does_not_fit_is_shown_with_its_shape(digits_onnx: OnnxModel) -> None:
    with pytest.raises(
        StageError, match=r"^the model does not run in ONNX Runtime on image float32\[2, 3\]: "
    ):
        run_session(open_session(digits_onnx.path), {"image": np.zeros((2, 3), np.float32)})


def test_random_inputs_are_the_same_for_the_same_seed() -> None:
    wanted = signature(spec("a", "batch", "tokens"), spec("b", "batch", 3, dtype="int64"))
    first, again, other = (arrays.random_inputs(wanted, 2, seed, {"tokens": 5}) for seed in (1, 1, 2))
    assert first["a"].shape == (2, 5)
    assert set(np.unique(first["b"])) <= {0, 1}
    np.testing.assert_array_equal(first["a"], again["a"])
    assert (first["a"] != other["a"]).any()


@pytest.mark.parametrize("dtype", ["bfloat16", "string"])
def test_dtype_without_random_values_is_named(dtype: Any) -> None:
    with pytest.raises(StageError) as caught:
        arrays.random_inputs(signature(spec("x", "batch", 4, dtype=dtype)), 1, 0)
    assert str(caught.value) == f"there are no random values for input x: {dtype}[batch, 4]; give real data"


def test_inputs_without_a_common_batch_are_named() -> None:
    with pytest.raises(StageError) as caught:
        arrays.fixed_batch(signature(spec("x", "batch", 4), spec("z", 2)))
    assert str(caught.value) == (
        "the inputs differ in their first dimension, so there is no batch: x: float32[batch, 4]; z: float32[2]"
    )


def test_arrays_of_different_lengths_are_named() -> None:
    wanted = signature(spec("x", "batch", 4), spec("z", "batch"))
    data = {"x": np.zeros((3, 4), np.float32), "z": np.zeros(2, np.float32)}
    with pytest.raises(StageError) as caught:
        arrays.model_inputs(data, wanted, "evaluation")
    assert (
        str(caught.value) == "evaluation data: the arrays differ in their number of samples: {'x': 3, 'z': 2}"
    )


def test_floats_are_converted_and_integers_are_not_made_of_them() -> None:
    wanted = signature(spec("x", "batch", dtype="float32"))
    assert arrays.model_inputs({"x": np.zeros(2)}, wanted, "golden")["x"].dtype == np.float32
    ids = signature(spec("x", "batch", dtype="int64"))
    with pytest.raises(
        StageError, match=r"^golden data: array 'x' is float64, the model takes x: int64\[batch\]$"
    ):
        arrays.model_inputs({"x": np.zeros(2)}, ids, "golden")
