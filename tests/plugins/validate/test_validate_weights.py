"""Stage `validate-weights`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from shipctl.errors import SpecError, StageError
from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import (
    Artifact,
    FileEntry,
    HuggingFaceModel,
    OnnxModel,
    SklearnModel,
    TensorflowModel,
    TorchModel,
)
from shipctl.stages.context import CheckContext, JudgeContext, Upstream
from shipctl.stages.verdicts import Outcome
from shipctl.testing.conformance import StageConformance
from shipctl.testing.samples import sealed, tiny_onnx_model
from shipctl_plugins.validate import _tensors
from shipctl_plugins.validate.validate_weights import Inputs, Options, Outputs, ValidateWeights

safetensors = pytest.importorskip("safetensors.numpy")


class TestConformance(StageConformance):
    stage = "validate-weights"

    def inputs(self, tmp_path: Path) -> Mapping[str, Artifact | list[Artifact] | None]:
        """A model that has weights."""
        return {"model": tiny_onnx_model(tmp_path / "inputs")}


SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 3)),),
)
GOOD = {"fc.weight": np.arange(1, 13, dtype=np.float32).reshape(3, 4), "fc.bias": np.zeros(3, np.float32)}


@pytest.fixture
def torch_model(tmp_path: Path) -> Any:
    """Make a TorchModel with the given weights; nothing builds it, so nothing needs torch."""

    def make(**tensors: np.ndarray) -> TorchModel:
        folder = tmp_path / "source"
        folder.mkdir(exist_ok=True)
        (folder / "model.py").write_text("def build(): ...\n")
        safetensors.save_file(
            {name.replace("__", "."): np.ascontiguousarray(a) for name, a in tensors.items()},
            folder / "w.safetensors",
        )
        return sealed(
            TorchModel.at(folder, builder="model.py:build", weights="w.safetensors", signature=SIGNATURE)
        )

    return make


def look(model: Any, context: Any, **options: Any) -> tuple[Outputs, dict[str, Outcome]]:
    stage = ValidateWeights(Options(**options))
    outputs = stage.run(Inputs(model=model), context())
    return outputs, {verdict.gate: verdict.outcome for verdict in stage.judge(outputs, JudgeContext())}


def test_trained_digits_weights_pass(digits_torch: TorchModel, context: Any) -> None:
    outputs, outcomes = look(digits_torch, context)
    assert set(outcomes.values()) == {Outcome.PASS}
    assert outputs.report.metrics["weights.parameters"] == sum(
        tensor.size for tensor in safetensors.load_file(digits_torch.root / "digits.safetensors").values()
    )
    assert outputs.report.subject == digits_torch.digest


def test_report_file_has_a_row_per_tensor(digits_torch: TorchModel, context: Any) -> None:
    outputs, _ = look(digits_torch, context)
    content = json.loads(outputs.report.path.read_text())
    row = next(row for row in content["details"]["tensors"] if row["name"] == "head.weight")
    expected = safetensors.load_file(digits_torch.root / "digits.safetensors")["head.weight"]
    assert (row["shape"], row["dtype"], row["nan"], row["zeros"]) == ([10, 256], "float32", 0, 0)
    assert row["max_abs"] == pytest.approx(np.abs(expected).max())
    assert (row["mean"], row["std"]) == pytest.approx((expected.mean(dtype=float), expected.std(dtype=float)))


@pytest.mark.parametrize(
    ("value", "gate"),
    [(np.nan, "weights.nan"), (np.inf, "weights.inf"), (-np.inf, "weights.inf"), (7e4, "weights.max_abs")],
)
def test_one_bad_value_fails_its_gate_alone(torch_model: Any, context: Any, value: float, gate: str) -> None:
    weight = GOOD["fc.weight"].copy()
    weight[1, 2] = value
    outputs, outcomes = look(torch_model(fc__weight=weight), context)
    assert {name for name, outcome in outcomes.items() if outcome is not Outcome.PASS} == {gate}
    assert outputs.report.metrics[gate] == (7e4 if gate == "weights.max_abs" else 1)


def test_nan_in_a_bias_counts_too(torch_model: Any, context: Any) -> None:
    _, outcomes = look(
        torch_model(fc__weight=GOOD["fc.weight"], fc__bias=np.array([0, np.nan, 0], np.float32)), context
    )
    assert outcomes["weights.nan"] is Outcome.FAIL


def test_zero_row_is_a_dead_channel(torch_model: Any, context: Any) -> None:
    weight = GOOD["fc.weight"].copy()
    weight[1] = 0
    outputs, outcomes = look(torch_model(fc__weight=weight), context)
    assert outcomes["weights.dead_channels"] is Outcome.FAIL
    assert outputs.report.details["tensors"][0]["first_dead"] == [1]
    assert (
        look(torch_model(fc__weight=weight), context, max_dead_channels=1)[1]["weights.dead_channels"]
        is Outcome.PASS
    )
    assert (
        look(torch_model(fc__weight=weight), context, ignore=["fc.*"])[1]["weights.dead_channels"]
        is Outcome.PASS
    )


def test_channel_multiplied_by_zero_in_its_normalisation_is_dead(torch_model: Any, context: Any) -> None:
    norm = {"bn__weight": np.array([1, 0, 1], np.float32), "bn__running_var": np.ones(3, np.float32)}
    outputs, _ = look(torch_model(fc__weight=GOOD["fc.weight"], **norm), context)
    assert outputs.report.metrics["weights.dead_channels"] == 1
    assert (
        look(torch_model(ln__weight=norm["bn__weight"]), context)[0].report.metrics["weights.dead_channels"]
        == 0
    )


def test_constant_matrix_fails_and_constant_bias_passes(torch_model: Any, context: Any) -> None:
    _, outcomes = look(torch_model(fc__weight=np.full((3, 4), 0.5, np.float32)), context)
    assert outcomes["weights.constant_tensors"] is Outcome.FAIL
    _, outcomes = look(torch_model(fc__weight=GOOD["fc.weight"], fc__bias=GOOD["fc.bias"]), context)
    assert outcomes["weights.constant_tensors"] is Outcome.PASS


def test_sparsity_is_the_fraction_of_zeros_in_matrices(torch_model: Any, context: Any) -> None:
    weight = np.eye(4, dtype=np.float32)
    outputs, outcomes = look(
        torch_model(fc__weight=weight, fc__bias=np.zeros(9, np.float32)), context, max_sparsity=0.7
    )
    assert outputs.report.metrics["weights.sparsity"] == 0.75
    assert outcomes["weights.sparsity"] is Outcome.FAIL


def test_model_without_weights_is_an_error_and_no_crash(tmp_path: Path, context: Any) -> None:
    (tmp_path / "model.py").write_text("def build(): ...\n")
    model = sealed(TorchModel.at(tmp_path / "model.py", builder="model.py:build", signature=SIGNATURE))
    stage = ValidateWeights(Options())
    outputs = stage.run(Inputs(model=model), context())
    (verdict,) = stage.judge(outputs, JudgeContext())
    assert verdict.outcome is Outcome.ERROR
    assert (
        verdict.message
        == "the model has no weights file, so none was looked at; name it under `model.weights`"
    )


def test_file_without_tensors_does_not_pass(torch_model: Any, context: Any) -> None:
    _, outcomes = look(torch_model(), context)
    assert outcomes["weights.parameters"] is Outcome.FAIL


@pytest.mark.torch
def test_bfloat16_and_float8_are_looked_at(torch_model: Any, context: Any) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    model = torch_model(**GOOD)
    tensors = {
        "half.weight": torch.tensor([[1.0, float("nan")], [2.0, 3.0]], dtype=torch.bfloat16),
        "eighth.weight": torch.tensor([[1.0, 0.5], [2.0, 3.0]]).to(torch.float8_e4m3fn),
    }
    save_torch(tensors, model.root / "w.safetensors")
    outputs, _ = look(model, context)
    assert (outputs.report.metrics["weights.nan"], outputs.report.metrics["weights.max_abs"]) == (1, 3)


def test_tensor_larger_than_a_slice_is_read_in_parts(
    torch_model: Any, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = np.random.default_rng(0).standard_normal((37, 5)).astype(np.float32)
    weight[36] = 0
    weight[20, 3] = np.nan
    whole, _ = look(torch_model(fc__weight=weight), context)
    monkeypatch.setattr(_tensors, "SLICE_BYTES", 64)
    tensor = next(_tensors.safetensors_file(torch_model(fc__weight=weight).root / "w.safetensors"))
    assert max(len(part) for part in tensor.slices()) == 3
    parts, _ = look(torch_model(fc__weight=weight), context)
    assert parts.report.metrics == pytest.approx(whole.report.metrics)
    assert parts.report.details["tensors"][0]["first_dead"] == [36]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "weights w.safetensors are no safetensors file: "),
        (
            b"\xff" * 16,
            "weights w.safetensors are no safetensors file: its header would be 18446744073709551615 bytes long; ",
        ),
        (
            b"\x02\0\0\0\0\0\0\0{}tail",
            "weights w.safetensors should be 10 bytes long and are 14; save them again",
        ),
    ],
)
def test_broken_file_is_one_clear_error(torch_model: Any, context: Any, content: bytes, message: str) -> None:
    model = torch_model(**GOOD)
    (model.root / "w.safetensors").write_bytes(content)
    with pytest.raises(StageError) as caught:
        look(model, context)
    assert str(caught.value).startswith(message)


def test_truncated_file_is_one_clear_error(torch_model: Any, context: Any) -> None:
    model = torch_model(fc__weight=GOOD["fc.weight"])
    path = model.root / "w.safetensors"
    size = path.stat().st_size
    os.truncate(path, size - 4)
    with pytest.raises(StageError) as caught:
        look(model, context)
    assert (
        str(caught.value)
        == f"weights w.safetensors should be {size} bytes long and are {size - 4}; save them again"
    )


def test_onnx_weights_have_their_channels_where_the_operator_has_them(onnx_model: Any, context: Any) -> None:
    weight = np.ones((4, 3), np.float32) * np.arange(1, 5, dtype=np.float32)[:, None]
    weight[:, 2] = 0  # the third output of x @ weight
    for node in (helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Gemm", ["x", "w"], ["y"])):
        outputs, outcomes = look(onnx_model([node], {"w": weight}, SIGNATURE), context)
        assert outputs.report.details["tensors"][0]["first_dead"] == [2]
        assert outcomes["weights.dead_channels"] is Outcome.FAIL


def test_onnx_constants_are_looked_at(onnx_model: Any, context: Any) -> None:
    tensor = onnx.numpy_helper.from_array(np.full((4, 3), np.nan, np.float32), "hidden")
    nodes = [
        helper.make_node("Constant", [], ["w"], value=tensor),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    outputs, _ = look(onnx_model(nodes, {}, SIGNATURE), context)
    assert outputs.report.metrics["weights.nan"] == 12


def test_external_data_is_followed_through_hard_links(
    digits_onnx: OnnxModel, tmp_path: Path, context: Any
) -> None:
    for name in ("made", "view"):
        (tmp_path / name).mkdir()
    model = onnx.load(digits_onnx.path)
    onnx.save_model(
        model, tmp_path / "made" / "model.onnx", save_as_external_data=True, location="model.onnx.data"
    )
    for path in (tmp_path / "made").iterdir():
        os.link(path, tmp_path / "view" / path.name)
    external = sealed(OnnxModel.at(tmp_path / "view", signature=digits_onnx.signature, opset=21))
    assert look(external, context)[0].report.metrics == look(digits_onnx, context)[0].report.metrics


def test_external_data_outside_of_the_model_is_refused(
    digits_onnx: OnnxModel, tmp_path: Path, context: Any
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    model = onnx.load(digits_onnx.path)
    onnx.save_model(model, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    (tmp_path / "secret").write_bytes(b"0" * 10**6)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../secret"
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(
        StageError, match=r"^the external data of tensor 'w0', '../secret', is no file beside the model$"
    ):
        look(sealed(OnnxModel.at(folder, signature=digits_onnx.signature, opset=21)), context)


def test_file_that_is_no_onnx_model_is_one_clear_error(tmp_path: Path, context: Any) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    model = sealed(OnnxModel.at(tmp_path, signature=SIGNATURE, opset=21))
    with pytest.raises(StageError, match=r"^model\.onnx cannot be read as an ONNX model: "):
        look(model, context)


def test_every_safetensors_file_of_a_hugging_face_folder_is_looked_at(tmp_path: Path, context: Any) -> None:
    (tmp_path / "config.json").write_text("{}")
    bad = GOOD["fc.weight"].copy()
    bad[0, 0] = np.nan
    for number, weight in ((1, GOOD["fc.weight"]), (2, bad)):
        name = tmp_path / f"model-0000{number}-of-00002.safetensors"
        safetensors.save_file({f"layer.{number}.weight": weight}, name)
    outputs, outcomes = look(sealed(HuggingFaceModel.at(tmp_path, signature=SIGNATURE)), context)
    assert [row["name"] for row in outputs.report.details["tensors"]] == ["layer.1.weight", "layer.2.weight"]
    assert outputs.report.metrics["weights.parameters"] == 24
    assert outcomes["weights.nan"] is Outcome.FAIL


def entry(path: str) -> FileEntry:
    return FileEntry(path=path, sha256="0" * 64, size=1)


@pytest.mark.parametrize(
    ("model", "what", "exporter"),
    [
        (TensorflowModel(format="keras", signature=SIGNATURE), "a TensorFlow model", "tf2onnx"),
        (SklearnModel(format="skops", signature=SIGNATURE), "a scikit-learn model", "sklearn-export"),
        (TorchModel(format="exported-program", signature=SIGNATURE), "a .pt2 file", "torch-export"),
        (TorchModel(format="torchscript", signature=SIGNATURE), "a torchscript file", "torch-export"),
        (
            TorchModel(builder="model.py:build", weights="w.pt", signature=SIGNATURE),
            "w.pt, which is no safetensors file,",
            "torch-export",
        ),
        (
            HuggingFaceModel(files=(entry("pytorch_model.bin"),), signature=SIGNATURE),
            "a Hugging Face folder without safetensors",
            "hf-export",
        ),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_weights_that_cannot_be_looked_at_are_refused_in_the_plan_and_later(
    tmp_path: Path, context: Any, model: Any, what: str, exporter: str
) -> None:
    ctx = CheckContext(
        project=tmp_path, pipeline="p", inputs={"model": (Upstream("model", "", artifact=model),)}
    )
    stage = ValidateWeights(Options())
    with pytest.raises(SpecError) as planned:
        stage.check(ctx)
    assert str(planned.value) == (
        f"the weights of {what} cannot be looked at before there is a graph of it; put this stage after `{exporter}`"
    )
    with pytest.raises(StageError) as ran:
        stage.run(Inputs(model=model), context())
    assert str(ran.value) == str(planned.value)


def test_weights_that_can_be_looked_at_pass_the_plan(tmp_path: Path, torch_model: Any) -> None:
    models = (torch_model(**GOOD), TorchModel(builder="m.py:build", signature=SIGNATURE), None)
    for model in models:
        inputs = {"model": (Upstream("model", "", artifact=model),)}
        ValidateWeights(Options()).check(CheckContext(project=tmp_path, pipeline="p", inputs=inputs))
