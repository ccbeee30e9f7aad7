"""Stage `fp16`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

from shipctl.errors import StageError
from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import Dataset, OnnxModel
from shipctl.stages.context import JudgeContext
from shipctl.stages.verdicts import Outcome
from shipctl.testing.conformance import StageConformance
from shipctl.testing.samples import sealed
from shipctl_plugins.optimize._halves import Inputs, Outputs
from shipctl_plugins.optimize.fp16 import Fp16, Options
from support_small_transformer import small_transformer


class TestConformance(StageConformance):
    stage = "fp16"


SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 4)),),
)


def convert(model: OnnxModel, context: Any, calibration: Dataset | None = None, **options: Any) -> Outputs:
    return Fp16(Options(**options)).run(Inputs(model=model, calibration=calibration), context())


def judged(outputs: Outputs) -> set[Outcome]:
    return {verdict.outcome for verdict in Fp16(Options()).judge(outputs, JudgeContext())}


def kept(outputs: Outputs) -> dict[str, str]:
    return {row["node"]: row["why"] for row in outputs.report.details["kept"]}


@pytest.fixture
def loud_digits(digits_onnx: OnnxModel, tmp_path: Path) -> OnnxModel:
    """The digits model with the first layer's channels five thousand times as large, and taken back after it."""
    model = onnx.load(digits_onnx.path)
    for tensor in model.graph.initializer:
        factor = {"w0": 5e3, "b0": 5e3, "w1": 1 / 5e3}.get(tensor.name)
        if factor:
            scaled = (numpy_helper.to_array(tensor) * factor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(scaled, tensor.name))
    (tmp_path / "loud").mkdir()
    (tmp_path / "loud" / "model.onnx").write_bytes(model.SerializeToString())
    return sealed(OnnxModel.at(tmp_path / "loud", signature=digits_onnx.signature, opset=21))


def test_digits_become_half_as_large_and_stay_close(
    digits_onnx: OnnxModel, calibration: Dataset, context: Any
) -> None:
    outputs = convert(digits_onnx, context, calibration)
    assert judged(outputs) == {Outcome.PASS}
    assert outputs.model.precision == "fp16"
    assert outputs.model.signature == digits_onnx.signature
    assert outputs.model.derived_from == digits_onnx.digest
    assert outputs.model.size < digits_onnx.size * 0.51
    assert outputs.report.metrics["converted.nodes"] == 12
    assert outputs.report.metrics["kept.nodes"] == outputs.report.metrics["parity.emulated"] == 0
    assert outputs.report.details["converted"][0] == {"op_type": "Conv", "converted": 4, "before": 4}
    cases = {row["case"] for row in outputs.report.details["parity"]}
    assert {"random inputs, batch 3", "calibration data, batch 16, rounding emulated"} <= cases


def test_layers_that_overflow_are_kept(loud_digits: OnnxModel, calibration: Dataset, context: Any) -> None:
    outputs = convert(loud_digits, context, calibration)
    assert judged(outputs) == {Outcome.PASS}
    reasons = kept(outputs)
    assert list(reasons) == ["Conv", "Relu", "Conv_2"]
    assert reasons["Conv"].startswith("output 'c0' reaches ")
    assert reasons["Conv_2"].startswith("input 'r0' reaches ")
    assert outputs.report.metrics["kept.nodes"] == 3
    assert outputs.report.metrics["converted.nodes"] == 9


def test_without_the_guard_they_do_not_pass(
    loud_digits: OnnxModel, calibration: Dataset, context: Any
) -> None:
    """ONNX Runtime's CPU kernels would not show it: between them nothing is rounded to float16."""
    outputs = convert(loud_digits, context, calibration, keep_unsafe=False)
    assert kept(outputs) == {}
    assert Outcome.PASS not in judged(outputs)
    rows = outputs.report.details["parity"]
    real = [row for row in rows if not row["case"].endswith("emulated")]
    assert all(isinstance(row["max_rel_error"], float) and row["max_rel_error"] < 0.1 for row in real)


def test_narrower_margin_keeps_more(digits_onnx: OnnxModel, calibration: Dataset, context: Any) -> None:
    reasons = kept(convert(digits_onnx, context, calibration, margin=3e-4))
    assert reasons["Conv"].startswith("output 'c0' reaches 2")
    assert "Conv_7" not in reasons


@pytest.mark.parametrize(
    ("nodes", "weights", "reasons"),
    [
        ([helper.make_node("Add", ["x", "eps"], ["h"], "add"), helper.make_node("Relu", ["h"], ["y"], "relu")],
         {"eps": np.float32(1e-12)},
         {"add": "weight 'eps' is too small: 100.0% of it is lost"}),
        ([helper.make_node("Add", ["x", "mask"], ["h"], "add"), helper.make_node("Softmax", ["h"], ["y"], "soft")],
         {"mask": np.array([0, 0, 0, -3e38], np.float32)},
         {"add": "weight 'mask' reaches 3e+38", "soft": "input 'h' reaches 3e+38"}),
        ([helper.make_node("Mul", ["x", "small"], ["h"], "mul"), helper.make_node("Relu", ["x"], ["r"], "relu"),
          helper.make_node("Add", ["h", "r"], ["y"], "add")],
         {"small": np.float32(1e-5)},
         {"mul": "output 'h' is at most", "add": "input 'h' is at most"}),
        ([helper.make_node("Exp", ["x"], ["h"], "exp"), helper.make_node("Mul", ["h", "k"], ["m"], "mul"),
          helper.make_node("ReduceMean", ["m"], ["s"], "sum", keepdims=1),
          helper.make_node("Sub", ["x", "x"], ["z"], "zero"), helper.make_node("Mul", ["z", "s"], ["y"], "out")],
         {"k": np.float32(4000)},
         {"sum": "sums may reach"}),
    ],
)  # fmt: skip
def test_reasons_are_named(
    onnx_model: Any, dataset: Any, context: Any, nodes: Any, weights: dict[str, Any], reasons: dict[str, str]
) -> None:
    model = onnx_model(nodes, weights, SIGNATURE)
    data = dataset("calibration", x=np.linspace(-1, 1, 32, dtype=np.float32).reshape(8, 4))
    try:
        found = kept(convert(model, context, data, batches=(1,)))
    except StageError as exc:
        found = {name: str(exc) for name in reasons}
    for name, reason in reasons.items():
        assert reason in found[name]


