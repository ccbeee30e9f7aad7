from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from shipctl.stages.artifacts import Dataset, OnnxModel, Report, TorchModel, TritonRepository
from shipctl.testing import sealed, tiny_dataset, tiny_onnx_model
from shipctl.testing.samples import sample_for, tiny_torch_model


def test_the_tiny_model_classifies_the_tiny_data(tmp_path: Path) -> None:
    model, data = tiny_onnx_model(tmp_path), tiny_dataset(tmp_path)
    session = onnxruntime.InferenceSession(model.path, providers=["CPUExecutionProvider"])
    with np.load(data.path) as arrays:
        (y,) = session.run(None, {"x": arrays["x"]})
        np.testing.assert_allclose(y, arrays["y"], rtol=1e-5, atol=1e-5)
        assert (y.argmax(axis=1) == arrays["label"]).all()
        assert len(set(arrays["label"])) > 1


def test_samples_are_the_same_every_time(tmp_path: Path) -> None:
    for make in (tiny_onnx_model, tiny_dataset, tiny_torch_model):
        assert make(tmp_path / "a").digest == make(tmp_path / "b").digest


def test_fields_may_be_replaced(tmp_path: Path) -> None:
    assert tiny_onnx_model(tmp_path, precision="fp16").precision == "fp16"


def test_sealed_lists_files_in_order_with_their_digests(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "two").write_text("2")
    (folder / "a").write_text("1")
    artifact = sealed(Report.at(folder, subject="s", title="t"))
    assert [(entry.path, entry.size) for entry in artifact.files] == [("a", 1), ("b/two", 1)]
    assert artifact.root == folder


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ((OnnxModel,), OnnxModel),
        ((Dataset,), Dataset),
        ((TorchModel, OnnxModel), TorchModel),
        ((Report,), Report),
    ],
)
def test_there_is_a_sample_of_every_common_kind(
    tmp_path: Path, kinds: tuple[type, ...], expected: type
) -> None:
    assert type(sample_for(kinds, "golden", tmp_path)) is expected
    assert sample_for((TritonRepository,), "repository", tmp_path) is None
