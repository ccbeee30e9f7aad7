"""Stage `trtexec`: real engines of TensorRT for RTX, which builds them without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from shipctl.errors import SpecError, StageError, UnavailableError
from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import Dataset, OnnxModel
from shipctl.stages.context import CheckContext, JudgeContext, Upstream
from shipctl.stages.verdicts import Outcome, Verdict
from shipctl.testing.conformance import StageConformance
from shipctl.testing.fixtures import SampleProject
from shipctl.testing.samples import tiny_onnx_model
from shipctl_plugins._tensorrt import backends
from shipctl_plugins.optimize.int8_calibration import Inputs as CalibrationInputs
from shipctl_plugins.optimize.int8_calibration import Int8Calibration
from shipctl_plugins.optimize.int8_calibration import Options as CalibrationOptions
from shipctl_plugins.optimize.trtexec import Inputs, Options, Outputs, Trtexec
from support_lazy import skip_without

skip_without("tensorrt_rtx", reason="tensorrt-rtx is not installed")

AHEAD = {"backend": "tensorrt-rtx", "compute_capability": ["8.9"], "require_run": False}
TENSORRT = {
    "activation_type": "qint8",
    "symmetric": True,
    "quantize_bias": False,
    "op_types": ["Conv", "Gemm", "MatMul"],
}


class TestConformance(StageConformance):
    stage = "trtexec"
    options = AHEAD


def build(model: OnnxModel, context: Any, **options: Any) -> tuple[Outputs, list[Verdict]]:
    stage = Trtexec(Options.model_validate({**AHEAD, **options}))
    outputs = stage.run(Inputs(model=model), context())
    return outputs, list(stage.judge(outputs, JudgeContext()))


def outcomes(verdicts: list[Verdict]) -> dict[str, Outcome]:
    return {verdict.gate: verdict.outcome for verdict in verdicts}


def quantized(model: OnnxModel, calibration: Dataset, context: Any, **options: Any) -> OnnxModel:
    stage = Int8Calibration(CalibrationOptions.model_validate(options))
    return stage.run(CalibrationInputs(model=model, calibration=calibration), context()).model


def convolution(kind: str, onnx_model: Callable[..., OnnxModel], *, transposed: bool = False) -> OnnxModel:
    """One convolution, typed as ``kind`` says."""
    dtype = "float16" if kind == "fp16" else "float32"
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype=dtype, shape=("batch", 16, 8, 8)),),
        outputs=(TensorSpec(name="y", dtype=dtype, shape=("batch", 16, "h", "w")),),
    )
    weights: dict[str, Any] = {"w": np.random.default_rng(0).normal(size=(16, 16, 3, 3)).astype(dtype)}
    operator = "ConvTranspose" if transposed else "Conv"
    if kind != "int8":
        return onnx_model(
            [helper.make_node(operator, ["x", "w"], ["y"], name="product")],
            weights,
            signature,
            precision=kind,
        )
    weights = {"w": (weights["w"] * 40).astype(np.int8), "s": np.float32(0.02), "z": np.int8(0)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], name="quantize"),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], name="dequantize"),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"], name="weights"),
        helper.make_node(operator, ["xd", "wd"], ["y"], name="product"),
    ]
    return onnx_model(nodes, weights, signature, precision="int8")


def test_engine_says_what_it_is(digits_onnx: OnnxModel, context: Any) -> None:
    lines: list[str] = []
    stage = Trtexec(Options.model_validate({**AHEAD, "batch": {"opt": 4, "max": 16}}))
    outputs = stage.run(Inputs(model=digits_onnx), context(log=lines.append))
    engine = outputs.model
    assert (engine.flavor, engine.precision, engine.derived_from) == (
        "tensorrt-rtx",
        "fp32",
        digits_onnx.digest,
    )
    assert engine.compute_capabilities == ("8.9",)
    assert engine.version.startswith("1.")
    assert engine.profiles == ({"batch": (1, 4, 16)},)
    assert engine.signature == digits_onnx.signature
    assert [entry.path for entry in engine.files] == ["model.plan"]
    assert outputs.report.subject == engine.digest
    assert outputs.report.metrics["layers.fp32"] == outputs.report.metrics["layers.total"] - 1
    assert lines == ["10 layers (9 in fp32); 0 of 0 products with a type asked for are in it"]
    assert {verdict.outcome for verdict in stage.judge(outputs, JudgeContext())} == {Outcome.PASS}


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_precision_of_the_graph_is_found_in_the_engine(kind: str, onnx_model: Any, context: Any) -> None:
    outputs, verdicts = build(convolution(kind, onnx_model), context, profiles=[{}])
    assert outputs.report.details["products"] == [
        {"node": "product", "op_type": "Conv", "asked": kind, "found": kind, "verdict": "as asked"}
    ]
    assert outputs.report.metrics[f"layers.{kind}"] >= 1
    assert outputs.model.precision == kind
    assert set(outcomes(verdicts).values()) == {Outcome.PASS}


def test_product_that_fell_back_fails(onnx_model: Any, context: Any) -> None:
    """TensorRT for RTX has no INT8 kernel for a transposed convolution and takes an FP32 one without a word."""
    model = convolution("int8", onnx_model, transposed=True)
    outputs, verdicts = build(model, context)
    assert outputs.report.metrics["products.fell_back"] == 1
    assert outcomes(verdicts)["precision"] is Outcome.FAIL
    assert verdicts[0].message == "1 product(s) fell back to a wider type: product asked int8, runs in fp32"
    excused = Trtexec(Options.model_validate({**AHEAD, "allow_full_precision": ["prod*"]}))
    assert outcomes(list(excused.judge(outputs, JudgeContext())))["precision"] is Outcome.PASS


@pytest.mark.slow
def test_int8_calibration_with_documented_options_gives_int8_layers(
    digits_onnx: OnnxModel, calibration: Dataset, context: Any
) -> None:
    model = quantized(digits_onnx, calibration, context, **TENSORRT)
    outputs, verdicts = build(model, context, compute_capability=["8.0", "8.9"])
    assert outputs.model.compute_capabilities == ("8.0", "8.9")
    assert [row["found"] for row in outputs.report.details["products"]] == ["int8"] * 5
    assert set(outcomes(verdicts).values()) == {Outcome.PASS}


@pytest.mark.slow
def test_default_quantisation_is_refused_with_what_to_set(
    digits_onnx: OnnxModel, calibration: Dataset, context: Any
) -> None:
    with pytest.raises(StageError) as caught:
        build(quantized(digits_onnx, calibration, context), context)
    assert str(caught.value) == (
        "TensorRT does not take the way in which this graph is quantised: INT32 biases are dequantised "
        "(b0_DequantizeLinear, b1_DequantizeLinear, b2_DequantizeLinear, b4_DequantizeLinear, b_DequantizeLinear): set "
        "`quantize_bias: false` on int8-calibration; activations are UINT8 (image_QuantizeLinear, r0_QuantizeLinear, "
        "r1_QuantizeLinear, r2_QuantizeLinear, p2_QuantizeLinear and 4 more): set `activation_type: qint8` and "
        "`symmetric: true` on int8-calibration"
    )


@pytest.mark.slow
def test_shifted_zero_points_are_refused_with_what_to_set(
    digits_onnx: OnnxModel, calibration: Dataset, context: Any
) -> None:
    model = quantized(digits_onnx, calibration, context, **{**TENSORRT, "symmetric": False})
    with pytest.raises(
        StageError, match=r"zero points are not 0 \(image_.*\): set `symmetric: true` on int8-calibration$"
    ):
        build(model, context)


def test_engine_that_has_not_run_is_inconclusive(digits_onnx: OnnxModel, context: Any) -> None:
    _, verdicts = build(digits_onnx, context, require_run=True)
    assert outcomes(verdicts)["parity"] is Outcome.INCONCLUSIVE
    assert verdicts[-1].message == (
        "the engine has not run: this machine has no GPU (or no driver); build where a GPU can run it, or accept that "
        "with `require_run: false`"
    )


def test_layers_that_cannot_be_seen_are_inconclusive(
    onnx_model: Any, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shipctl_plugins._tensorrt import with_module

    monkeypatch.setattr(with_module, "layers_from_log", lambda lines: [])
    outputs, verdicts = build(convolution("fp16", onnx_model), context)
    assert outcomes(verdicts) == {"precision": Outcome.PASS, "inspection": Outcome.INCONCLUSIVE}
    assert verdicts[1].message == (
        "no GPU here can load the engine, and the builder's log lists no layers; accept that with "
        "`require_inspection: false`"
    )
    accepting = Trtexec(Options.model_validate({**AHEAD, "require_inspection": False}))
    assert set(outcomes(list(accepting.judge(outputs, JudgeContext())))) == {"precision"}


def test_model_that_is_not_what_it_says_fails(digits_onnx: OnnxModel, context: Any) -> None:
    claimed = digits_onnx.model_copy(update={"precision": "fp16"}).located(digits_onnx.root)
    with pytest.raises(StageError) as caught:
        build(claimed, context)
    assert str(caught.value) == (
        "the model is said to be fp16, and all 5 products of its graph are FP32: an engine of it would be FP32"
    )


def test_all_parser_errors_are_told_with_node_names(onnx_model: Any, context: Any) -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 4)),),
    )
    nodes = [
        helper.make_node("Mystery", ["x"], ["a"], name="first", domain="org.example"),
        helper.make_node("Relu", ["a"], ["b"], name="fine"),
        helper.make_node("Riddle", ["b"], ["y"], name="second", domain="org.example"),
    ]
    with pytest.raises(StageError) as caught:
        build(onnx_model(nodes, {}, signature), context)
    head, *lines = str(caught.value).splitlines()
    assert head.endswith("does not take this graph:")
    assert lines == [
        f'  {name}: creator && "Plugin not found, are the plugin name, version, and namespace correct?"'
        for name in ("first (Mystery)", "second (Riddle)")
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"workspace": "1MiB"}, "no tactics to implement the operation within workspace limit"),
        ({"compute_capability": ["7.5"]}, "  Cannot compile operation 'node_of_logits' for Turing (SM75)"),
    ],
)
def test_what_the_builder_cannot_do_is_told(
    digits_onnx: OnnxModel, context: Any, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(StageError) as caught:
        build(digits_onnx, context, **options)
    assert "cannot build this engine:\n" in str(caught.value)
    assert said in str(caught.value)


def test_model_without_varying_dimensions_needs_no_profile(onnx_model: Any, context: Any) -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(2, 4)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(2, 4)),),
    )
    model = onnx_model([helper.make_node("Relu", ["x"], ["y"])], {}, signature)
    outputs, _ = build(model, context)
    assert outputs.model.profiles == ()
    with pytest.raises(
        StageError, match=r"^profiles: no dimension of this model varies; leave profiles out$"
    ):
        build(model, context, profiles=[{"batch": {"opt": 1, "max": 2}}])


def test_sizes_of_a_source_model_are_checked_at_plan_time(digits_onnx: OnnxModel, tmp_path: Path) -> None:
    context = CheckContext(
        project=tmp_path,
        pipeline="p",
        inputs={"model": (Upstream(node="model", uses="", artifact=digits_onnx),)},
    )
    options = {**AHEAD, "profiles": [{"length": {"opt": 1, "max": 2}}]}
    with pytest.raises(
        SpecError, match=r"^profiles: the model has no varying dimension 'length', only batch$"
    ):
        Trtexec(Options.model_validate(options)).check(context)


SPEC = """\
apiVersion: shipctl.dev/v1
kind: Pipeline
metadata: {name: two-gpus, version: 1.0.0}
model:
  uri: model.onnx
  inputs: [{name: x, dtype: float32, shape: [batch, 4]}]
  outputs: [{name: y, dtype: float32, shape: [batch, 3]}]
