"""Stage `torch-export`."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from shipctl_plugins._sources.torch_source import torch_source
from shipctl_plugins.convert.torch_export import Inputs, Options, Outputs, TorchExport
from support_lazy import lazy

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", reason="PyTorch is not installed")


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


def test_calibration_data_without_the_input_fails(source: Any, dataset: Any, context: Any) -> None:
    inputs = Inputs(
        model=source(LINEAR), calibration=dataset("calibration", img=np.zeros((2, 4), np.float32))
    )
    with pytest.raises(StageError) as caught:
        TorchExport(Options()).run(inputs, context())
    assert str(caught.value) == (
        "calibration data has no array 'x', only img; name its arrays after the model's inputs"
    )


# -- models in one file --------------------------------------------------------------------------------------------


TOKENS = Signature(
    inputs=(
        TensorSpec(name="mask", dtype="float32", shape=("batch", "tokens")),
        TensorSpec(name="ids", dtype="int64", shape=("batch", "tokens")),
    ),
    outputs=(
        TensorSpec(name="pooled", dtype="float32", shape=("batch", 1)),
        TensorSpec(name="hidden", dtype="float32", shape=("batch", "tokens", 4)),
    ),
)


def in_file(path: Path, kind: str, inputs: Any = ONE_IN, outputs: Any = ONE_OUT, **fields: Any) -> TorchModel:
    signature = Signature(inputs=tuple(inputs), outputs=tuple(outputs))
    return sealed(TorchModel.at(path, **{"format": kind, "signature": signature, **fields}))


def scripted(network: torch.nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
        torch.jit.save(torch.jit.script(network.eval()), path)
    return path


def programmed(path: Path, network: torch.nn.Module, *args: Any, dynamic: Any, **kwargs: Any) -> Path:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`isinstance", category=FutureWarning)
        torch.export.save(torch.export.export(network.eval(), args, kwargs, dynamic_shapes=dynamic), path)
    return path


def test_exported_program_becomes_the_same_graph_as_its_builder(
    exported: Any, digits_torch: TorchModel, context: Any, tmp_path: Path
) -> None:
    with torch_source(digits_torch) as built:
        network = built.module
        batch = torch.export.Dim("batch")
        path = programmed(
            tmp_path / "digits.pt2", network, image=torch.zeros(4, 1, 8, 8), dynamic={"image": {0: batch}}
        )
    said: list[str] = []
    signature = digits_torch.signature
    model = in_file(path, "exported-program", signature.inputs, signature.outputs)
    stage = TorchExport(Options())
    outputs = stage.run(Inputs(model=model), context(log=said.append))
    assert {verdict.outcome for verdict in stage.judge(outputs, JudgeContext())} == {Outcome.PASS}
    assert said == []
    image = np.random.default_rng(0).random((5, 1, 8, 8)).astype(np.float32)
    first, second = (
        onnxruntime.InferenceSession(made.model.path).run(None, {"image": image})[0]
        for made in (exported[1], outputs)
    )
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_exported_program_takes_inputs_by_name_and_gives_outputs_by_name(
    context: Any, tmp_path: Path
) -> None:
    from support_torch_networks import Two

    batch, tokens = torch.export.Dim("b"), torch.export.Dim("t", min=2, max=64)
    shape = {0: batch, 1: tokens}
    path = programmed(
        tmp_path / "two.pt2", Two(), torch.ones(4, 6, dtype=torch.int64), mask=torch.ones(4, 6),
        dynamic={"ids": shape, "mask": shape},
    )  # fmt: skip
    outputs = export(in_file(path, "exported-program", TOKENS.inputs, TOKENS.outputs), context)
    session = onnxruntime.InferenceSession(outputs.model.path)
    feed = {"ids": np.full((2, 5), 3, np.int64), "mask": np.eye(2, 5, dtype=np.float32)}
    pooled, hidden = session.run(["pooled", "hidden"], feed)
    np.testing.assert_array_equal(pooled, [[3], [3]])
    assert hidden.shape == (2, 5, 4)


def test_exported_program_of_one_batch_size_cannot_vary(context: Any, tmp_path: Path) -> None:
    path = programmed(tmp_path / "net.pt2", torch.nn.Linear(4, 3), torch.zeros(4, 4), dynamic=None)
    with pytest.raises(
        StageError,
        match=r"^the model's forward fails on x float32\[1, 4\]: RuntimeError: Expected input at .* to be equal to 4",
    ):
        export(in_file(path, "exported-program"), context)


def test_exported_program_with_other_inputs_is_named(context: Any, tmp_path: Path) -> None:
    path = programmed(tmp_path / "net.pt2", torch.nn.Linear(4, 3), torch.zeros(4, 4), dynamic=None)
    two = [*ONE_IN, TensorSpec(name="z", dtype="float32", shape=("batch", 4))]
    with pytest.raises(
        StageError, match=r"^the model's forward fails on x float32\[4, 4\], z float32\[4, 4\]: "
    ):
        export(in_file(path, "exported-program", two), context)


@pytest.mark.parametrize("network", ["Branch", "Loop"])
def test_torchscript_answers_the_same_on_both_ways_through_torch(
    network: str, context: Any, tmp_path: Path
) -> None:
    import support_torch_networks

    torch.manual_seed(3)
    said: list[str] = []
    model = in_file(scripted(getattr(support_torch_networks, network)(), tmp_path / "net.pt"), "torchscript")
    stage = TorchExport(Options(opset=20))
    outputs = stage.run(Inputs(model=model), context(log=said.append))
    assert {verdict.outcome for verdict in stage.judge(outputs, JudgeContext())} == {Outcome.PASS}
    graph_ops = {node.op_type for node in onnx.load(outputs.model.path).graph.node}
    if network == "Loop":
        assert "Loop" in graph_ops
        assert [line.partition(":")[0] for line in said] == ["TorchScript"]
        assert "prim::Loop; exported by torch's exporter for TorchScript instead" in said[0]
    else:
        assert "If" in graph_ops
        assert said == []


def test_torchscript_that_only_the_old_exporter_takes_ends_at_its_opset(context: Any, tmp_path: Path) -> None:
    from support_torch_networks import Loop

    model = in_file(scripted(Loop(), tmp_path / "net.pt"), "torchscript")
    with pytest.raises(StageError) as caught:
        export(model, context, opset=21)
    assert str(caught.value) == (
        "only torch's exporter for TorchScript takes this model (RuntimeError: TS2EPConverter failed for node "
        "prim::Loop), and that goes up to opset 20; set `opset: 20`, or save the model with torch.export.save (.pt2)"
    )


def test_pickled_module_is_exported_where_it_is_trusted(context: Any, tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(4, 3), tmp_path / "net.pt")
    with pytest.raises(StageError, match=r"^net\.pt is a pickle, which can run any code "):
        export(in_file(tmp_path / "net.pt", "pickle"), context)
    outputs = export(in_file(tmp_path / "net.pt", "pickle", trusted=True), context)
    assert outputs.report.metrics["parity.max_abs_error"] < 1e-5


def test_builder_with_a_state_dict_is_exported(source: Any, context: Any) -> None:
    model = source(LINEAR, weights="w.pt")
    torch.save({"weight": torch.ones(3, 4), "bias": torch.zeros(3)}, model.root / "w.pt")
    outputs = export(model, context)
    session = onnxruntime.InferenceSession(outputs.model.path)
    np.testing.assert_array_equal(session.run(None, {"x": np.ones((1, 4), np.float32)})[0], [[4, 4, 4]])


def test_program_that_is_cut_off_is_named(context: Any, tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(StageError) as caught:
        export(in_file(tmp_path / "net.pt2", "exported-program"), context)
    assert str(caught.value) == (
        "net.pt2 is not a whole .pt2 archive: File is not a zip file; save the program again with torch.export.save"
    )
