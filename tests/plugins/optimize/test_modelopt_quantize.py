"""Stage `modelopt-quantize`."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from shipctl.errors import SpecError, StageError, UnavailableError
from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import Artifact, Dataset, OnnxModel
from shipctl.stages.context import CheckContext, JudgeContext, Upstream
from shipctl.stages.verdicts import Outcome, Verdict
from shipctl.testing.conformance import StageConformance
from shipctl_plugins.optimize import _modelopt, int8_calibration
from shipctl_plugins.optimize.modelopt_quantize import Inputs, ModeloptQuantize, Options, Outputs
from support_lazy import skip_without

skip_without("modelopt.onnx", reason="nvidia-modelopt is not installed")
pytestmark = [pytest.mark.slow]
needs_compiler = pytest.mark.skipif(
    _modelopt.lacks_compiler(),
    reason="ModelOpt compiles an extension for INT4, and there is no C++ compiler: install g++",
)

MLP = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 64)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 32)),),
)


@pytest.fixture
def mlp(onnx_model: Any) -> OnnxModel:
    """Two Gemms whose weights are transposed, as torch exports them."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.normal(size=(128, 64)).astype(np.float32) / 8, "b1": np.zeros(128, np.float32),
        "w2": rng.normal(size=(32, 128)).astype(np.float32) / 8, "b2": np.zeros(32, np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="first", transB=1),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"], name="second", transB=1),
    ]
    model: OnnxModel = onnx_model(nodes, weights, MLP)
    return model


@pytest.fixture
def vectors(dataset: Any) -> Dataset:
    found: Dataset = dataset(
        "calibration", x=np.random.default_rng(1).normal(size=(50, 64)).astype(np.float32)
    )
    return found


class TestConformance(StageConformance):
    stage = "modelopt-quantize"

    @pytest.fixture(autouse=True)
    def _models(self, digits_onnx: OnnxModel, calibration: Dataset) -> None:
        self.model, self.data = digits_onnx, calibration

    def inputs(self, tmp_path: Path) -> dict[str, Artifact | list[Artifact] | None]:
        return {"model": self.model, "calibration": self.data}


def quantize(
    model: OnnxModel, calibration: Dataset | None, context: Any, **options: Any
) -> tuple[Outputs, list[Verdict]]:
    stage = ModeloptQuantize(Options.model_validate(options))
    outputs = stage.run(Inputs(model=model, calibration=calibration), context())
    return outputs, list(stage.judge(outputs, JudgeContext()))


def weight_types(model: OnnxModel) -> set[str]:
    """Types of all weights with at least two dimensions."""
    graph = onnx.load(model.path).graph
    return {TensorProto.DataType.Name(item.data_type) for item in graph.initializer if len(item.dims) > 1}


