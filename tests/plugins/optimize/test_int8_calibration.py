"""Stage `int8-calibration`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from shipctl.errors import SpecError, StageError
from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import Dataset, OnnxModel
from shipctl.stages.context import CheckContext, JudgeContext
from shipctl.stages.verdicts import Outcome
from shipctl.testing.conformance import StageConformance
from shipctl.testing.samples import sealed
from shipctl_plugins.optimize import int8_calibration
from shipctl_plugins.optimize._quantized import Outputs
from shipctl_plugins.optimize.int8_calibration import Inputs, Int8Calibration, Options


class TestConformance(StageConformance):
    stage = "int8-calibration"


TENSORRT = {
    "activation_type": "qint8",
    "symmetric": True,
    "quantize_bias": False,
    "op_types": ["Conv", "Gemm", "MatMul"],
}


def quantize(model: OnnxModel, calibration: Dataset, context: Any, **options: Any) -> Outputs:
    return Int8Calibration(Options(**options)).run(Inputs(model=model, calibration=calibration), context())


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
@pytest.mark.slow
def test_digits_stay_close_and_shrink_and_nothing_is_left_outside_of_the_work_directory(
    digits_onnx: OnnxModel, calibration: Dataset, context: Any, method: str, capfd: pytest.CaptureFixture[str],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    before = sorted(digits_onnx.root.rglob("*"))
    stage = Int8Calibration(Options(method=method))
    outputs = stage.run(Inputs(model=digits_onnx, calibration=calibration), context())
    assert {verdict.outcome for verdict in stage.judge(outputs, JudgeContext())} == {Outcome.PASS}
    assert outputs.model.precision == "int8"
    assert outputs.model.derived_from == digits_onnx.digest
    assert outputs.model.signature == digits_onnx.signature
    assert outputs.model.size < digits_onnx.size / 3
    assert outputs.report.metrics["quantized.nodes"] == 5
    assert outputs.report.details["quantized"] == [
        {"op_type": "Conv", "quantized": 4, "before": 4},
        {"op_type": "Gemm", "quantized": 1, "before": 1},
    ]
    assert capfd.readouterr() == ("", "")
    assert not list((tmp_path / "cwd").iterdir())
    assert sorted(digits_onnx.root.rglob("*")) == before


@pytest.mark.slow
def test_methods_choose_different_ranges(digits_onnx: OnnxModel, calibration: Dataset, context: Any) -> None:
    """With ONNX Runtime's own number of bins, entropy over one batch is min-max under another name."""
    made = [
        quantize(digits_onnx, calibration, context, method=name, batch=512)
        for name in ("minmax", "entropy", "percentile")
    ]
    assert len({outputs.model.digest for outputs in made}) == 3


@pytest.mark.slow
def test_other_process_and_hash_seed_give_the_same_digest(
    digits_onnx: OnnxModel, calibration: Dataset, context: Any, tmp_path: Path
) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from shipctl.stages.artifacts import Dataset, OnnxModel\n"
        "from shipctl.stages.context import StageContext\n"
        "from shipctl_plugins.optimize.int8_calibration import Inputs, Int8Calibration, Options\n"
        "model = OnnxModel.model_validate_json(sys.argv[1]).located(Path(sys.argv[2]))\n"
        "data = Dataset.model_validate_json(sys.argv[3]).located(Path(sys.argv[4]))\n"
        "Path(sys.argv[5]).mkdir()\n"
        "ctx = StageContext(workdir=Path(sys.argv[5]), log=lambda line: None)\n"
        "print(Int8Calibration(Options()).run(Inputs(model=model, calibration=data), ctx).model.digest)\n"
    )
    arguments = [
        digits_onnx.model_dump_json(),
        str(digits_onnx.root),
        calibration.model_dump_json(),
        str(calibration.root),
    ]
    command = [sys.executable, "-c", script, *arguments, str(tmp_path / "elsewhere")]
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == quantize(digits_onnx, calibration, context).model.digest


def test_documented_options_give_what_tensorrt_parses(
    digits_onnx: OnnxModel, calibration: Dataset, context: Any
) -> None:
    outputs = quantize(digits_onnx, calibration, context, **TENSORRT)
    model = onnx.load(outputs.model.path)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    dequantizers = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert dequantizers
    for node in dequantizers:
        zero = numpy_helper.to_array(constants[node.input[2]])
        assert zero.dtype == np.int8
        assert not zero.any()
        if node.input[0] in constants:
            assert constants[node.input[0]].data_type == TensorProto.INT8
    biases = [node.input[2] for node in model.graph.node if node.op_type in {"Conv", "Gemm"}]
    assert all(constants[name].data_type == TensorProto.FLOAT for name in biases)


