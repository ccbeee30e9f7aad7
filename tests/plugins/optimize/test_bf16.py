"""Stage `bf16`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from shipctl.errors import StageError
from shipctl.stages.artifacts import Dataset, OnnxModel
from shipctl.stages.context import JudgeContext
from shipctl.stages.verdicts import Outcome
from shipctl.testing.conformance import StageConformance
from shipctl.testing.samples import sealed
from shipctl_plugins._onnx.session import NoKernelError, open_session
from shipctl_plugins.optimize._halves import Inputs, Outputs
from shipctl_plugins.optimize.bf16 import Bf16, Options
from support_small_transformer import small_transformer


class TestConformance(StageConformance):
    stage = "bf16"


@pytest.fixture
def digits_22(digits_onnx: OnnxModel, tmp_path: Path) -> OnnxModel:
    """The digits model in the opset from which convolutions take bfloat16."""
    model = onnx.load(digits_onnx.path)
    model.opset_import[0].version = 22
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "model.onnx").write_bytes(model.SerializeToString())
    return sealed(OnnxModel.at(tmp_path / "newer", signature=digits_onnx.signature, opset=22))


def convert(model: OnnxModel, context: Any, calibration: Dataset | None = None, **options: Any) -> Outputs:
    return Bf16(Options(**options)).run(Inputs(model=model, calibration=calibration), context())


def judged(outputs: Outputs) -> set[Outcome]:
    return {verdict.outcome for verdict in Bf16(Options()).judge(outputs, JudgeContext())}


def test_digits_become_half_as_large_and_stay_close(
    digits_22: OnnxModel, calibration: Dataset, context: Any
) -> None:
    outputs = convert(digits_22, context, calibration)
    assert judged(outputs) == {Outcome.PASS}
    assert (outputs.model.precision, outputs.model.opset) == ("bf16", 22)
    assert outputs.model.signature == digits_22.signature
    assert outputs.model.size < digits_22.size * 0.51
    assert outputs.report.metrics["converted.nodes"] == 12
    # eight times the rounding of float16, not none
    assert 1e-3 < outputs.report.metrics["parity.max_rel_error"] < 0.05


def test_parity_is_emulated_where_there_is_no_kernel(digits_22: OnnxModel, context: Any) -> None:
    lines: list[str] = []
    outputs = Bf16(Options()).run(Inputs(model=digits_22), context(log=lines.append))
    assert outputs.report.metrics["parity.emulated"] == 1
    said = outputs.report.details["does_not_run_here"]
    assert "has no kernel for Conv on bfloat16 (node 'Conv')" in said
    assert lines == [
        "12 nodes converted, 0 kept in float32",
        f"parity is measured with emulated rounding alone: {said}",
    ]
    assert {row["case"].rpartition(", ")[2] for row in outputs.report.details["parity"]} == {
        "rounding emulated"
    }


def test_what_opens_the_result_says_which_operator_is_missing(digits_22: OnnxModel, context: Any) -> None:
    """That is what `evaluate` and `benchmark` say."""
    outputs = convert(digits_22, context)
    with pytest.raises(NoKernelError) as caught:
        open_session(outputs.model.path)
    message = str(caught.value)
    assert message.startswith("model.onnx does not run on this machine's CPU: ONNX Runtime ")
    assert message.endswith(
        "has no kernel for Conv on bfloat16 (node 'Conv'); use the model where there is one (a GPU, TensorRT), "
        "or keep such operators in float32"
    )


def test_model_whose_converted_operators_have_kernels_runs(onnx_model: Any, context: Any) -> None:
    """Layer normalisation has one."""
    others = ["Add", "Div", "Gelu", "Gemm", "MatMul", "ReduceMean", "Softmax"]
    outputs = convert(onnx_model(*small_transformer(1)), context, block_ops=others)
    assert outputs.report.metrics["parity.emulated"] == 0
    assert outputs.report.details["does_not_run_here"] == ""
    assert judged(outputs) == {Outcome.PASS}
    cases = [row["case"] for row in outputs.report.details["parity"]]
    assert "random inputs, batch 3" in cases


def test_operators_of_an_older_opset_stay_in_float32(digits_onnx: OnnxModel, context: Any) -> None:
    outputs = convert(digits_onnx, context)
    reasons = {row["op_type"]: row["why"] for row in outputs.report.details["kept"]}
    assert reasons == {
        "Conv": "Conv takes no bfloat16 before opset 22", "MaxPool": "MaxPool takes no bfloat16 before opset 22",
    }  # fmt: skip


def test_transformer_is_converted_whole(onnx_model: Any, context: Any) -> None:
    outputs = convert(onnx_model(*small_transformer()), context)
    assert outputs.report.details["kept"] == []
    assert judged(outputs) == {Outcome.PASS}


def test_opset_that_knows_no_bfloat16_fails(onnx_model: Any, context: Any) -> None:
    nodes, weights, signature = small_transformer(0)
    nodes = [onnx.helper.make_node("ReduceMean", ["tokens"], ["pool_out"], axes=[1], keepdims=0), nodes[-1]]
    model = onnx_model(nodes, {"head.w": weights["head.w"]}, signature, opset=11)
    with pytest.raises(StageError) as caught:
        convert(model, context)
    assert str(caught.value) == (
        "nothing was converted: all 2 nodes stay in float32 (ReduceMean takes no bfloat16 before opset 13; "
        "Gemm takes no bfloat16 before opset 13); relax the options, export with a newer opset, or leave the stage out"
    )


def test_other_function_does_not_pass(
    digits_22: OnnxModel, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shipctl_plugins._onnx import narrowing

    right = narrowing.rounded
    monkeypatch.setattr(narrowing, "rounded", lambda array, dtype: right(array * 0.5, dtype))
    assert Outcome.FAIL in judged(convert(digits_22, context))