@pytest.mark.parametrize(
    ("options", "quantized", "stored"),
    [
        ({}, 4, {"INT8", "FLOAT16"}),
        ({"method": "max", "high_precision_dtype": "fp32"}, 4, {"INT8", "FLOAT"}),
        ({"store_quantized": False}, 4, {"FLOAT16"}),
        ({"mode": "fp8"}, 3, {"FLOAT8E4M3FN", "FLOAT16"}),
        ({"mode": "autocast"}, 5, {"FLOAT16"}),
    ],
)
def test_digits_stay_close_and_what_was_done_is_counted(
    digits_onnx: OnnxModel,
    calibration: Dataset,
    context: Any,
    options: Any,
    quantized: int,
    stored: set[str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    outputs, verdicts = quantize(digits_onnx, calibration, context, **options)
    assert outputs.report.metrics["quantized.nodes"] == quantized
    assert sum(row["before"] for row in outputs.report.details["quantized"]) == 5
    assert weight_types(outputs.model) == stored
    assert outputs.model.precision == {"autocast": "fp16"}.get(
        options.get("mode"), options.get("mode", "int8")
    )
    assert outputs.model.signature == digits_onnx.signature
    assert {verdict.outcome for verdict in verdicts} == {Outcome.PASS}
    assert capfd.readouterr() == ("", "")


def test_varying_batch_does_not_lose_the_gemms(mlp: OnnxModel, vectors: Dataset, context: Any) -> None:
    """Left alone, ModelOpt calibrates at batch 1 and quantises neither; the last two samples make no whole batch."""
    outputs, _ = quantize(mlp, vectors, context, op_types=["Gemm"])
    assert outputs.report.details["quantized"] == [{"op_type": "Gemm", "quantized": 2, "before": 2}]
    assert outputs.report.metrics["quantized.samples"] == 48


@needs_compiler
@pytest.mark.parametrize("method", ["awq_clip", "awq_lite", "rtn_dq"])
def test_int4_weights_of_transposed_gemms_run(
    mlp: OnnxModel, vectors: Dataset, context: Any, method: str
) -> None:
    outputs, verdicts = quantize(mlp, vectors, context, mode="int4", method=method, block_size=32)
    assert outputs.report.metrics["quantized.nodes"] == 2
    assert weight_types(outputs.model) >= {"INT4"}
    assert outputs.report.metrics["parity.cosine"] > 0.9
    assert {verdict.gate for verdict in verdicts} == {"parity.cosine", "parity.top1"}


@needs_compiler
def test_int4_by_rounding_needs_no_data(mlp: OnnxModel, context: Any) -> None:
    outputs, _ = quantize(mlp, None, context, mode="int4", method="rtn_dq")
    assert outputs.report.metrics["quantized.samples"] == 0
    assert outputs.report.details["parity"][0]["case"] == "random inputs, batch 1"


@pytest.mark.parametrize("mode", ["int8", "fp8", pytest.param("int4", marks=needs_compiler), "autocast"])
def test_temporary_files_stay_in_the_work_directory(
    mode: str,
    mlp: OnnxModel,
    vectors: Dataset,
    context: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    quantize(mlp, vectors, context, mode=mode)


def test_excluded_nodes_stay(mlp: OnnxModel, vectors: Dataset, context: Any) -> None:
    outputs, _ = quantize(mlp, vectors, context, exclude=["second"])
    assert outputs.report.metrics["quantized.nodes"] == 1


def test_exclusion_that_is_not_heeded_fails(
    mlp: OnnxModel, vectors: Dataset, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_modelopt, "patterns", lambda names: [])
    with pytest.raises(StageError, match=r"^ModelOpt turned second into int8 against exclude$"):
        quantize(mlp, vectors, context, exclude=["second"])


def test_bfloat16_that_cannot_run_here_is_inconclusive(
    digits_onnx: OnnxModel, calibration: Dataset, context: Any
) -> None:
    options = {"mode": "autocast", "high_precision_dtype": "bf16"}
    outputs, verdicts = quantize(digits_onnx, calibration, context, **options)
    assert outputs.model.precision == "bf16"
    assert [(verdict.gate, verdict.outcome) for verdict in verdicts] == [("parity", Outcome.INCONCLUSIVE)]
    assert verdicts[0].message.endswith(
        "compare it where it is served, and accept that with `require_parity: false`"
    )
    accepting = ModeloptQuantize(Options.model_validate({**options, "require_parity": False}))
    assert list(accepting.judge(outputs, JudgeContext())) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"op_types": ["Gemm"]},
            (
                "nothing became int8: the graph has 4 Conv, 1 Gemm, and ModelOpt takes none of them (it leaves out "
                "small ones); "
                "leave the stage out"
            ),
        ),
        (
            {"op_types": ["Conv", "Gemm"]},
            (
                "no Gemm became int8, which op_types asks for: the graph has 4 Conv, 1 Gemm, and ModelOpt leaves out "
                "small ones; "
                "take it out of op_types, or use int8-calibration"
            ),
        ),
        ({"exclude": ["Nope"]}, "`exclude` names node 'Nope', which the graph does not have; it has "),
    ],
)
def test_what_was_not_done_fails(
    digits_onnx: OnnxModel, calibration: Dataset, context: Any, options: Any, message: str
) -> None:
    with pytest.raises(StageError) as caught:
        quantize(digits_onnx, calibration, context, **options)
    assert str(caught.value).startswith(message)


def test_empty_data_is_named(mlp: OnnxModel, dataset: Any, context: Any) -> None:
    with pytest.raises(StageError) as caught:
        quantize(mlp, dataset("calibration", x=np.zeros((0, 64), np.float32)), context)
    assert (
        str(caught.value) == "calibration data is empty; give some hundred samples of what the model will see"
    )


def test_too_few_samples_for_a_fixed_batch_are_named(onnx_model: Any, dataset: Any, context: Any) -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(8, 64)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(8, 32)),),
    )
    model = onnx_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": np.ones((64, 32), np.float32)}, signature
    )
    with pytest.raises(StageError) as caught:
        quantize(model, dataset("calibration", x=np.eye(3, 64, dtype=np.float32)), context, min_samples=1)
    assert (
        str(caught.value) == "calibration data has 3 sample(s), and the model takes batches of 8; give more"
    )


