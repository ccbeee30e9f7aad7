"""The drift reference: distributions from which drift can be computed later."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import OnnxModel
from shipctl.testing.samples import tiny_dataset, tiny_onnx_model
from shipctl_plugins.package import _drift
from shipctl_plugins.package._drift import PROBABILITIES, drift_reference
from support_packaging import dataset


@pytest.fixture
def model(tmp_path: Path) -> OnnxModel:
    return tiny_onnx_model(tmp_path / "model")


def reference(model: OnnxModel, tmp_path: Path, **arrays: Any) -> dict[str, Any]:
    return drift_reference(model, dataset(tmp_path / "data.npz", "evaluation", **arrays))


def psi(feature: dict[str, Any], values: Any) -> float:
    """Return the population stability index of new values, as a reader of the reference would."""
    counts = np.bincount(
        np.searchsorted(feature["edges"], values, side="left"), minlength=len(feature["shares"])
    )
    found, old = np.maximum(counts / len(values), 1e-6), np.maximum(feature["shares"], 1e-6)
    return float(((found - old) * np.log(found / old)).sum())


def test_reference_is_of_inputs_and_outputs(model: OnnxModel, tmp_path: Path) -> None:
    data = tiny_dataset(tmp_path)
    found = drift_reference(model, data)
    assert (found["samples"], found["model"], found["data"]) == (12, model.digest, data.digest)
    assert list(found["inputs"]) == ["x"]
    assert len(found["inputs"]["x"]["elements"]) == 4
    assert len(found["outputs"]["y"]["elements"]) == 3
    assert sum(found["outputs"]["y"]["classes"]) == pytest.approx(1)
    assert found == drift_reference(model, data)


def test_deciles_hold_a_tenth_each(model: OnnxModel, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((1000, 4)).astype(np.float32)
    feature = reference(model, tmp_path, x=x)["inputs"]["x"]["elements"][2]
    assert feature["shares"] == pytest.approx([0.1] * 10, abs=2e-3)
    assert len(feature["edges"]) == 9
    assert feature["mean"] == pytest.approx(float(x[:, 2].mean()), rel=1e-6)
    assert feature["std"] == pytest.approx(float(x[:, 2].std()), rel=1e-6)
    assert (feature["n"], feature["missing"]) == (1000, 0.0)
    assert len(feature["quantiles"]) == len(PROBABILITIES)
    assert (feature["quantiles"][0], feature["quantiles"][-1]) == (feature["min"], feature["max"])


def test_drift_can_be_told_from_it(model: OnnxModel, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2000, 4)).astype(np.float32)
    feature = reference(model, tmp_path, x=x)["inputs"]["x"]["elements"][0]
    assert psi(feature, x[:, 0].astype(np.float64)) < 1e-3
    assert psi(feature, rng.standard_normal(2000)) < 0.02
    assert psi(feature, rng.standard_normal(2000) + 1) > 0.5


def test_values_that_are_no_numbers_count_as_missing(model: OnnxModel, tmp_path: Path) -> None:
    x = np.zeros((8, 4), np.float32)
    x[:2, 0] = [math.nan, math.inf]
    x[:, 1] = math.nan
    elements = reference(model, tmp_path, x=x)["inputs"]["x"]["elements"]
    assert (elements[0]["missing"], elements[0]["n"], elements[0]["max"]) == (0.25, 8, 0.0)
    assert elements[1] == {"n": 8, "missing": 1.0, "edges": [], "shares": [], "quantiles": []}


def test_constant_feature_has_one_edge(model: OnnxModel, tmp_path: Path) -> None:
    x = np.full((8, 4), 2.0, np.float32)
    feature = reference(model, tmp_path, x=x)["inputs"]["x"]["elements"][0]
    assert (feature["edges"], feature["shares"]) == ([2.0], [1.0, 0.0])
    assert psi(feature, np.full(8, 3.0)) > 1


def test_large_tensors_are_described_as_a_whole(
    model: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_drift, "MAX_ELEMENTS", 3)
    monkeypatch.setattr(_drift, "MAX_VALUES", 10)
    found = reference(model, tmp_path, x=np.zeros((8, 4), np.float32))["inputs"]["x"]
    assert "elements" not in found
    assert found["all"]["n"] == 8  # every fourth of 32


def test_texts_are_categories(model: OnnxModel, tmp_path: Path) -> None:
    described = _drift._tensor(np.array([["b"], ["a"], ["b"], ["b"]]))
    assert described["all"] == {
        "n": 4, "missing": 0.0, "categories": {"b": 0.75, "a": 0.25}, "distinct": 2,
    }  # fmt: skip


def test_outputs_are_left_out_where_there_is_no_runtime(
    model: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_drift, "find_spec", lambda name: None)
    found = reference(model, tmp_path, x=np.zeros((8, 4), np.float32))
    assert (found["outputs"], found["note"]) == ({}, "outputs are left out: ONNX Runtime was not installed")


def test_model_with_a_fixed_batch_is_asked_in_its_batches(tmp_path: Path) -> None:
    """What fills up the last batch does not count."""
    fixed = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(5, 4)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(5, 3)),),
    )
    found = drift_reference(tiny_onnx_model(tmp_path / "model", signature=fixed), tiny_dataset(tmp_path))
    assert found["outputs"]["y"]["elements"][0]["n"] == 12