def test_only_chosen_operators_are_quantised(
    digits_onnx: OnnxModel, calibration: Dataset, context: Any
) -> None:
    outputs = quantize(digits_onnx, calibration, context, op_types=["Conv"])
    assert outputs.report.details["quantized"] == [{"op_type": "Conv", "quantized": 4, "before": 4}]


def test_excluded_node_stays_in_floating_point(
    digits_onnx: OnnxModel, calibration: Dataset, context: Any
) -> None:
    """Nodes without a name are called by their operator and their number."""
    outputs = quantize(digits_onnx, calibration, context, exclude=["Conv_2"])
    assert outputs.report.metrics["quantized.nodes"] == 4
    node = next(node for node in onnx.load(outputs.model.path).graph.node if "w1" in node.input)
    assert list(node.input) == ["r0", "w1", "b1"]


def test_excluded_node_is_found_after_fusion(onnx_model: Any, dataset: Any, context: Any) -> None:
    """ONNX Runtime makes one Gemm of a MatMul and an Add before it quantises."""
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 4)),),
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("Add", ["h", "b"], ["r"], name="bias"),
        helper.make_node("MatMul", ["r", "v"], ["y"], name="second"),
    ]
    eye = np.eye(4, dtype=np.float32)
    model = onnx_model(nodes, {"w": eye, "v": eye, "b": np.ones(4, np.float32)}, signature)
    data = dataset("calibration", x=np.random.default_rng(0).random((9, 4)).astype(np.float32))
    for name in ("first", "second"):
        outputs = quantize(model, data, context, exclude=[name], min_top1=None)
        kept = {"first": "w", "second": "v"}[name]
        assert outputs.report.metrics["quantized.nodes"] == 1
        assert kept in {tensor.name for tensor in onnx.load(outputs.model.path).graph.initializer}


def test_unknown_node_in_exclude_is_named(digits_onnx: OnnxModel, calibration: Dataset, context: Any) -> None:
    with pytest.raises(
        StageError, match=r"^`exclude` names node 'conv9', which the graph does not have; it has "
    ):
        quantize(digits_onnx, calibration, context, exclude=["conv9"])


def test_fewer_samples_pass_on_request(digits_onnx: OnnxModel, calibration: Dataset, context: Any) -> None:
    outputs = quantize(digits_onnx, calibration, context, samples=2, min_samples=2)
    assert outputs.report.metrics["quantized.samples"] == 2


def test_at_most_so_many_samples_are_used(digits_onnx: OnnxModel, calibration: Dataset, context: Any) -> None:
    outputs = quantize(digits_onnx, calibration, context, samples=20)
    assert outputs.report.metrics["quantized.samples"] == 20
    assert [row["samples"] for row in outputs.report.details["parity"]] == [16, 4]


def test_graph_without_weights_fails(onnx_model: Any, dataset: Any, context: Any) -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 4)),),
    )
    model = onnx_model([helper.make_node("Relu", ["x"], ["y"])], {}, signature)
    data = dataset("calibration", x=np.eye(8, 4, dtype=np.float32))
    with pytest.raises(StageError) as caught:
        quantize(model, data, context)
    assert str(caught.value) == (
        "nothing was quantised: the graph has no operator that ONNX Runtime quantises with a float weight; "
        "leave the stage out"
    )


def test_operator_types_that_the_graph_lacks_fail(
    digits_onnx: OnnxModel, calibration: Dataset, context: Any
) -> None:
    with pytest.raises(
        StageError, match=r"^nothing was quantised: the graph has no LSTM or MatMul with a float weight; "
    ):
        quantize(digits_onnx, calibration, context, op_types=["LSTM", "MatMul"])


def test_too_coarse_a_range_does_not_pass(digits_onnx: OnnxModel, dataset: Any, context: Any) -> None:
    """Ranges from one dark sample cut everything that the others need."""
    data = dataset("calibration", image=np.random.default_rng(0).random((40, 1, 8, 8)).astype(np.float32))
    stage = Int8Calibration(Options(method="percentile", percentile=51))
    outputs = stage.run(Inputs(model=digits_onnx, calibration=data), context())
    outcomes = {verdict.gate: verdict.outcome for verdict in stage.judge(outputs, JudgeContext())}
    assert outcomes["parity.cosine"] is Outcome.FAIL


