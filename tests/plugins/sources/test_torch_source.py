"""Building PyTorch models from source."""

from __future__ import annotations

import io
import os
import re
import sys
import types
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from shipctl.errors import StageError
from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import TorchModel
from shipctl.testing.samples import sealed
from shipctl_plugins._sources.opening import open_source
from shipctl_plugins._sources.torch_source import torch_source
from support_lazy import lazy

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", reason="PyTorch is not installed")

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


# -- models in one file, and state dicts ---------------------------------------------------------------------------


@pytest.fixture
def network() -> torch.nn.Module:
    from support_torch_networks import Scaled

    torch.manual_seed(1)
    return Scaled().eval()


def save_program(network: torch.nn.Module, path: Path) -> None:
    batch = torch.export.Dim("batch")
    program = torch.export.export(network, (torch.zeros(4, 4),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def save_script(network: torch.nn.Module, path: Path) -> None:
    torch.jit.save(torch.jit.script(network), path)


def save_pickle(network: torch.nn.Module, path: Path) -> None:
    torch.save(network, path)


def file_model(path: Path, format: str, **fields: Any) -> TorchModel:  # noqa: A002  (the field's name)
    return sealed(TorchModel.at(path.parent, **{"format": format, "signature": SIGNATURE, **fields}))


FORMATS = [
    ("net.pt2", "exported-program", save_program, False),
    ("net.pt2", "exported-program", save_program, True),
    ("net.pt", "torchscript", save_script, False),
    ("net.pt", "pickle", save_pickle, True),
]


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning:torch.jit")
@pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")
@pytest.mark.parametrize(("name", "format_", "save", "trusted"), FORMATS)
def test_file_answers_like_the_module_that_it_was_saved_from(
    network: torch.nn.Module, tmp_path: Path, name: str, format_: str, save: Any, trusted: bool
) -> None:
    (tmp_path / "m").mkdir()
    save(network, tmp_path / "m" / name)
    feed = {"x": np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what is saved may be old, to open it is nobody's fault
        with open_source(file_model(tmp_path / "m" / name, format_, trusted=trusted)) as source:
            found = source.run(feed)["y"]
    np.testing.assert_allclose(found, network(torch.from_numpy(feed["x"])).detach().numpy(), rtol=1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning:torch.jit")
@pytest.mark.parametrize(("name", "format_", "save", "trusted"), FORMATS[1:])
def test_file_that_is_cut_off_is_named(
    network: torch.nn.Module,
    tmp_path: Path,
    name: str,
    format_: str,
    save: Any,
    trusted: bool,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / name
    save(network, path)
    path.write_bytes(path.read_bytes()[:-500])
    for said in {False, trusted}:
        with (
            pytest.raises(StageError, match=rf"^{name} (is|has|cannot) .*") as caught,
            open_source(file_model(path, format_, trusted=said)),
        ):
            pass
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def test_pickle_is_not_opened_without_trust(tmp_path: Path) -> None:
    torch.save(Bomb(tmp_path / "gone-off"), tmp_path / "net.pt")
    with (
        pytest.raises(StageError, match=r"^net\.pt is a pickle, which can run any code when it is opened; "),
        torch_source(file_model(tmp_path / "net.pt", "pickle")),
    ):
        pass
    assert not (tmp_path / "gone-off").exists()


def test_program_whose_example_inputs_are_a_pickle_runs_nothing(
    network: torch.nn.Module, tmp_path: Path
) -> None:
    save_program(network, tmp_path / "good.pt2")
    bomb = io.BytesIO()
    torch.save((Bomb(tmp_path / "gone-off"),), bomb)
    with zipfile.ZipFile(tmp_path / "good.pt2") as good, zipfile.ZipFile(tmp_path / "net.pt2", "w") as bad:
        for name in good.namelist():
            changed = name.endswith("sample_inputs/model.pt")
            bad.writestr(name, bomb.getvalue() if changed else good.read(name))
    (tmp_path / "good.pt2").unlink()
    with (
        pytest.raises(StageError, match=r"^net\.pt2 is no exported program that torch \S+ reads: "),
        torch_source(file_model(tmp_path / "net.pt2", "exported-program")),
    ):
        pass
    assert not (tmp_path / "gone-off").exists()


def test_program_that_holds_code_is_not_opened_without_trust(
    network: torch.nn.Module, tmp_path: Path
) -> None:
    save_program(network, tmp_path / "good.pt2")
    with zipfile.ZipFile(tmp_path / "good.pt2") as good, zipfile.ZipFile(tmp_path / "net.pt2", "w") as bad:
        for name in good.namelist():
            content = good.read(name)
            if name.endswith("models/model.json"):
                mark = str(tmp_path / "gone-off")
                content = content.replace(b"Symbol('", f"open('{mark}', 'w') and Symbol('".encode(), 1)
            bad.writestr(name, content)
    (tmp_path / "good.pt2").unlink()
    with (
        pytest.raises(StageError, match=r"^net\.pt2 holds a size that is none \(\"open\("),
        torch_source(file_model(tmp_path / "net.pt2", "exported-program")),
    ):
        pass
    assert not (tmp_path / "gone-off").exists()


def test_pickle_of_something_else_is_named(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "net.pt")
    with (
        pytest.raises(StageError) as caught,
        torch_source(file_model(tmp_path / "net.pt", "pickle", trusted=True)),
    ):
        pass
    assert str(caught.value) == (
        "net.pt holds a dict, not a torch.nn.Module; a state dict goes to `weights`, beside the builder in `uri` "
        "(models/net.py:build)"
    )


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": state, "epoch": 3}])
def test_state_dict_is_loaded(source: Any, wrap: Any) -> None:
    model = source({"net.py": LINEAR}, weights="w.pt")
    torch.save(wrap({"weight": torch.ones(3, 4), "bias": torch.tensor([0.0, 1.0, 2.0])}), model.root / "w.pt")
    with torch_source(model) as built:
        np.testing.assert_array_equal(built.run({"x": np.ones((1, 4), np.float32)})["y"], [[4, 5, 6]])


def test_state_dict_with_more_than_tensors_takes_trust(source: Any, tmp_path: Path) -> None:
    model = source({"net.py": LINEAR}, weights="w.pt")
    state = {"weight": torch.ones(3, 4), "bias": torch.zeros(3)}
    torch.save({"state_dict": state, "hook": Bomb(tmp_path / "gone-off")}, model.root / "w.pt")
    with pytest.raises(StageError) as caught:
        build(model)
    assert re.fullmatch(
        r"weights w\.pt hold more than tensors \(posix\.mkdir\), and to unpickle that can run any code; save "
        r"`module\.state_dict\(\)` alone, or write `trust_pickle: true` below `model:` if you trust who made it",
        str(caught.value),
    )
    assert not (tmp_path / "gone-off").exists()
    build(model.model_copy(update={"trusted": True}).located(model.root))
    assert (tmp_path / "gone-off").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: {"weight": torch.zeros(3, 4), "epoch": 3}, "weights w.pt are no state dict: 'epoch' is a int; "),
        (lambda: torch.zeros(3), "weights w.pt are no state dict: it is a Tensor; "),
        (lambda: {"weight": torch.zeros(3, 5), "bias": torch.zeros(3)},
         "weights w.pt do not fit the model: of another shape: weight ([3, 5] in the file, [3, 4] in the model); "),
    ],
)  # fmt: skip
def test_state_dict_that_does_not_fit_is_named(source: Any, content: Any, message: str) -> None:
    model = source({"net.py": LINEAR}, weights="w.pt")
    torch.save(content(), model.root / "w.pt")
    with pytest.raises(StageError) as caught:
        build(model)
    assert str(caught.value).startswith(message)


def test_state_dict_that_is_cut_off_is_named(source: Any) -> None:
    model = source({"net.py": LINEAR}, weights="w.pt")
    torch.save({"weight": torch.zeros(3, 4)}, model.root / "w.pt")
    (model.root / "w.pt").write_bytes((model.root / "w.pt").read_bytes()[:300])
    with pytest.raises(
        StageError, match=r"^weights w\.pt cannot be read: .*; save them again with torch\.save$"
    ):
        build(model)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning:torch.jit")
def test_script_that_fails_says_why_in_one_line(network: torch.nn.Module, tmp_path: Path) -> None:
    save_script(network, tmp_path / "net.pt")
    with (
        torch_source(file_model(tmp_path / "net.pt", "torchscript")) as built,
        pytest.raises(StageError) as caught,
    ):
        built.run({"x": np.zeros((2, 5), np.float32)})
    assert str(caught.value) == (
        "the model's forward fails on x float32[2, 5]: RuntimeError: mat1 and mat2 shapes cannot be multiplied "
        "(2x5 and 4x3)"
    )
