"""Keeping layers in higher precision, as few as the budget asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from shipctl.errors import StageError
from shipctl.stages.artifacts import Dataset, OnnxModel
from shipctl.stages.context import JudgeContext, Objectives
from shipctl.stages.verdicts import Outcome
from shipctl.testing.samples import sealed
from shipctl_plugins._onnx.layers import own_noise, quantized_layers
from shipctl_plugins._onnx.plain_graphs import plain_graph
from shipctl_plugins._onnx.session import open_session, run_session
from shipctl_plugins.optimize._quantized import Inputs as DynamicInputs
from shipctl_plugins.optimize._quantized import Outputs
from shipctl_plugins.optimize.int8_calibration import Inputs, Int8Calibration, Options
from shipctl_plugins.optimize.int8_dynamic import Int8Dynamic
from shipctl_plugins.optimize.int8_dynamic import Options as DynamicOptions

pytest.importorskip("onnxruntime", reason="needs the cpu extra")

OBJECTIVES = {"budget": {"accuracy_drop": 0.005}, "data": {"evaluation": {"metric": "accuracy"}}}
TENSORRT = {
    "activation_type": "qint8", "symmetric": True, "quantize_bias": False, "op_types": ["Conv", "Gemm", "MatMul"],
}  # fmt: skip


def changed(model: OnnxModel, folder: Path, change: Any) -> OnnxModel:
    """Return the model with other weights; nodes get the names of what they make."""
    proto = onnx.load(model.path)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    weights |= change(weights)
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    for node in proto.graph.node:
        node.name = node.output[0]
    folder.mkdir()
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    return sealed(OnnxModel.at(folder, signature=model.signature, opset=21))


def outlying_weights(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Give c1 a channel that is always 0 and has weights so large that the scale loses all others."""
    return {
        "w0": np.concatenate([weights["w0"], np.zeros_like(weights["w0"][:1])]),
        "b0": np.append(weights["b0"], np.float32(-1)),
        "w1": np.concatenate([weights["w1"], np.full_like(weights["w1"][:, :1], 500)], axis=1),
    }