def test_blocked_operators_and_excluded_nodes_are_kept(digits_onnx: OnnxModel, context: Any) -> None:
    outputs = convert(digits_onnx, context, block_ops=["MaxPool"], exclude=["Gemm"])
    assert kept(outputs) == {
        "MaxPool": "MaxPool is in `block_ops`", "MaxPool_9": "MaxPool is in `block_ops`", "Gemm": "it is in `exclude`",
    }  # fmt: skip
    head = next(node for node in onnx.load(outputs.model.path).graph.node if node.name == "Gemm")
    assert list(head.input) == ["flat", "w", "b"]


def test_inputs_and_outputs_can_be_half_precision(
    digits_onnx: OnnxModel, calibration: Dataset, context: Any
) -> None:
    outputs = convert(digits_onnx, context, calibration, keep_io_types=False)
    assert [spec.dtype for spec in (*outputs.model.signature.inputs, *outputs.model.signature.outputs)] == [
        "float16", "float16",
    ]  # fmt: skip
    assert judged(outputs) == {Outcome.PASS}
    graph = onnx.load(outputs.model.path).graph
    assert [node.op_type for node in graph.node if node.op_type == "Cast"] == []
    assert graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT16


def test_transformer_is_converted_whole(onnx_model: Any, context: Any) -> None:
    outputs = convert(onnx_model(*small_transformer()), context)
    assert kept(outputs) == {}
    assert judged(outputs) == {Outcome.PASS}


def test_same_input_gives_the_same_digest(digits_onnx: OnnxModel, context: Any) -> None:
    assert convert(digits_onnx, context).model.digest == convert(digits_onnx, context).model.digest


def test_precision_of_a_quantised_model_is_named_with_it(digits_onnx: OnnxModel, context: Any) -> None:
    quantised = digits_onnx.model_copy(update={"precision": "int8"}).located(digits_onnx.root)
    assert convert(quantised, context).model.precision == "int8+fp16"


def test_node_that_is_not_there_fails(digits_onnx: OnnxModel, context: Any) -> None:
    with pytest.raises(
        StageError, match=r"^`exclude` names node 'Conv_1', which the graph does not have; it has Conv"
    ):
        convert(digits_onnx, context, exclude=["Conv_1"])


def test_model_that_is_converted_already_fails(digits_onnx: OnnxModel, context: Any) -> None:
    done = convert(digits_onnx, context, keep_io_types=False).model
    with pytest.raises(
        StageError,
        match=r"^nothing was converted: no node of the graph computes in float32; leave the stage out$",
    ):
        convert(done, context)


def test_model_of_which_everything_is_kept_fails(digits_onnx: OnnxModel, context: Any) -> None:
    with pytest.raises(StageError) as caught:
        convert(digits_onnx, context, block_ops=["Conv", "Relu", "MaxPool", "Gemm"])
    assert str(caught.value) == (
        "nothing was converted: all 11 nodes stay in float32 (Conv is in `block_ops`; Relu is in `block_ops`; "
        "MaxPool is in `block_ops`); relax the options, export with a newer opset, or leave the stage out"
    )


def test_operator_to_keep_that_is_not_there_is_named(digits_onnx: OnnxModel, context: Any) -> None:
    with pytest.raises(StageError) as caught:
        convert(digits_onnx, context, block_ops=("Softmaxx",))
    assert str(caught.value) == (
        "`block_ops` names 'Softmaxx', which the graph does not have; it has Conv, Flatten, Gemm, MaxPool, Relu"
    )


def test_graph_that_is_not_what_the_spec_says_is_named(digits_onnx: OnnxModel, context: Any) -> None:
    renamed = digits_onnx.signature.outputs[0].model_copy(update={"name": "scores"})
    signature = Signature(inputs=digits_onnx.signature.inputs, outputs=(renamed,))
    wrong = digits_onnx.model_copy(update={"signature": signature}).located(digits_onnx.root)
    with pytest.raises(StageError) as caught:
        convert(wrong, context)
    assert str(caught.value) == (
        "the graph is not what `model` says: outputs are logits, declared are scores; correct `inputs` "
        "and `outputs` there"
    )


def test_dimension_that_no_input_has_is_named(digits_onnx: OnnxModel, context: Any) -> None:
    with pytest.raises(StageError) as caught:
        convert(digits_onnx, context, dimensions={"sequence": 4})
    assert str(caught.value) == (
        "`dimensions` names 'sequence', which varies in no input of the model; those that do: batch"
    )


@pytest.mark.parametrize("options", [{"batches": (0,)}, {"dimensions": {"batch": 0}}])
def test_no_size_is_below_one(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Options(**options)
