"""Files that a graph takes along."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest

from shipctl.stages.artifacts import Dataset, OnnxModel
from shipctl.stages.registry import Registry
from shipctl.testing.samples import sealed
from shipctl_plugins._onnx.companions import companions, take_companions


def test_everything_beside_the_graph_but_its_weights_is_taken_along(
    digits_onnx: OnnxModel, tmp_path: Path
) -> None:
    (tmp_path / "m" / "names").mkdir(parents=True)
    onnx.save_model(
        onnx.load(digits_onnx.path), tmp_path / "m" / "model.onnx", save_as_external_data=True,
        location="weights.bin", size_threshold=0,
    )  # fmt: skip
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    (tmp_path / "m" / "names" / "classes.txt").write_text("0")
    model = sealed(OnnxModel.at(tmp_path / "m", signature=digits_onnx.signature))
    assert companions(model) == ("names/classes.txt", "tokenizer.json")
    (tmp_path / "out").mkdir()
    take_companions(model, tmp_path / "out")
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert sorted(path.relative_to(tmp_path / "out").as_posix() for path in files) == list(companions(model))
    assert (tmp_path / "out" / "names" / "classes.txt").read_text() == "0"


def test_graph_alone_has_none(digits_onnx: OnnxModel, tmp_path: Path) -> None:
    assert companions(digits_onnx) == ()
    assert companions(sealed(OnnxModel.at(digits_onnx.path, signature=digits_onnx.signature))) == ()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bf16", {}),
        ("fp16", {}),
        ("int8-calibration", {}),
        ("int8-dynamic", {"op_types": ["Gemm", "MatMul"]}),
        ("onnx-optimize", {}),
        ("onnx-simplify", {}),
        ("prune", {"method": "magnitude", "ratio": 0.1}),
    ],
)
def test_whatever_is_done_to_a_graph_its_tokenizer_stays_beside_it(
    name: str,
    options: dict[str, Any],
    digits_onnx: OnnxModel,
    calibration: Dataset,
    tmp_path: Path,
    context: Any,
) -> None:
    (tmp_path / "m").mkdir()
    shutil.copyfile(digits_onnx.path, tmp_path / "m" / "model.onnx")
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    model = sealed(OnnxModel.at(tmp_path / "m", signature=digits_onnx.signature, opset=21))
    stage: Any = Registry().load(name)
    given = {"model": model, "calibration": calibration}
    fields = stage.inputs_model.model_fields
    inputs = stage.inputs_model(**{key: value for key, value in given.items() if key in fields})
    outputs = stage(stage.options_model(**options)).run(inputs, context())
    assert (outputs.model.root / "tokenizer.json").read_text() == "{}"
    assert outputs.model.path.name == "model.onnx"
