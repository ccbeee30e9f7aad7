"""What a path in the spec is: which artifact its files make, and what is refused."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from shipctl.engine.filecache import FileCache
from shipctl.engine.source_files import DATA, MODELS, Finder, Found, is_torchscript
from shipctl.spec.models import DataSource, ModelSpec
from shipctl.spec.problems import Location, Problems
from shipctl.stages.artifacts import (
    Dataset,
    HuggingFaceModel,
    OnnxModel,
    SklearnModel,
    TensorflowModel,
    TorchModel,
)

TENSORS: dict[str, Any] = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 4]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 3]}],
}


class Keys:
    """A locator whose places are the keys themselves."""

    def locate(self, keys: tuple[str | int, ...], part: str = "value") -> Location:
        return Location(".".join(map(str, keys)), 1, 1)


def archive(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name in names:
            file.writestr(name, b"")
    return content.getvalue()


SCRIPT = archive("model/constants.pkl", "model/data.pkl", "model/code/__torch__.py")
GRAPH = b"\x08\x0a:\x00"
"""An ONNX model of version 10 with an empty graph."""
PICKLE = archive("model/data.pkl", "model/version")


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    """Write files by name; a text is written as it is."""

    def write(files: Mapping[str, str | bytes]) -> Path:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return tmp_path

    return write


def look(root: Path, keys: tuple[str, ...], spec: ModelSpec | DataSource) -> tuple[Found | None, list[str]]:
    problems = Problems(Keys())
    finder = Finder(root, FileCache(None), problems, keys)
    found = finder.model(spec) if isinstance(spec, ModelSpec) else finder.data(spec)
    return found, [f"{problem.location.path}: {problem.message}" for problem in problems]


def model(root: Path, uri: str, **fields: Any) -> tuple[Found | None, list[str]]:
    return look(root, ("model",), ModelSpec.model_validate({"uri": uri, **TENSORS, **fields}))


def data(root: Path, uri: str, role: str = "evaluation", **fields: Any) -> tuple[Found | None, list[str]]:
    return look(root, ("data", role), DataSource.model_validate({"uri": uri, **fields}))


@pytest.mark.parametrize(
    ("files", "uri", "fields", "kind", "facts", "kept"),
    [
        ({"net.py": ""}, "net.py:build", {}, TorchModel, {"format": "builder", "builder": "net.py:build"},
         ["net.py"]),
        ({"m/net.py": "import parts", "m/parts.py": "", "w.safetensors": ""}, "m/net.py:build",
         {"weights": "w.safetensors"}, TorchModel, {"weights": "w.safetensors", "trusted": False},
         ["m/net.py", "m/parts.py", "w.safetensors"]),
        ({"net.py": "", "w.pt": PICKLE}, "net.py:build", {"weights": "w.pt"}, TorchModel, {"weights": "w.pt"},
         ["net.py", "w.pt"]),
        ({"net.py": "", "labels.txt": "a"}, "net.py:build", {"files": ["*.txt"]}, TorchModel, {},
         ["labels.txt", "net.py"]),
        ({"net.pt2": ""}, "net.pt2", {}, TorchModel, {"format": "exported-program", "trusted": False}, ["net.pt2"]),
        ({"net.pt2": ""}, "net.pt2", {"trust_pickle": True}, TorchModel, {"trusted": True}, ["net.pt2"]),
        ({"net.pt": SCRIPT}, "net.pt", {}, TorchModel, {"format": "torchscript"}, ["net.pt"]),
        ({"net.ts": SCRIPT}, "net.ts", {}, TorchModel, {"format": "torchscript"}, ["net.ts"]),
        ({"net.pt": PICKLE}, "net.pt", {"trust_pickle": True}, TorchModel, {"format": "pickle", "trusted": True},
         ["net.pt"]),
        ({"m/net.onnx": GRAPH, "m/net.data": ""}, "m/net.onnx", {"files": ["m/net.data"]}, OnnxModel, {},
         ["model.onnx", "net.data"]),
        ({"net.keras": ""}, "net.keras", {}, TensorflowModel, {"format": "keras"}, ["net.keras"]),
        ({"s/saved_model.pb": "", "s/variables/variables.index": "", "s/.hidden": ""}, "s", {}, TensorflowModel,
         {"format": "saved-model"}, ["saved_model.pb", "variables/variables.index"]),
        ({"f.skops": ""}, "f.skops", {}, SklearnModel, {"format": "skops"}, ["f.skops"]),
        ({"f.joblib": ""}, "f.joblib", {"trust_pickle": True}, SklearnModel, {"format": "pickle", "trusted": True},
         ["f.joblib"]),
        ({"h/config.json": "{}", "h/model.safetensors": "", "h/pytorch_model.bin": "", "h/tokenizer.json": "",
          "h/onnx/model.onnx": ""}, "h", {}, HuggingFaceModel, {},
         ["config.json", "model.safetensors", "tokenizer.json"]),
        ({"h/config.json": "{}", "h/pytorch_model.bin": ""}, "h", {"trust_pickle": True}, HuggingFaceModel,
         {"trusted": True}, ["config.json", "pytorch_model.bin"]),
    ],
)  # fmt: skip
def test_path_of_a_model_makes_its_artifact(
    folder: Any,
    files: Mapping[str, str | bytes],
    uri: str,
    fields: dict[str, Any],
    kind: type,
    facts: dict[str, Any],
    kept: list[str],
) -> None:
    found, problems = model(folder(files), uri, **fields)
    assert problems == []
    assert found is not None
    assert type(found.artifact) is kind
    assert {name: getattr(found.artifact, name) for name in facts} == facts
    assert [entry.path for entry in found.artifact.files] == kept == sorted(found.places)


TRUST = ", or write `trust_pickle: true` below `model:` if you trust who made it"
SAVE_TORCH = (
    "save it as a .pt2 file (torch.export.save), or name its builder and give the state dict as `weights`"
)
PICKLED = "is a pickle, which can run any code when it is opened; "


@pytest.mark.parametrize(
    ("files", "uri", "fields", "problem"),
    [
        ({}, "net.py:build", {}, "model.uri: 'net.py' does not exist; paths are relative to the spec's folder"),
        ({"net.py/x": ""}, "net.py:build", {},
         "model.uri: 'net.py' is a folder; paths are relative to the spec's folder"),
        ({}, "net.onnx", {}, "model.uri: 'net.onnx' does not exist; paths are relative to the spec's folder"),
        ({"net.tflite": ""}, "net.tflite", {}, f"model.uri: cannot ship 'net.tflite'; write {MODELS}"),
        ({"net.onnx": ""}, "net.onnx:build", {}, f"model.uri: cannot ship 'net.onnx:build'; write {MODELS}"),
        ({"net.py": ""}, "net.py", {}, f"model.uri: cannot ship 'net.py'; write {MODELS}"),
        ({"d/readme.txt": ""}, "d", {}, f"model.uri: cannot ship 'd'; write {MODELS}"),
        ({"net.py": ""}, "net.py:build", {"weights": "w.safetensors"},
         "model.weights: 'w.safetensors' does not exist; paths are relative to the spec's folder"),
        ({"net.py": "", "w.h5": ""}, "net.py:build", {"weights": "w.h5"},
         "model.weights: cannot load 'w.h5'; save the state dict as .safetensors (or .pt)"),
        ({"net.onnx": "", "w.safetensors": ""}, "net.onnx", {"weights": "w.safetensors"},
         "model.weights: only a builder (models/net.py:build) takes weights, not 'net.onnx'"),
        ({"net.py": ""}, "net.py:build", {"files": ["*.txt"]}, "model.files.0: '*.txt' matches no file below ROOT"),
        ({"net.pt": PICKLE}, "net.pt", {},
         f"model.uri: net.pt {PICKLED}{SAVE_TORCH}{TRUST}"),
        ({"f.pkl": ""}, "f.pkl", {}, f"model.uri: f.pkl {PICKLED}save it as a .skops file{TRUST}"),
        ({"h/config.json": "{}", "h/pytorch_model.bin": ""}, "h", {},
         f"model.uri: h {PICKLED}save its weights as safetensors{TRUST}"),
    ],
)  # fmt: skip
def test_model_that_cannot_be_shipped_is_refused(
    folder: Any, files: Mapping[str, str | bytes], uri: str, fields: dict[str, Any], problem: str
) -> None:
    root = folder(files)
    _, problems = model(root, uri, **fields)
    assert [text.replace(str(root), "ROOT") for text in problems] == [problem]


def test_model_without_a_signature_is_refused(folder: Any) -> None:
    found, problems = model(folder({"net.onnx": ""}), "net.onnx", outputs=[])
    assert found is None
    assert problems == ["model: the model needs `inputs` and `outputs`: name, dtype and shape of each tensor"]


def test_archive_with_code_is_torchscript_and_no_other_file(folder: Any) -> None:
    root = folder({"a.pt": SCRIPT, "b.pt": PICKLE, "c.pt": b"\x80\x02."})
    assert [is_torchscript(root / name) for name in ("a.pt", "b.pt", "c.pt", "none.pt")] == [
        True,
        False,
        False,
        False,
    ]


def test_trust_is_recorded_in_the_artifact(folder: Any) -> None:
    root = folder({"net.pt2": ""})
    plain, trusting = (model(root, "net.pt2", trust_pickle=said)[0] for said in (False, True))
    assert plain is not None
    assert trusting is not None
    assert plain.artifact.digest != trusting.artifact.digest


@pytest.mark.parametrize(
    ("files", "uri", "fields", "facts", "kept"),
    [
        ({"d.npz": ""}, "d.npz", {}, {"format": "npz"}, ["d.npz"]),
        ({"d.csv": ""}, "d.csv", {"label": "y"}, {"format": "csv"}, ["d.csv"]),
        ({"i/a/1.png": "", "i/b/2.JPG": "", "i/note.txt": "", "i/.x/3.png": ""}, "i", {"image": {"layout": "nhwc"}},
         {"format": "images"}, ["a/1.png", "b/2.JPG"]),
        ({"s.py": "", "s.csv": ""}, "s.py:make", {"files": ["s.csv"]}, {"format": "python", "function": "s.py:make"},
         ["s.csv", "s.py"]),
    ],
)  # fmt: skip
def test_path_of_data_makes_a_data_set(
    folder: Any,
    files: Mapping[str, str],
    uri: str,
    fields: dict[str, Any],
    facts: dict[str, Any],
    kept: list[str],
) -> None:
    found, problems = data(folder(files), uri, **fields)
    assert problems == []
    assert found is not None
    assert isinstance(found.artifact, Dataset)
    assert found.artifact.role == "evaluation"
    assert {name: getattr(found.artifact, name) for name in facts} == facts
    assert [entry.path for entry in found.artifact.files] == kept


def test_what_is_said_about_reading_is_kept(folder: Any) -> None:
    found, _ = data(folder({"d.csv": ""}), "d.csv", label="class")
    assert found is not None
    assert isinstance(found.artifact, Dataset)
    assert found.artifact.reading.label == "class"


@pytest.mark.parametrize(
    ("files", "uri", "fields", "problem"),
    [
        ({}, "d.npz", {}, "data.evaluation.uri: 'd.npz' does not exist; paths are relative to the spec's folder"),
        ({"d.parquet": ""}, "d.parquet", {}, f"data.evaluation.uri: cannot read 'd.parquet' as data; write {DATA}"),
        ({"d.npz": ""}, "d.npz:x", {}, f"data.evaluation.uri: cannot read 'd.npz:x' as data; write {DATA}"),
        ({"s.py": ""}, "s.py", {}, f"data.evaluation.uri: cannot read 's.py' as data; write {DATA}"),
        ({}, "s.py:make", {}, "data.evaluation.uri: 's.py' does not exist; paths are relative to the spec's folder"),
        ({"i/note.txt": ""}, "i", {},
         f"data.evaluation.uri: 'i' has no images (.bmp, .jpeg, .jpg, .png, .webp); write {DATA}"),
        ({"d.npz": "", "x.txt": ""}, "d.npz", {"files": ["x.txt"]},
         "data.evaluation.files: 'd.npz' is not a Python function, for which alone there is `files`; leave it out"),
        ({"d.npz": ""}, "d.npz", {"label": "y"},
         "data.evaluation.label: 'd.npz' is not a .csv file, for which alone there is `label`; leave it out"),
        ({"d.csv": ""}, "d.csv", {"image": {"layout": "nhwc"}},
         "data.evaluation.image: 'd.csv' is not a folder of images, for which alone there is `image`; leave it out"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_read_is_refused(
    folder: Any, files: Mapping[str, str], uri: str, fields: dict[str, Any], problem: str
) -> None:
    _, problems = data(folder(files), uri, **fields)
    assert problems == [problem]


def test_golden_samples_come_from_named_arrays(folder: Any) -> None:
    _, problems = data(folder({"g.csv": ""}), "g.csv", "golden")
    assert problems == ["data.golden.uri: golden samples come from an .npz file, not from 'g.csv'"]
