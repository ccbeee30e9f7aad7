"""Building PyTorch models from source."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shipctl.errors import StageError
from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import TorchModel
from shipctl.testing.samples import sealed
from shipctl_plugins._onnx.torch_source import torch_source

pytestmark = pytest.mark.torch

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 3)),),
)
LINEAR = "import torch\ndef build():\n    return torch.nn.Linear(4, 3)\n"


@pytest.fixture
def source(tmp_path: Path) -> Any:
    """Make a TorchModel of files in a folder of its own."""

    def make(
        files: dict[str, str], builder: str = "net.py:build", folder: str = "source", **fields: Any
    ) -> TorchModel:
        for name, text in files.items():
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return sealed(TorchModel.at(tmp_path / folder, builder=builder, signature=SIGNATURE, **fields))

    return make


def build(model: TorchModel) -> Any:
    with torch_source(model) as built:
        return built.module


def save_weights(model: TorchModel, **tensors: Any) -> None:
    from safetensors.torch import save_file

    save_file(tensors, model.root / "w.safetensors")


def test_two_models_whose_modules_have_the_same_names_do_not_mix(source: Any) -> None:
    text = "import parts\nimport torch\ndef build():\n    return torch.nn.Linear(4, parts.WIDTH)\n"
    first = source({"net.py": text, "parts.py": "WIDTH = 3\n"}, folder="first")
    second = source({"net.py": text, "parts.py": "WIDTH = 5\n"}, folder="second")
    assert [build(model).out_features for model in (first, second, first)] == [3, 5, 3]


def test_everything_is_as_before_afterwards(source: Any) -> None:
    model = source(
        {"models/net.py": "import parts\n" + LINEAR, "models/parts.py": "", "parts.py": "1 / 0"},
        "models/net.py:build",
    )
    other = sys.modules["parts"] = types.ModuleType("parts")
    path, cache = list(sys.path), sys.dont_write_bytecode
    try:
        build(model)
        assert sys.modules.pop("parts") is other
    finally:
        sys.modules.pop("parts", None)
    assert (sys.path, sys.dont_write_bytecode) == (path, cache)
    assert "net" not in sys.modules
    assert not list(model.root.rglob("__pycache__"))


def test_builder_in_a_package_may_import_relatively(source: Any) -> None:
    files = {
        "pkg/__init__.py": "",
        "pkg/net.py": "from .parts import WIDTH\n" + LINEAR,
        "pkg/parts.py": "WIDTH = 3\n",
    }
    assert build(source(files, "pkg/net.py:build")).out_features == 3
    assert not [name for name in sys.modules if name.split(".")[0] == "pkg"]


def test_builder_may_be_called_like_an_installed_module(source: Any) -> None:
    assert build(source({"json.py": LINEAR}, "json.py:build")).out_features == 3
    import json

    assert json.loads("1") == 1


@pytest.mark.parametrize(
    ("files", "builder", "message"),
    [
        ({"net.py": LINEAR}, "model.py:build", "builder model.py:build: there is no file model.py, only net.py"),
        ({"net.py": LINEAR}, "net.py:make", "builder net.py:make: there is no function 'make', only build"),
        ({"net.py": "import no_such_module\n"}, "net.py:build",
         "builder net.py:build does not import: ModuleNotFoundError: No module named 'no_such_module' (net.py:1)"),
        ({"net.py": "def build():\n    return [1]\n"}, "net.py:build",
         "builder net.py:build returns a list, not a torch.nn.Module"),
        ({"net.py": "def build():\n    x = 1\n    return x / 0\n"}, "net.py:build",
         "builder net.py:build fails: ZeroDivisionError: division by zero (net.py:3)"),
    ],
)  # fmt: skip
def test_broken_builder_is_named(source: Any, files: dict[str, str], builder: str, message: str) -> None:
    with pytest.raises(StageError) as caught:
        build(source(files, builder))
    assert str(caught.value) == message


def test_weights_that_do_not_fit_are_named(source: Any) -> None:
    import torch

    model = source({"net.py": LINEAR}, weights="w.safetensors")
    save_weights(model, weight=torch.zeros(2, 4), scale=torch.zeros(3))
    with pytest.raises(StageError) as caught:
        build(model)
    assert str(caught.value) == (
        "weights w.safetensors do not fit the model: missing: bias; not known: scale; of another shape: "
        "weight ([2, 4] in the file, [3, 4] in the model); save them from the module that the builder returns"
    )


def test_weights_are_loaded(source: Any) -> None:
    import torch

    model = source({"net.py": LINEAR}, weights="w.safetensors")
    save_weights(model, weight=torch.ones(3, 4), bias=torch.tensor([0.0, 1.0, 2.0]))
    with torch_source(model) as built:
        np.testing.assert_array_equal(built.run({"x": np.ones((1, 4), np.float32)})["y"], [[4, 5, 6]])


def test_tied_weight_may_be_missing_in_the_file(source: Any) -> None:
    import torch

    text = (
        "import torch\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a = torch.nn.Linear(4, 4, bias=False)\n        self.b = torch.nn.Linear(4, 4, bias=False)\n"
        "        self.b.weight = self.a.weight\n    def forward(self, x):\n        return self.b(self.a(x))\n"
        "def build():\n    return Net()\n"
    )
    model = source({"net.py": text}, weights="w.safetensors")
    save_weights(model, **{"a.weight": torch.full((4, 4), 2.0)})
    with torch_source(model) as built:
        np.testing.assert_array_equal(
            built.run({"x": np.ones((1, 4), np.float32)})["y"], np.full((1, 4), 64.0)
        )


@pytest.mark.parametrize("content", [None, b"rubbish"])
def test_weights_that_cannot_be_read_are_named(source: Any, content: bytes | None) -> None:
    model = source({"net.py": LINEAR}, weights="w.safetensors")
    if content:
        (model.root / "w.safetensors").write_bytes(content)
    with pytest.raises(StageError, match=r"^weights w\.safetensors cannot be read: "):
        build(model)


def test_model_without_weights_is_the_same_for_the_same_seed(source: Any) -> None:
    model = source({"net.py": LINEAR})
    assert build(model).weight.equal(build(model).weight)