def test_graph_that_onnx_runtime_breaks_by_itself_gets_advice(
    digits_onnx: OnnxModel, calibration: Dataset, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = (
        "model.onnx does not load in ONNX Runtime: output_dtype INT8 does not match y_zero_point type UINT8."
    )

    def refuse(path: Path, *, threads: int) -> Any:
        if path != digits_onnx.path:
            raise StageError(said)

    monkeypatch.setattr(int8_calibration, "open_session", refuse)
    with pytest.raises(StageError) as caught:
        quantize(digits_onnx, calibration, context, **TENSORRT)
    assert str(caught.value) == (
        f"{said}; ONNX Runtime does this from opset 21 on: export the model with `opset: 20`"
    )


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"img": np.zeros((2, 1, 8, 8), np.float32)},
         "calibration data has no array 'image', only img; name its arrays after the model's inputs"),
        ({"image": np.zeros((2, 64), np.float32)},
         "calibration data: array 'image' has shape [2, 64], the model takes image: float32[batch, 1, 8, 8]"),
        ({"image": np.zeros((2, 1, 8, 8), "U1")},
         "calibration data: array 'image' is <U1, the model takes image: float32[batch, 1, 8, 8]"),
        ({"image": np.zeros((0, 1, 8, 8), np.float32)},
         "calibration data is empty; give some hundred samples of what the model will see"),
        ({"image": np.zeros((1, 1, 8, 8), np.float32)},
         ("calibration data has 1 sample, at least 8 are asked for (`min_samples`); give some hundred of what the "
          "model will see")),
        ({"image": np.where(np.arange(20) == 9, np.nan, 0).reshape(20, 1, 1, 1) * np.ones((1, 1, 8, 8), np.float32)},
         ("calibration data: array 'image' has values that are NaN or infinite (first in sample 9), which make no "
          "range; remove those samples")),
        ({"image": np.full((20, 1, 8, 8), 0.5, np.float32)},
         ("calibration data: array 'image' is 0.5 everywhere, which makes no range; give samples of what the model "
          "will see")),
    ],
)  # fmt: skip
def test_data_that_does_not_fit_is_named(
    digits_onnx: OnnxModel, dataset: Any, context: Any, arrays: dict[str, Any], message: str
) -> None:
    with pytest.raises(StageError) as caught:
        quantize(digits_onnx, dataset("calibration", **arrays), context)
    assert str(caught.value) == message


def test_file_that_is_no_npz_is_named(digits_onnx: OnnxModel, tmp_path: Path, context: Any) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(b"rubbish")
    with pytest.raises(
        StageError,
        match=r"^calibration data data\.npz is no \.npz file, or is cut off; write it with numpy\.savez$",
    ):
        quantize(digits_onnx, Dataset.at(path, role="calibration"), context)


def test_graph_of_an_old_opset_fails(onnx_model: Any, dataset: Any, context: Any) -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 4)),),
    )
    model = onnx_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"w": np.eye(4, dtype=np.float32)},
        signature,
        opset=11,
    )
    with pytest.raises(StageError) as caught:
        quantize(model, dataset("calibration", x=np.eye(8, 4, dtype=np.float32)), context)
    assert str(caught.value) == (
        "the graph has opset 11, scales per channel came with 13; export it with a newer opset"
    )


def check(**options: Any) -> None:
    stage = Int8Calibration(Options(**options))
    stage.check(CheckContext(project=Path(), pipeline="test"))


def test_operators_that_are_not_quantised_are_told_at_plan_time() -> None:
    check(op_types=("Conv", "Gemm", "MatMul"))
    with pytest.raises(SpecError) as caught:
        check(op_types=("Conv", "MatMull"))
    assert str(caught.value) == "op_types: ONNX Runtime does not quantise MatMull; did you mean MatMul?"
    with pytest.raises(SpecError, match=r"^op_types: ONNX Runtime does not quantise Zzz; it takes Add, "):
        check(op_types=("Zzz",))


def test_opset_that_the_runtime_does_not_take_is_named(
    digits_onnx: OnnxModel, calibration: Dataset, context: Any, tmp_path: Path
) -> None:
    newer = onnx.load(digits_onnx.path)
    newer.opset_import[0].version = 99
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "model.onnx").write_bytes(newer.SerializeToString())
    model = sealed(OnnxModel.at(tmp_path / "newer", signature=digits_onnx.signature))
    with pytest.raises(StageError) as caught:
        quantize(model, calibration, context)
    assert re.fullmatch(
        r"the graph has opset 99, ONNX Runtime [\d.]+ takes up to (\d+); export the model with opset \1",
        str(caught.value),
    )


def test_tensor_that_is_no_number_is_named(onnx_model: Any, dataset: Any, context: Any) -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 4)),),
    )
    nodes = [helper.make_node("Log", ["x"], ["l"]), helper.make_node("MatMul", ["l", "w"], ["y"])]
    model = onnx_model(nodes, {"w": np.eye(4, dtype=np.float32)}, signature)
    data = dataset("calibration", x=np.eye(8, 4, dtype=np.float32) - 0.5)
    with pytest.raises(StageError, match=r"^tensor '[ly]' becomes NaN or infinite on calibration data, "):
        quantize(model, data, context)