def test_compiler_that_ends_the_process_is_an_error(
    mlp: OnnxModel, vectors: Dataset, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import import_module

    def compile_nothing(*_: Any, **__: Any) -> None:
        raise SystemExit(1)

    monkeypatch.setattr(
        import_module("modelopt.onnx.quantization.quantize"), "quantize_int4", compile_nothing
    )
    with pytest.raises(
        StageError, match=r" cannot compile its extension modelopt_round_and_pack_ext: install "
    ):
        quantize(mlp, vectors, context, mode="int4")


def check(tmp_path: Path, calibration: Dataset | None = None, **options: Any) -> None:
    found = () if calibration is None else (Upstream(node="data.calibration", uses="", artifact=calibration),)
    context = CheckContext(project=tmp_path, pipeline="p", inputs={"calibration": found})
    ModeloptQuantize(Options.model_validate(options)).check(context)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"mode": "int4", "method": "max", "high_precision_dtype": "fp16", "op_types": ["Gemm"]},
            (
                "method max does not go with mode int4, which has awq_clip, awq_lite, awq_full, "
                "rtn_dq; high_precision_dtype "
                "fp16: with mode int4 ModelOpt leaves the rest as it is; put fp16 before this stage; op_types: "
                "ModelOpt has no "
                "such choice in mode int4; name what stays in exclude"
            ),
        ),
        (
            {
                "mode": "autocast",
                "method": "max",
                "high_precision_dtype": "fp32",
                "block_size": 32,
                "store_quantized": False,
            },
            (
                "method max does not go with mode autocast, which has none; block_size belongs to mode int4, not "
                "autocast; mode "
                "autocast lowers to fp16 or bf16; high_precision_dtype fp32 leaves nothing to do; "
                "store_quantized: mode "
                "autocast has no other way to store weights"
            ),
        ),
        (
            {"mode": "fp8"},
            (
                "mode fp8 takes its ranges from calibration data (ModelOpt would make up numbers); say "
                "`data: {calibration: {uri: …}}`"
            ),
        ),
        (
            {"mode": "int4"},
            (
                "mode int4 takes its ranges from calibration data (ModelOpt would make up numbers); say "
                "`data: {calibration: {uri: …}}`, or `method: rtn_dq`"
            ),
        ),
    ],
)
def test_contradictions_are_told_at_plan_time(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        check(tmp_path, **options)
    assert str(caught.value) == message


def test_missing_compiler_is_told_at_plan_time(
    tmp_path: Path, vectors: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_modelopt, "EXTENSION", "not-compiled-yet")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(
        UnavailableError, match=r"^mode int4 compiles an extension on its first use, and there is "
    ):
        check(tmp_path, vectors, mode="int4")
    check(tmp_path, vectors, mode="int8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"op_types": ["Gemm", "Conv"]},
         "`op_types` names 'Conv', which the graph does not have; it has Gemm, Relu"),
        ({"exclude_op_types": ["Gem"]},
         "`exclude_op_types` names 'Gem', which the graph does not have; it has Gemm, Relu"),
        ({"samples": 1},
         ("calibration data has 1 sample, at least 8 are asked for (`min_samples`); give some hundred of what the "
          "model will see")),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_told_before_the_work(
    mlp: OnnxModel, vectors: Dataset, context: Any, options: Any, message: str
) -> None:
    with pytest.raises(StageError) as caught:
        quantize(mlp, vectors, context, **options)
    assert str(caught.value) == message


@pytest.mark.parametrize(("value", "message"), [(np.nan, "NaN or infinite"), (0, "is 0 everywhere")])
def test_data_that_makes_no_range_is_named(
    mlp: OnnxModel, dataset: Any, context: Any, value: float, message: str
) -> None:
    with pytest.raises(StageError, match=message):
        quantize(mlp, dataset("calibration", x=np.full((16, 64), value, np.float32)), context)


def test_other_stages_quantise_as_before(
    digits_onnx: OnnxModel, calibration: Dataset, mlp: OnnxModel, vectors: Dataset, context: Any
) -> None:
    """ModelOpt exchanges methods and operators of ONNX Runtime's quantiser in the process that it runs in."""
    stage = int8_calibration.Int8Calibration(int8_calibration.Options())
    given = int8_calibration.Inputs(model=digits_onnx, calibration=calibration)
    before = stage.run(given, context()).model.digest
    first = quantize(mlp, vectors, context)[0].model.digest
    quantize(digits_onnx, calibration, context, op_types=["Conv"])
    assert stage.run(given, context()).model.digest == before
    assert quantize(mlp, vectors, context)[0].model.digest == first
