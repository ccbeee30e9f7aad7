"""Stage `evaluate`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from shipctl.errors import StageError, UnavailableError
from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import Artifact, Dataset, OnnxModel, TorchModel
from shipctl.stages.context import CheckContext, JudgeContext, Objectives, Upstream
from shipctl.stages.verdicts import Outcome
from shipctl.testing.conformance import StageConformance
from shipctl.testing.samples import sealed
from shipctl_plugins.qualify.evaluate import Evaluate, Inputs, Options, Outputs

SPECS = Path(__file__).parents[3] / "specs"


class TestConformance(StageConformance):
    stage = "evaluate"
    objectives = Objectives(
        budget={"accuracy_drop": 0.5}, data={"evaluation": {"metric": "accuracy", "min": 0.5}}
    )

    def inputs(self, tmp_path: Path) -> Mapping[str, Artifact | list[Artifact] | None]:
        """Without a source model, which would need torch."""
        return {**super().inputs(tmp_path), "reference": None}


DIGITS = Signature(
    inputs=(TensorSpec(name="image", dtype="float32", shape=("batch", 1, 8, 8)),),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 10)),),
)


@pytest.fixture
def identity(onnx_model: Callable[..., OnnxModel]) -> Any:
    """A model whose output is its input `x [batch, width]`, so that the data holds the answers."""

    def make(width: int) -> OnnxModel:
        signature = Signature(
            inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", width)),),
            outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", width)),),
        )
        return onnx_model([helper.make_node("Identity", ["x"], ["y"])], {}, signature)

    return make


def evaluate(
    model: OnnxModel, data: Dataset, context: Any, reference: TorchModel | None = None, **options: Any
) -> Outputs:
    return Evaluate(Options(**options)).run(
        Inputs(model=model, evaluation=data, reference=reference), context()
    )


def judge(
    outputs: Outputs, options: dict[str, Any] | None = None, **objectives: Any
) -> dict[str, tuple[Outcome, str]]:
    stage = Evaluate(Options(**options or {}))
    verdicts = stage.judge(outputs, JudgeContext(objectives=Objectives(**objectives)))
    return {verdict.gate: (verdict.outcome, verdict.message) for verdict in verdicts}


def outcomes(outputs: Outputs, **objectives: Any) -> dict[str, Outcome]:
    return {gate: outcome for gate, (outcome, _) in judge(outputs, **objectives).items()}


def test_digits_reach_the_accuracy_that_the_spec_asks_for(
    digits_onnx: OnnxModel, evaluation: Dataset, context: Any
) -> None:
    outputs = evaluate(digits_onnx, evaluation, context)
    assert outputs.report.metrics["accuracy"] >= 0.97
    assert outputs.report.metrics["samples"] == 600
    said = judge(outputs, data={"evaluation": {"metric": "accuracy", "min": 0.97}})
    assert said["accuracy"] == (Outcome.PASS, f"accuracy {outputs.report.metrics['accuracy']:.6g} >= 0.97")
    assert (
        outcomes(outputs, data={"evaluation": {"metric": "accuracy", "min": 0.9999}})["accuracy"]
        is Outcome.FAIL
    )


def test_confusion_matrix_and_classes_are_in_the_report_file(
    digits_onnx: OnnxModel, evaluation: Dataset, context: Any
) -> None:
    outputs = evaluate(digits_onnx, evaluation, context)
    details = json.loads(outputs.report.path.read_text())["details"]
    assert np.sum(details["confusion"]) == 600
    assert [row["class"] for row in details["classes"]] == list(range(10))
    hits = np.trace(details["confusion"])
    assert hits / 600 == pytest.approx(outputs.report.metrics["accuracy"])


@pytest.mark.torch
def test_source_model_answers_the_same_samples(
    digits_onnx: OnnxModel, digits_torch: TorchModel, evaluation: Dataset, context: Any
) -> None:
    outputs = evaluate(digits_onnx, evaluation, context, reference=digits_torch)
    metrics = outputs.report.metrics
    assert metrics["accuracy_source"] == metrics["accuracy"]
    assert metrics["accuracy_drop"] == 0
    assert outcomes(outputs, budget={"accuracy_drop": 0.005})["accuracy_drop"] is Outcome.PASS


@pytest.mark.torch
def test_drop_is_source_minus_this(
    digits_onnx: OnnxModel, digits_torch: TorchModel, evaluation: Dataset, dataset: Any, context: Any
) -> None:
    """Inputs that are too large for the INT-like clip of a broken twin, scored against the true labels."""
    arrays = np.load(evaluation.path)
    half = dataset(image=arrays["image"][:100], label=np.roll(arrays["label"][:100], 1))
    outputs = evaluate(digits_onnx, half, context, reference=digits_torch)
    metrics = outputs.report.metrics
    assert metrics["accuracy_drop"] == metrics["accuracy_source"] - metrics["accuracy"]


def test_budget_without_a_source_model_does_not_pass(
    digits_onnx: OnnxModel, evaluation: Dataset, context: Any
) -> None:
    said = judge(evaluate(digits_onnx, evaluation, context), budget={"accuracy_drop": 0.005})
    assert said["accuracy_drop"] == (Outcome.ERROR, "accuracy_drop is missing, <= 0.005 was asked for")


def test_empty_data_does_not_pass(digits_onnx: OnnxModel, dataset: Any, context: Any) -> None:
    data = dataset(image=np.zeros((0, 1, 8, 8), np.float32), label=np.zeros(0, np.int64))
    said = judge(
        evaluate(digits_onnx, data, context), data={"evaluation": {"metric": "accuracy", "min": 0.9}}
    )
    assert said == {
        "samples": (Outcome.FAIL, "samples 0 is not >= 1"),
        "outputs.not_finite": (Outcome.ERROR, "outputs.not_finite is missing, == 0 was asked for"),
        "accuracy": (Outcome.ERROR, "accuracy is missing, >= 0.9 was asked for"),
    }


def test_nan_output_does_not_pass(identity: Any, dataset: Any, context: Any) -> None:
    data = dataset(x=np.array([[1, 0], [np.nan, 0]], np.float32), label=np.array([0, 0]))
    said = judge(
        evaluate(identity(2), data, context), data={"evaluation": {"metric": "accuracy", "min": 0.1}}
    )
    assert said["outputs.not_finite"] == (Outcome.FAIL, "outputs.not_finite 1 is not == 0")
    assert said["accuracy"] == (Outcome.ERROR, "accuracy is nan, >= 0.1 cannot be decided")


def test_metric_that_was_not_measured_does_not_pass(identity: Any, dataset: Any, context: Any) -> None:
    outputs = evaluate(identity(2), dataset(x=np.eye(2, dtype=np.float32), label=np.array([0, 1])), context)
    assert judge(outputs, data={"evaluation": {"metric": "rmse", "max": 1}})["rmse"][0] is Outcome.ERROR


def test_too_few_samples_do_not_pass(identity: Any, dataset: Any, context: Any) -> None:
    outputs = evaluate(identity(2), dataset(x=np.eye(2, dtype=np.float32), label=np.array([0, 1])), context)
    assert judge(outputs, {"min_samples": 3})["samples"] == (Outcome.FAIL, "samples 2 is not >= 3")


def test_option_comes_before_the_spec(identity: Any, dataset: Any, context: Any) -> None:
    outputs = evaluate(identity(2), dataset(x=np.eye(2, dtype=np.float32), label=np.array([0, 0])), context)
    spec = {"evaluation": {"metric": "accuracy", "min": 0.9}}
    assert judge(outputs, data=spec)["accuracy"][0] is Outcome.FAIL
    assert judge(outputs, {"min": 0.5}, data=spec)["accuracy"][0] is Outcome.PASS
    assert judge(outputs, {"metric": "f1.macro", "min": 0.1}, data=spec)["f1.macro"][0] is Outcome.PASS


def test_float_labels_give_regression(identity: Any, dataset: Any, context: Any) -> None:
    data = dataset(x=np.array([[1], [2], [6]], np.float32), target=np.array([1.0, 2.0, 3.0]))
    outputs = evaluate(identity(1), data, context)
    assert outputs.report.metrics["rmse"] == pytest.approx(np.sqrt(3))
    assert outputs.report.metrics["mae"] == 1
    bounds = {"evaluation": {"metric": "rmse", "max": 1.5}}
    assert judge(outputs, data=bounds)["rmse"] == (Outcome.FAIL, "rmse 1.73205 is not <= 1.5")


def test_one_score_per_sample_is_cut_at_the_threshold(identity: Any, dataset: Any, context: Any) -> None:
    data = dataset(x=np.array([[0.2], [0.4], [0.9]], np.float32), label=np.array([0, 1, 1]))
    assert evaluate(identity(1), data, context).report.metrics["accuracy"] == pytest.approx(2 / 3)
    assert evaluate(identity(1), data, context, threshold=0.3).report.metrics["accuracy"] == 1


def test_last_batch_counts_its_samples_once(
    digits_onnx: OnnxModel, evaluation: Dataset, context: Any
) -> None:
    whole, odd = (evaluate(digits_onnx, evaluation, context, batch=size) for size in (600, 7))
    assert whole.report.metrics == odd.report.metrics


def test_model_with_a_fixed_batch_is_filled_up(onnx_model: Any, dataset: Any, context: Any) -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(4, 2)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(4, 2)),),
    )
    model = onnx_model([helper.make_node("Identity", ["x"], ["y"])], {}, signature)
    data = dataset(x=np.eye(2, dtype=np.float32)[[0, 1, 0, 1, 1, 1]], label=np.array([0, 1, 0, 1, 1, 0]))
    assert evaluate(model, data, context).report.metrics["accuracy"] == pytest.approx(5 / 6)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"x": np.eye(2, dtype=np.float32)}, {},
         "evaluation data has no array 'label' or 'target', only x; name the labels with `label`"),
        ({"x": np.eye(2, dtype=np.float32), "label": np.array([0, 1])}, {"label": "class"},
         "evaluation data has no array 'class', only label, x; name the labels with `label`"),
        ({"x": np.eye(2, dtype=np.float32), "label": np.array([0])}, {}, "evaluation data has 1 labels for 2 samples"),
        ({"x": np.eye(2, dtype=np.float32), "label": np.array([0.0, np.nan])}, {},
         "evaluation data: array 'label' has labels that are NaN or infinite; remove those samples"),
        ({"x": np.eye(2, dtype=np.float32), "label": np.array([0, 1])}, {"output": "z"},
         "the model has no output 'z', only y; correct `output`"),
        ({"x": np.eye(2, dtype=np.float32), "label": np.array([[0, 1, 2], [0, 1, 2]])}, {},
         "outputs of shape [2, 2] are no answers to labels of shape [2, 3]"),
        ({"x": np.eye(2, dtype=np.float32), "label": np.array([0.5, 1.0])}, {},
         ("outputs of shape [2, 2] are no answers to labels of shape [2], which as float64 are values; say "
          "`task: classification` if they are classes")),
        ({"x": np.eye(2, dtype=np.float32), "label": np.array([1, 2])}, {},
         ("the labels go from 1 to 2, and the output has 2 classes (0 to 1); number the labels like those")),
        ({"x": np.eye(2, dtype=np.float32), "label": np.array([-1, 1])}, {},
         ("the labels go from -1 to 1, and the output has 2 classes (0 to 1); number the labels like those")),
        ({"x": np.eye(2, dtype=np.float32), "label": np.eye(2, dtype=np.int64)}, {},
         "the labels of shape [2, 2] are one-hot; give class numbers (their argmax)"),
        ({"x": np.eye(2, dtype=np.float32), "label": np.array(["a", "b"])}, {},
         "the labels are texts and the answers numbers; label by numbers or score another output"),
    ],
)  # fmt: skip
def test_data_that_does_not_fit_is_named(
    identity: Any, dataset: Any, context: Any, arrays: Any, options: Any, message: str
) -> None:
    with pytest.raises(StageError) as caught:
        evaluate(identity(2), dataset(**arrays), context, **options)
    assert str(caught.value) == message


def test_plan_says_that_torch_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr("shipctl_plugins.qualify._quality.find_spec", lambda name: None)
    stage = Evaluate(Options())
    stage.check(CheckContext(project=tmp_path, pipeline="p"))
    source = TorchModel(builder="net.py:build", signature=DIGITS)
    with pytest.raises(UnavailableError) as caught:
        stage.check(
            CheckContext(
                project=tmp_path,
                pipeline="p",
                inputs={"reference": (Upstream("model", "", artifact=source),)},
            )
        )
    assert str(caught.value) == (
        "comparing with the source model needs torch: pip install 'shipctl[torch]', "
        "or leave this stage's `reference` input out"
    )


# -- pairs, and the drop of other metrics ---------------------------------------------------------------------------

PAIRS = np.array([[1, 0], [1, 0.1], [1, 0], [0.5, 1], [1, 0], [-1, 0.2]], np.float32)
GRADES = np.array([5, 5, 3, 3, 0, 0], np.float32)


def test_order_of_pairs_is_scored(identity: Any, dataset: Any, context: Any) -> None:
    outputs = evaluate(identity(2), dataset(x=PAIRS, label=GRADES), context, task="pairs")
    assert outputs.report.metrics["spearman"] == pytest.approx(1)
    assert 0.9 < outputs.report.metrics["pearson"] < 1
    said = judge(outputs, data={"evaluation": {"metric": "spearman", "min": 0.9}})
    assert said["spearman"][0] is Outcome.PASS
    turned = evaluate(identity(2), dataset(x=PAIRS, label=GRADES[::-1].copy()), context, task="pairs")
    assert turned.report.metrics["spearman"] == pytest.approx(-1)
    assert judge(turned, {"min": 0.9})["spearman"][0] is Outcome.FAIL


def test_pairs_of_different_labels_are_named(identity: Any, dataset: Any, context: Any) -> None:
    with pytest.raises(StageError) as caught:
        evaluate(identity(2), dataset(x=PAIRS, label=np.arange(6.0)), context, task="pairs")
    assert str(caught.value) == (
        "evaluation data: labels of shape [6] are not those of pairs: samples 2i and 2i + 1 have to have the same one"
    )


def test_pairs_with_nan_do_not_pass(identity: Any, dataset: Any, context: Any) -> None:
    broken = PAIRS.copy()
    broken[1] = np.nan
    said = judge(evaluate(identity(2), dataset(x=broken, label=GRADES), context, task="pairs"), {"min": 0.1})
    assert said["spearman"] == (Outcome.ERROR, "spearman is nan, >= 0.1 cannot be decided")


@pytest.fixture
def doubling(tmp_path: Path) -> Callable[[int, float], TorchModel]:
    """A source model that gives its input times a factor."""

    def make(width: int, factor: float) -> TorchModel:
        (tmp_path / "net.py").write_text(
            "import torch\nclass Net(torch.nn.Module):\n    def forward(self, x):\n"
            f"        return x * torch.tensor({factor})\ndef build():\n    return Net()\n"
        )
        signature = Signature(
            inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", width)),),
            outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", width)),),
        )
        return sealed(TorchModel.at(tmp_path / "net.py", builder="net.py:build", signature=signature))

    return make


@pytest.mark.torch
def test_drop_of_an_error_is_its_increase(identity: Any, dataset: Any, context: Any, doubling: Any) -> None:
    data = dataset(x=np.array([[1], [2]], np.float32), target=np.array([1.8, 3.6]))
    outputs = evaluate(identity(1), data, context, reference=doubling(1, 2.0))
    metrics = outputs.report.metrics
    assert metrics["rmse"] == pytest.approx(4 * metrics["rmse_source"], rel=1e-5)
    assert metrics["rmse_drop"] == metrics["accuracy_drop"] == pytest.approx(3, rel=1e-4)
    assert outcomes(outputs, budget={"accuracy_drop": 0.5})["accuracy_drop"] is Outcome.FAIL
    mae = outcomes(outputs, budget={"accuracy_drop": 4}, data={"evaluation": {"metric": "mae"}})
    assert mae["mae_drop"] is Outcome.PASS


@pytest.mark.torch
def test_drop_of_the_order_of_pairs_is_a_difference(
    identity: Any, dataset: Any, context: Any, doubling: Any
) -> None:
    outputs = evaluate(
        identity(2), dataset(x=PAIRS, label=GRADES), context, reference=doubling(2, 3.0), task="pairs"
    )
    assert outputs.report.metrics["spearman_source"] == pytest.approx(1)
    assert outputs.report.metrics["accuracy_drop"] == pytest.approx(0)


@pytest.mark.torch
def test_budget_bounds_the_drop_of_the_metric_that_is_judged(
    digits_onnx: OnnxModel, digits_torch: TorchModel, evaluation: Dataset, context: Any
) -> None:
    outputs = evaluate(digits_onnx, evaluation, context, reference=digits_torch)
    said = outcomes(outputs, budget={"accuracy_drop": 0.005}, data={"evaluation": {"metric": "f1.macro"}})
    assert said["f1.macro_drop"] is Outcome.PASS
    assert "accuracy_drop" not in said


@pytest.fixture
def naming(tmp_path: Path) -> OnnxModel:
    """A model that answers with texts: `a`, `b` or `c`, the place of the largest `x`."""
    nodes = [
        helper.make_node("ArgMax", ["x"], ["place"], axis=-1, keepdims=0),
        helper.make_node("Gather", ["names", "place"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.STRING, ["batch"])],
        [numpy_helper.from_array(np.array(["a", "b", "c"], dtype=object), "names")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (tmp_path / "naming").mkdir()
    (tmp_path / "naming" / "model.onnx").write_bytes(model.SerializeToString())
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 3)),),
        outputs=(TensorSpec(name="y", dtype="string", shape=("batch",)),),
    )
    return sealed(OnnxModel.at(tmp_path / "naming", signature=signature))


def test_texts_are_answers_to_texts(naming: OnnxModel, dataset: Any, context: Any) -> None:
    outputs = evaluate(
        naming, dataset(x=np.eye(3, dtype=np.float32), label=np.array(["a", "b", "b"])), context
    )
    assert outputs.report.metrics["accuracy"] == pytest.approx(2 / 3)
    assert [row["class"] for row in outputs.report.details["classes"]] == ["a", "b", "c"]
    with pytest.raises(StageError) as caught:
        evaluate(naming, dataset(x=np.eye(3, dtype=np.float32), label=np.array([0, 1, 2])), context)
    assert str(caught.value) == (
        "the labels are numbers and the answers texts; label by texts or score another output"
    )


def test_output_that_the_graph_does_not_have_is_named(identity: Any, dataset: Any, context: Any) -> None:
    model = identity(2)
    renamed = model.signature.outputs[0].model_copy(update={"name": "scores"})
    other = model.model_copy(
        update={"signature": Signature(inputs=model.signature.inputs, outputs=(renamed,))}
    )
    with pytest.raises(StageError) as caught:
        evaluate(
            other.located(model.root), dataset(x=np.eye(2, dtype=np.float32), label=np.array([0, 1])), context
        )
    assert str(caught.value) == (
        "the model gives no output 'scores', only y; correct `outputs` below `model`"
    )


@pytest.mark.parametrize("names", [["cat", "eel", "cat"], ["cat", "dog", "eel"]])
def test_names_are_numbers_only_where_no_class_is_missing(
    identity: Any, context: Any, tmp_path: Path, names: list[str]
) -> None:
    rows = "".join(f"{int(i == 0)},{int(i == 1)},{int(i == 2)},{name}\n" for i, name in enumerate(names))
    (tmp_path / "pets.csv").write_text(f"a,b,c,label\n{rows}")
    data = sealed(Dataset.at(tmp_path / "pets.csv", role="evaluation", format="csv"))
    if len(set(names)) == 3:
        assert evaluate(identity(3), data, context).report.metrics["accuracy"] == 1
        return
    with pytest.raises(StageError) as caught:
        evaluate(identity(3), data, context)
    assert str(caught.value) == (
        "evaluation data has 2 classes by name (cat, eel) and output 'y' 3: the order of the names does not say which "
        "is which; give samples of every class, or their numbers as labels"
    )


def test_a_graph_that_the_spec_brings_is_what_later_ones_are_compared_with(
    digits_onnx: OnnxModel, tmp_path: Path
) -> None:
    """No stage feeds `reference`: the model that came in does, though the stage before gives one of that kind."""
    shutil.copyfile(digits_onnx.path, tmp_path / "digits.onnx")
    shutil.copyfile(SPECS / "data" / "digits-evaluation.npz", tmp_path / "test.npz")
    (tmp_path / ".git").mkdir()
    (tmp_path / "spec.yaml").write_text(
        "apiVersion: shipctl.dev/v1\nkind: Pipeline\nmetadata: {name: graph, version: 1.0.0}\n"
        "budget: {accuracy_drop: 0.5%}\n"
        "model:\n  uri: digits.onnx\n"
        "  inputs: [{name: image, dtype: float32, shape: [batch, 1, 8, 8]}]\n"
        "  outputs: [{name: logits, dtype: float32, shape: [batch, 10]}]\n"
        "data: {evaluation: {uri: test.npz, metric: accuracy}}\n"
        "stages:\n  - {id: half, uses: prune, with: {method: magnitude, ratio: 0.5, scope: layer}}\n"
        "  - {id: accuracy, uses: evaluate}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "shipctl.cli", "apply", "spec.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4, done.stdout + done.stderr
    assert "accuracy_drop 0.0" in done.stderr
    assert "is not <= 0.005" in done.stderr
