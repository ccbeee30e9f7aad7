"""Stage `torch-export`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from shipctl.errors import StageError
from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import Dataset, TorchModel
from shipctl.stages.context import JudgeContext
from shipctl.stages.verdicts import Outcome
from shipctl.testing.conformance import StageConformance
from shipctl.testing.samples import sealed
from shipctl_plugins._onnx import graph
from shipctl_plugins.convert.torch_export import Inputs, Options, Outputs, TorchExport


class TestConformance(StageConformance):
    stage = "torch-export"


pytestmark = pytest.mark.torch

ONE_IN = (TensorSpec(name="x", dtype="float32", shape=("batch", 4)),)
ONE_OUT = (TensorSpec(name="y", dtype="float32", shape=("batch", 3)),)
LINEAR = "import torch\ndef build():\n    return torch.nn.Linear(4, 3)\n"


@pytest.fixture(scope="module")
def exported(
    digits_torch: TorchModel, calibration: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TorchExport, Outputs, list[str]]:
    """The digits model, exported once."""
    from shipctl.stages.context import StageContext

    said: list[str] = []
    stage = TorchExport(Options())
    ctx = StageContext(workdir=tmp_path_factory.mktemp("export"), log=said.append)
    return stage, stage.run(Inputs(model=digits_torch, calibration=calibration), ctx), said


@pytest.fixture
def source(tmp_path: Path) -> Callable[..., TorchModel]:
    """Make a TorchModel of the text of its module."""

    def make(
        text: str,
        inputs: Sequence[TensorSpec] = ONE_IN,
        outputs: Sequence[TensorSpec] = ONE_OUT,
        **fields: Any,
    ) -> TorchModel:
        folder = tmp_path / "source"
        folder.mkdir(exist_ok=True)
        (folder / "net.py").write_text(text)
        signature = Signature(inputs=tuple(inputs), outputs=tuple(outputs))
        return sealed(TorchModel.at(folder, **{"builder": "net.py:build", "signature": signature, **fields}))

    return make


def export(model: TorchModel, context: Any, **options: Any) -> Outputs:
    return TorchExport(Options(**options)).run(Inputs(model=model), context())


def test_digits_give_the_same_logits_within_rounding(exported: Any, digits_torch: TorchModel) -> None:
    stage, outputs, _ = exported
    verdicts = stage.judge(outputs, JudgeContext())
    assert [(verdict.gate, verdict.outcome) for verdict in verdicts] == [
        ("parity.max_abs_error", Outcome.PASS),
        ("parity.max_rel_error", Outcome.PASS),
        ("parity.cosine", Outcome.PASS),
        ("parity.top1", Outcome.PASS),
    ]
    assert {verdict.subject for verdict in verdicts} == {outputs.model.digest}
    assert outputs.model.derived_from == digits_torch.digest
    cases = [row["case"] for row in outputs.report.details["parity"]]
    assert cases[:3] == ["random inputs, batch 1", "random inputs, batch 3", "random inputs, batch 16"]
    assert sum(row["samples"] for row in outputs.report.details["parity"][3:]) == 256


def test_graph_is_as_the_signature_says(exported: Any, digits_torch: TorchModel) -> None:
    _, outputs, _ = exported
    model = onnx.load(outputs.model.path)
    onnx.checker.check_model(model, full_check=True)
    assert graph.graph_differences(model, digits_torch.signature) == []
    assert graph.opset_of(model) == outputs.model.opset == 21
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_graph_answers_golden_samples_like_the_trained_model(exported: Any, specs: Path) -> None:
    golden = np.load(specs / "data" / "digits-golden.npz")
    session = onnxruntime.InferenceSession(exported[1].model.path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": golden["image"]})
    np.testing.assert_allclose(logits, golden["logits"], rtol=1e-4, atol=1e-4)


def test_graph_says_nothing_about_the_machine(exported: Any, digits_torch: TorchModel) -> None:
    _, outputs, _ = exported
    content = outputs.model.path.read_bytes()
    for secret in (str(digits_torch.root), "site-packages", "File \\", ".py", "stack_trace"):
        assert secret.encode() not in content


def test_nothing_is_printed_and_the_log_has_no_noise(
    exported: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    assert [line for line in exported[2] if "torchvision" in line or "deprecated" in line] == []
    assert capfd.readouterr() == ("", "")


def test_other_folder_and_other_process_give_the_same_digest(
    exported: Any, digits_at: Callable[[Path], TorchModel], calibration: Dataset, tmp_path: Path
) -> None:
    model = digits_at(tmp_path / "somewhere-else")
    script = (
        "import sys; from pathlib import Path\n"
        "from shipctl.stages.artifacts import TorchModel, Dataset\n"
        "from shipctl.stages.context import StageContext\n"
        "from shipctl_plugins.convert.torch_export import Inputs, Options, TorchExport\n"
        "model = TorchModel.model_validate_json(sys.argv[1]).located(Path(sys.argv[2]))\n"
        "Path(sys.argv[3]).mkdir()\n"
        "print(TorchExport(Options()).run(Inputs(model=model), StageContext(workdir=Path(sys.argv[3]))).model.digest)\n"
    )
    command = [sys.executable, "-c", script, model.model_dump_json(), str(model.root), str(tmp_path / "work")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=None)
    assert done.stdout.split()[-1] == exported[1].model.digest


def test_source_folder_stays_as_it_was_and_its_modules_are_gone(
    exported: Any, digits_torch: TorchModel
) -> None:
    assert sorted(path.name for path in digits_torch.root.iterdir()) == [
        "digits.py",
        "digits.safetensors",
        "layers.py",
    ]
    assert not {"digits", "layers"} & set(sys.modules)


def test_inputs_go_by_name_and_outputs_of_a_dict_too(source: Any, context: Any) -> None:
    model = source(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.table = torch.nn.Embedding(10, 4)\n"
        "    def forward(self, ids, mask):\n"
        "        hidden = self.table(ids) * mask[..., None]\n"
        "        return {'hidden': hidden, 'unused': hidden, 'pooled': hidden.sum(1)}\n"
        "def build():\n"
        "    return Net()\n",
        inputs=[
            TensorSpec(name="mask", dtype="float32", shape=("batch", "tokens")),
            TensorSpec(name="ids", dtype="int64", shape=("batch", "tokens")),
        ],
        outputs=[
            TensorSpec(name="pooled", dtype="float32", shape=("batch", 4)),
            TensorSpec(name="hidden", dtype="float32", shape=("batch", "tokens", 4)),
        ],
    )
    outputs = export(model, context, dimensions={"tokens": 5})
    assert outputs.report.metrics["parity.max_abs_error"] < 1e-5
    session = onnxruntime.InferenceSession(outputs.model.path, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["mask", "ids"]
    pooled, hidden = session.run(
        None, {"mask": np.ones((2, 7), np.float32), "ids": np.zeros((2, 7), np.int64)}
    )
    assert (pooled.shape, hidden.shape) == ((2, 4), (2, 7, 4))


def test_model_with_a_fixed_batch_is_compared_at_that(source: Any, context: Any) -> None:
    fixed_in = [TensorSpec(name="x", dtype="float32", shape=(2, 4))]
    fixed_out = [TensorSpec(name="y", dtype="float32", shape=(2, 3))]
    outputs = export(source(LINEAR, fixed_in, fixed_out), context)
    assert [row["case"] for row in outputs.report.details["parity"]] == ["random inputs, batch 2"]


def test_model_beyond_the_size_of_one_file_gets_external_data(
    digits_torch: TorchModel, exported: Any, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "INLINE_LIMIT", 100_000)
    outputs = export(digits_torch, context)
    assert sorted(entry.path for entry in outputs.model.files) == ["model.onnx", "model.onnx.data"]
    # onnx_ir rounds nothing: the same weights, elsewhere
    assert outputs.report.metrics["parity.max_abs_error"] == pytest.approx(
        max(row["max_abs_error"] for row in exported[1].report.details["parity"][:3]), abs=1e-6
    )


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (
            [TensorSpec(name="y", dtype="float32", shape=("batch", 5))],
            "the model is not as the signature says: output 'y' has shape [4, 3], declared is y: float32[batch, 5]",
        ),
        (
            [TensorSpec(name="y", dtype="int64", shape=("batch", 3))],
            "the model is not as the signature says: output 'y' is float32, declared is y: int64[batch, 3]",
        ),
        (
            [*ONE_OUT, TensorSpec(name="z", dtype="float32", shape=("batch", 3))],
            "forward returns 1 outputs, declared are 2: y, z",
        ),
    ],
)
def test_output_that_is_not_as_declared_fails(source: Any, context: Any, outputs: Any, message: str) -> None:
    with pytest.raises(StageError) as caught:
        export(source(LINEAR, outputs=outputs), context)
    assert str(caught.value).removesuffix("; correct the signature or the model") == message


def test_output_name_that_a_dict_lacks_fails(source: Any, context: Any) -> None:
    text = (
        "import torch\nclass Net(torch.nn.Module):\n    def forward(self, x):\n        return {'scores': x[:, :3]}\n"
        "def build():\n    return Net()\n"
    )
    with pytest.raises(StageError) as caught:
        export(source(text), context)
    assert str(caught.value) == "forward returns scores, but no output 'y' as declared"


def test_input_of_another_shape_fails(source: Any, context: Any) -> None:
    inputs = [TensorSpec(name="x", dtype="float32", shape=("batch", 5))]
    with pytest.raises(
        StageError, match=r"^the model's forward fails on x float32\[4, 5\]: RuntimeError: mat1 and mat2 "
    ):
        export(source(LINEAR, inputs), context)


def test_dimension_that_the_model_fixes_cannot_vary(source: Any, context: Any) -> None:
    text = (
        "import torch\nclass Net(torch.nn.Module):\n    def forward(self, x):\n"
        "        return x[:, :3] + torch.arange(4)[:, None] if x.shape[0] == 4 else x[:, :3]\n"
        "def build():\n    return Net()\n"
    )
    with pytest.raises(StageError) as caught:
        export(source(text), context)
    assert str(caught.value) == (
        "the exported graph is not as the signature says: input 'x': dimension 0 is 4, declared is batch; "
        "output 'y': dimension 0 is 4, declared is batch; correct the signature or the model"
    )


def test_model_that_cannot_be_traced_fails(source: Any, context: Any) -> None:
    text = (
        "import torch\nclass Net(torch.nn.Module):\n    def forward(self, x):\n"
        "        return x[:, :3] if x.sum() > 0 else -x[:, :3]\n"
        "def build():\n    return Net()\n"
    )
    with pytest.raises(StageError, match=r"^torch\.onnx\.export fails: "):
        export(source(text), context)


@pytest.mark.parametrize("opset", [7, 99])
def test_opset_that_torch_cannot_reach_fails(source: Any, context: Any, opset: int) -> None:
    with pytest.raises(
        StageError, match=rf"does not export this model to opset {opset}, it stayed at 18; set `opset: 18`$"
    ):
        export(source(LINEAR), context, opset=opset)


def test_graph_that_computes_something_else_does_not_pass(source: Any, context: Any) -> None:
    text = (
        "import torch\nclass Net(torch.nn.Module):\n    def forward(self, x):\n"
        "        return x[:, :3] * (1.0 if torch.compiler.is_compiling() else 1.01)\n"
        "def build():\n    return Net()\n"
    )
    stage = TorchExport(Options())
    outputs = stage.run(Inputs(model=source(text)), context())
    outcomes = {verdict.gate: verdict.outcome for verdict in stage.judge(outputs, JudgeContext())}
    assert outcomes["parity.max_rel_error"] is Outcome.FAIL
    assert outputs.report.metrics["parity.max_rel_error"] == pytest.approx(0.01, rel=0.01)


def test_calibration_data_without_the_input_fails(
    digits_torch: TorchModel, dataset: Any, context: Any
) -> None:
    inputs = Inputs(
        model=digits_torch, calibration=dataset("calibration", img=np.zeros((2, 1, 8, 8), np.float32))
    )
    with pytest.raises(StageError) as caught:
        TorchExport(Options()).run(inputs, context())
    assert str(caught.value) == (
        "calibration data has no array 'image', only img; name its arrays after the model's inputs"
    )