stages:
  - id: l4
    uses: trtexec
    resources: {labels: {gpu: L4}}
    with: {backend: tensorrt-rtx, gpu: L4, require_run: false}
  - id: a100
    uses: trtexec
    needs: []
    resources: {labels: {gpu: A100}}
    with: {backend: tensorrt-rtx, gpu: A100, require_run: false}
"""


@pytest.mark.slow
def test_each_engine_is_built_on_a_machine_that_has_its_gpu(tmp_path: Path) -> None:
    project = SampleProject(tmp_path / "project")
    project.root.mkdir()
    project.write({"spec.yaml": SPEC, "model.onnx": tiny_onnx_model(tmp_path / "model").path.read_bytes()})
    environ = {"SHIPCTL_LABELS": "gpu=L4"}
    plan = project.run("plan", "spec.yaml", environ=environ)
    missing = "a100 needs a machine with gpu=A100; if this is one, export SHIPCTL_LABELS=gpu=A100"
    assert [line.split(maxsplit=2) for line in plan.lines if line.startswith("missing")] == [
        ["missing", "a100", missing]
    ]
    refused = project.run("apply", "spec.yaml", environ=environ)
    assert refused.exit_code == 2
    assert f"error: a100: {missing}" in refused.stderr
    assert project.run("apply", "spec.yaml", "--until", "l4", environ=environ).exit_code == 0


def test_nothing_to_build_with_is_told_at_plan_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(backends, "installed", lambda name: name == "tensorrt-rtx")
    with pytest.raises(UnavailableError) as caught:
        Trtexec(Options(gpu="L4")).check(CheckContext(project=tmp_path, pipeline="p"))
    assert str(caught.value) == (
        "no TensorRT here: neither the module tensorrt (pip install 'shipctl[tensorrt]') nor a program trtexec on "
        "PATH; tensorrt-rtx is installed, whose engines Triton does not load: say `backend: tensorrt-rtx` if it is "
        "meant"
    )
