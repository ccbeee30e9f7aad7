"""Stage `int4`."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from pydantic import ValidationError

from shipctl.errors import StageError, UnavailableError
from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import Dataset, OnnxModel
from shipctl.stages.context import CheckContext, JudgeContext
from shipctl.stages.verdicts import Outcome
from shipctl.testing.conformance import StageConformance
from shipctl_plugins.optimize import int4
from shipctl_plugins.optimize._quantized import Inputs, Outputs
from shipctl_plugins.optimize.int4 import Int4, Options
from support_lazy import skip_without

skip_without("onnx_ir", reason="needs the optimize extra")

MLP = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 100)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 16)),),
)


class TestConformance(StageConformance):
    stage = "int4"


def quantize(model: OnnxModel, context: Any, calibration: Dataset | None = None, **options: Any) -> Outputs:
    return Int4(Options(**options)).run(Inputs(model=model, calibration=calibration), context())


def nodes_of(model: OnnxModel, operator: str) -> list[onnx.NodeProto]:
    return [node for node in onnx.load(model.path).graph.node if node.op_type == operator]


@pytest.fixture
def mlp(onnx_model: Any) -> OnnxModel:
    """Its first matrix has 100 rows, which no block size divides."""
    return make_mlp(onnx_model)


def make_mlp(onnx_model: Any, **fields: Any) -> OnnxModel:
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b"], ["y"], name="second", transB=1),
    ]
    rng = np.random.default_rng(0)
    weights = {"w1": rng.standard_normal((100, 256)), "w2": rng.standard_normal((16, 256)), "b": np.ones(16)}
    model: OnnxModel = onnx_model(
        nodes, {name: array.astype(np.float32) for name, array in weights.items()}, MLP, **fields
    )
    return model


def test_gemm_of_the_digits_is_quantised_too(
    digits_onnx: OnnxModel, calibration: Dataset, context: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    handlers = list(logging.root.handlers)
    stage = Int4(Options())
    outputs = stage.run(Inputs(model=digits_onnx, calibration=calibration), context())
    assert {entry.outcome for entry in stage.judge(outputs, JudgeContext())} == {Outcome.PASS}
    assert outputs.report.details["quantized"] == [{"op_type": "MatMul", "quantized": 1, "before": 1}]
    assert (outputs.model.precision, outputs.model.derived_from) == ("int4", digits_onnx.digest)
    assert len(nodes_of(outputs.model, "MatMulNBits")) == 1
    assert capfd.readouterr() == ("", "")
    assert logging.root.handlers == handlers


@pytest.mark.parametrize("block_size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("form", ["matmulnbits", "qdq"])
def test_columns_that_blocks_do_not_divide(mlp: OnnxModel, context: Any, block_size: int, form: str) -> None:
    outputs = quantize(mlp, context, block_size=block_size, format=form)
    assert outputs.report.metrics["quantized.nodes"] == 2
    assert outputs.report.metrics["parity.cosine"] > 0.96
    assert outputs.model.size < mlp.size / 3
    made = nodes_of(outputs.model, "MatMulNBits" if form == "matmulnbits" else "DequantizeLinear")
    assert {entry.i for node in made for entry in node.attribute if entry.name == "block_size"} == {
        block_size
    }


def test_smaller_blocks_are_more_exact(mlp: OnnxModel, context: Any) -> None:
    errors = [
        quantize(mlp, context, block_size=size).report.metrics["parity.max_rel_error"] for size in (16, 256)
    ]
    assert errors[0] < errors[1]


def test_symmetric_blocks_have_no_zero_points(mlp: OnnxModel, context: Any) -> None:
    for symmetric, inputs in ((False, 4), (True, 3)):
        made = nodes_of(quantize(mlp, context, symmetric=symmetric).model, "MatMulNBits")
        assert {len(node.input) for node in made} == {inputs}


def test_accuracy_level_is_written(mlp: OnnxModel, context: Any) -> None:
    for level in (1, 4):
        made = nodes_of(quantize(mlp, context, accuracy_level=level).model, "MatMulNBits")
        assert {entry.i for node in made for entry in node.attribute if entry.name == "accuracy_level"} == {
            level
        }


def test_excluded_matrix_stays(mlp: OnnxModel, context: Any) -> None:
    outputs = quantize(mlp, context, exclude=("second",))
    assert outputs.report.metrics["quantized.nodes"] == 1
    assert [node.name for node in nodes_of(outputs.model, "MatMul")] == ["second"]
    weights = {tensor.name for tensor in onnx.load(outputs.model.path).graph.initializer}
    assert "w1" not in weights


@pytest.mark.torch
@pytest.mark.slow
def test_hqq_is_more_exact_than_rounding(digits_onnx: OnnxModel, calibration: Dataset, context: Any) -> None:
    pytest.importorskip("torch", reason="needs the torch extra")
    errors = [
        1 - quantize(digits_onnx, context, calibration, algorithm=name).report.metrics["parity.cosine"]
        for name in ("rtn", "hqq")
    ]
    assert errors[1] < errors[0]


def test_hqq_without_torch_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        int4, "find_spec", lambda name: None if name == "torch" else importlib.util.find_spec(name)
    )
    ctx = CheckContext(project=Path(), pipeline="p")
    Int4(Options()).check(ctx)
    with pytest.raises(UnavailableError) as caught:
        Int4(Options(algorithm="hqq")).check(ctx)
    assert str(caught.value) == (
        "algorithm hqq needs torch: pip install 'shipctl[torch]', or write `algorithm: rtn`"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": "gptq"},
         ("gptq is not available: ONNX Runtime's GPTQ gives the weights of rtn: the error of a column never reaches "
         "the next ones; write rtn or hqq")),
        ({"algorithm": "AWQ"},
         ("AWQ is not available: ONNX Runtime's AWQ hands over to NVIDIA ModelOpt; use the stage `modelopt-quantize` "
         "for it; write rtn or hqq")),
        ({"algorithm": "hqq", "symmetric": True},
         "`symmetric` goes with algorithm rtn only; leave it out or write `algorithm: rtn`"),
        ({"algorithm": "hqq", "format": "qdq"},
         "`format` goes with algorithm rtn only; leave it out or write `algorithm: rtn`"),
        ({"format": "qdq", "accuracy_level": 4},
         "`accuracy_level` is an attribute of MatMulNBits; leave it out or write `format: matmulnbits`"),
    ],
)  # fmt: skip
def test_options_that_would_do_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Options(**options)
    assert [entry["msg"] for entry in caught.value.errors()] == [message]


def test_onnx_runtimes_gptq_is_rounding_to_the_nearest(mlp: OnnxModel) -> None:
    """Why it is refused. When this fails, it has become worth offering."""
    quantizer = pytest.importorskip("onnxruntime.quantization.matmul_nbits_quantizer")
    model = onnx.load(mlp.path)
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((8, 100))
    samples = [{"x": (rng.standard_normal((64, 8)) @ mixing).astype(np.float32)} for _ in range(4)]
    made = []
    for algorithm in (quantizer.RTNWeightOnlyQuantConfig(), quantizer.GPTQWeightOnlyQuantConfig(samples)):
        work = quantizer.MatMulNBitsQuantizer(model, block_size=32, algo_config=algorithm)
        work.process()
        weights = {
            tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in work.model.model.graph.initializer
        }
        made.append(weights["w1_Q4G32"])
    np.testing.assert_array_equal(made[0], made[1])


def test_standard_onnx_needs_its_opset(onnx_model: Any, context: Any) -> None:
    model = make_mlp(onnx_model, opset=17)
    with pytest.raises(StageError) as caught:
        quantize(model, context, format="qdq")
    assert str(caught.value) == (
        "the graph has opset 17, 4-bit integers in standard ONNX came with 21; export it with a newer opset, or write "
        "`format: matmulnbits`"
    )
    assert quantize(model, context).report.metrics["quantized.nodes"] == 2


def test_nothing_to_quantise_fails(onnx_model: Any, mlp: OnnxModel, context: Any) -> None:
    model = onnx_model(
        [helper.make_node("Gemm", ["x", "x"], ["y"], transA=1)], {},
        Signature(
            inputs=(TensorSpec(name="x", dtype="float32", shape=(16, 16)),),
            outputs=(TensorSpec(name="y", dtype="float32", shape=(16, 16)),),
        ),
    )  # fmt: skip
    with pytest.raises(StageError) as caught:
        quantize(model, context)
    assert str(caught.value) == (
        "nothing was quantised: the graph has no MatMul or Gemm with a constant matrix; leave the stage out"
    )
    with pytest.raises(
        StageError, match=r"a constant matrix beside those in `exclude`; leave the stage out$"
    ):
        quantize(mlp, context, exclude=("first", "second"))


def test_unknown_node_in_exclude_is_named(mlp: OnnxModel, context: Any) -> None:
    with pytest.raises(StageError, match=r"^`exclude` names node 'frist', which the graph does not have"):
        quantize(mlp, context, exclude=("frist",))