def outlying_activations(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Give c1 a channel of weight 0 that is so large that the range loses all others."""
    return {
        "w0": np.concatenate([weights["w0"], np.zeros_like(weights["w0"][:1])]),
        "b0": np.append(weights["b0"], np.float32(5000)),
        "w1": np.concatenate([weights["w1"], np.zeros_like(weights["w1"][:, :1])], axis=1),
    }


@pytest.fixture
def broken(digits_onnx: OnnxModel, tmp_path: Path) -> OnnxModel:
    """A digits model that answers as before, and whose layer c1 INT8 breaks."""
    return changed(digits_onnx, tmp_path / "broken", outlying_weights)


def quantize(
    model: OnnxModel,
    calibration: Dataset,
    evaluation: Dataset | None,
    context: Any,
    objectives: Mapping[str, Any] = OBJECTIVES,
    **options: Any,
) -> Outputs:
    inputs = Inputs(model=model, calibration=calibration, evaluation=evaluation)
    return Int8Calibration(Options(**options)).run(inputs, context(**objectives))


def verdict(outputs: Outputs, objectives: Mapping[str, Any] = OBJECTIVES) -> tuple[Outcome, str]:
    judged = Int8Calibration(Options()).judge(outputs, JudgeContext(Objectives(**objectives)))
    found = {entry.gate: entry for entry in judged}["sensitivity.accuracy_drop"]
    return found.outcome, found.message


@pytest.mark.parametrize("change", [outlying_weights, outlying_activations])
@pytest.mark.parametrize("options", [{}, TENSORRT], ids=["cpu", "tensorrt"])
@pytest.mark.slow
def test_only_the_layer_that_breaks_is_kept(
    digits_onnx: OnnxModel, calibration: Dataset, evaluation: Dataset, context: Any, tmp_path: Path,
    change: Any, options: dict[str, Any],
) -> None:  # fmt: skip
    model = changed(digits_onnx, tmp_path / "model", change)
    outputs = quantize(model, calibration, evaluation, context, **options)
    metrics, details = outputs.report.metrics, outputs.report.details
    assert [row["layer"] for row in details["sensitivity"] if row["kept"]] == ["c1"]
    assert details["sensitivity"][0]["layer"] == "c1"
    assert details["sensitivity"][0]["snr_db"] < 3
    assert all(row["snr_db"] > 30 for row in details["sensitivity"][1:])
    assert metrics["quantized.nodes"] == 4
    assert metrics["quantized.kept"] == 1
    assert metrics["sensitivity.accuracy_drop"] <= 0.005
    assert metrics["sensitivity.evaluations"] == 3
    assert [row["quantized"] for row in details["curve"]] == [0, 4, 5]
    assert details["curve"][2]["drop"] > 0.5
    assert details["quantized"] == [
        {"op_type": "Conv", "quantized": 3, "before": 4},
        {"op_type": "Gemm", "quantized": 1, "before": 1},
    ]
    assert verdict(outputs)[0] is Outcome.PASS
    node = next(node for node in onnx.load(outputs.model.path).graph.node if node.name == "c1")
    assert list(node.input) == ["r0", "w1", "b1"]  # neither its input nor its weights are rounded


@pytest.mark.slow
def test_budget_that_cannot_be_held_fails_with_layers_and_numbers(
    broken: OnnxModel, calibration: Dataset, evaluation: Dataset, context: Any
) -> None:
    outputs = quantize(broken, calibration, evaluation, context, max_layers=0)
    outcome, message = verdict(outputs)
    drop = outputs.report.metrics["sensitivity.accuracy_drop"]
    ratios = [f"{row['snr_db']:.3g}" for row in outputs.report.details["sensitivity"]]
    assert outcome is Outcome.FAIL
    assert message == (
        f"accuracy drops by {drop:.4g} with 0 of 5 layers kept, {drop - 0.005:.4g} more than the budget of 0.005; "
        f"most harmful: c1 ({ratios[0]} dB signal to noise), c4 ({ratios[1]} dB signal to noise), "
        f"c2 ({ratios[2]} dB signal to noise); raise `max_layers` (0) or leave the stage out"
    )


@pytest.mark.slow
def test_evaluations_are_bounded(
    broken: OnnxModel, calibration: Dataset, evaluation: Dataset, context: Any
) -> None:
    """No variant is better than the model that comes in, so the search goes on to its end."""
    objectives = {**OBJECTIVES, "budget": {"accuracy_drop": -0.5}}
    outputs = quantize(broken, calibration, evaluation, context, objectives, max_evaluations=4)
    assert outputs.report.metrics["sensitivity.evaluations"] == 4
    assert len(outputs.report.details["curve"]) == 4
    outcome, message = verdict(outputs, objectives)
    assert outcome is Outcome.FAIL
    assert "raise `max_evaluations` (4)" in message
    assert "c1 (" in message
    assert outputs.report.metrics["quantized.kept"] == 1  # of those tried, what drops least


@pytest.mark.parametrize(
    ("objectives", "options", "with_data"),
    [({}, {}, True), (OBJECTIVES, {"keep_in_budget": False}, True), (OBJECTIVES, {}, False)],
    ids=["no budget", "not wanted", "no data"],
)
def test_nothing_is_searched_without_a_reason(
    broken: OnnxModel, calibration: Dataset, evaluation: Dataset, context: Any,
    objectives: dict[str, Any], options: dict[str, Any], with_data: bool,
) -> None:  # fmt: skip
    outputs = quantize(broken, calibration, evaluation if with_data else None, context, objectives, **options)
    assert "search" not in outputs.report.details
    assert outputs.report.metrics["quantized.nodes"] == 5
    assert "sensitivity.accuracy_drop" not in outputs.report.metrics
    gates = [entry.gate for entry in Int8Calibration(Options()).judge(outputs, JudgeContext())]
    assert gates == ["parity.cosine", "parity.top1"]


def test_model_within_the_budget_costs_two_evaluations(
    digits_onnx: OnnxModel, calibration: Dataset, evaluation: Dataset, context: Any
) -> None:
    outputs = quantize(digits_onnx, calibration, evaluation, context)
    assert outputs.report.metrics["sensitivity.evaluations"] == 2
    assert outputs.report.details["sensitivity"] == []
    assert verdict(outputs)[0] is Outcome.PASS


def test_missing_measurement_is_no_pass(
    digits_onnx: OnnxModel, calibration: Dataset, evaluation: Dataset, context: Any
) -> None:
    outputs = quantize(digits_onnx, calibration, evaluation, context)
    report = outputs.report.model_copy(update={"metrics": {}}).located(outputs.report.root)
    assert verdict(Outputs(model=outputs.model, report=report))[0] is Outcome.ERROR


def test_evaluation_without_the_metric_is_named(
    digits_onnx: OnnxModel, calibration: Dataset, evaluation: Dataset, context: Any
) -> None:
    objectives = {**OBJECTIVES, "data": {"evaluation": {"metric": "auc"}}}
    with pytest.raises(StageError) as caught:
        quantize(digits_onnx, calibration, evaluation, context, objectives)
    assert str(caught.value) == (
        "the model that comes in has no auc on the evaluation data, only accuracy, f1.macro, outputs.not_finite, "
        "precision.macro, recall.macro"
    )


@pytest.mark.slow
def test_error_may_grow_by_a_fraction_of_what_it_was_as_in_evaluate(
    digits_onnx: OnnxModel, calibration: Dataset, dataset: Any, context: Any
) -> None:
    images = np.load(calibration.path)["image"][:64]
    answers = run_session(open_session(digits_onnx.path), {"image": images})
    data = dataset("evaluation", image=images, label=next(iter(answers.values())) + np.float32(100))
    objectives = {"budget": {"accuracy_drop": 0.5}}
    outputs = quantize(digits_onnx, calibration, data, context, objectives)
    search = outputs.report.details["search"]
    assert search["metric"] == "rmse"
    assert search["before"] == pytest.approx(100, rel=1e-3)
    grown = search["after"] - search["before"]
    assert outputs.report.metrics["sensitivity.accuracy_drop"] == pytest.approx(grown / search["before"])
    assert grown != 0
    assert verdict(outputs, objectives)[0] is Outcome.PASS


@pytest.mark.slow
def test_pairs_are_judged_by_their_rank_correlation(
    digits_onnx: OnnxModel, calibration: Dataset, dataset: Any, context: Any
) -> None:
    images = np.load(calibration.path)["image"][:64]
    data = dataset("evaluation", image=images, label=np.linspace(0, 1, 32, dtype=np.float32).repeat(2))
    objectives = {"budget": {"accuracy_drop": 2.0}}
    outputs = quantize(digits_onnx, calibration, data, context, objectives, scoring={"task": "pairs"})
    assert outputs.report.details["search"]["metric"] == "spearman"


def test_empty_evaluation_data_is_named(
    digits_onnx: OnnxModel, calibration: Dataset, dataset: Any, context: Any
) -> None:
    data = dataset("evaluation", image=np.zeros((0, 1, 8, 8), np.float32), label=np.zeros(0, np.int64))
    with pytest.raises(StageError) as caught:
        quantize(digits_onnx, calibration, data, context)
    assert str(caught.value) == (
        "evaluation data is empty; give labelled samples, or set `keep_in_budget: false`"
    )


@pytest.mark.slow
def test_dynamic_quantisation_keeps_it_too(
    broken: OnnxModel, calibration: Dataset, evaluation: Dataset, context: Any
) -> None:
    stage = Int8Dynamic(DynamicOptions(op_types=("Conv", "Gemm")))
    inputs = DynamicInputs(model=broken, calibration=calibration, evaluation=evaluation)
    outputs = stage.run(inputs, context(**OBJECTIVES))
    assert [row["layer"] for row in outputs.report.details["sensitivity"] if row["kept"]] == ["c1"]


def test_half_precision_has_noise_of_its_own(
    digits_onnx: OnnxModel, evaluation: Dataset, tmp_path: Path
) -> None:
    """The same ranking serves graphs of 16-bit floats, where a layer's input is cast first."""
    converter = pytest.importorskip("onnxconverter_common", reason="needs the optimize extra")
    before = plain_graph(onnx.load(digits_onnx.path))
    after = converter.float16.convert_float_to_float16(onnx.load(digits_onnx.path), keep_io_types=True)
    layers = [layer for layer in everything(before) if layer.op_type in {"Conv", "Gemm"}]
    feed = {"image": np.load(evaluation.path)["image"][:32].astype(np.float32)}
    noise = own_noise(before, after, layers, [feed], tmp_path / "noise")
    assert len(noise) == 5
    assert all(1e-12 < value < 1e-4 for value in noise.values())


def everything(model: onnx.ModelProto) -> tuple[Any, ...]:
    from shipctl_plugins._onnx.layers import Layer

    return tuple(Layer(node.name, node.op_type, node.output[0], node.output[0]) for node in model.graph.node)


def test_layers_are_those_with_small_weights(digits_onnx: OnnxModel) -> None:
    before = plain_graph(onnx.load(digits_onnx.path))
    assert quantized_layers(before, before) == ()
