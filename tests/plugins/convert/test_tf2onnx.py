"""Stage `tf2onnx`."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from pydantic import ValidationError

from shipctl.errors import SpecError, StageError
from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import Artifact, Dataset, TensorflowModel
from shipctl.stages.context import CheckContext, JudgeContext, StageContext, Upstream
from shipctl.stages.verdicts import Outcome
from shipctl.testing.conformance import StageConformance
from shipctl.testing.samples import sealed
from shipctl_plugins._onnx import graph
from shipctl_plugins._sources.tensorflow_source import import_tensorflow
from shipctl_plugins.convert.tf2onnx import Inputs, Options, Outputs, Tf2onnx

pytestmark = [
    pytest.mark.skipif(
        find_spec("tensorflow") is None,
        reason="TensorFlow is not installed: pip install 'shipctl[tensorflow]'",
    ),
    pytest.mark.slow,  # the first one imports TensorFlow
    # Keras, as it saves a model
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    ),
]

SPECS = Path(__file__).parents[3] / "specs"
DIGITS = Signature(
    inputs=(TensorSpec(name="image", dtype="float32", shape=("batch", 8, 8, 1)),),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 10)),),
)
ONE_IN = TensorSpec(name="x", dtype="float32", shape=("batch", 4))
ONE_OUT = TensorSpec(name="y", dtype="float32", shape=("batch", 3))


def digits(folder: Path, **fields: Any) -> TensorflowModel:
    """The digits model of `specs/`, with its file alone in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "keras-digits.keras"
    path.write_bytes((SPECS / "models" / "keras-digits.keras").read_bytes())
    return sealed(TensorflowModel.at(path, **{"format": "keras", "signature": DIGITS, **fields}))


class TestConformance(StageConformance):
    stage = "tf2onnx"

    def inputs(self, tmp_path: Path) -> Mapping[str, Artifact | list[Artifact] | None]:
        """A Keras model; the samples of the kit do not fit it."""
        return {"model": digits(tmp_path / "inputs"), "calibration": None}


@pytest.fixture(scope="module")
def tf() -> Any:
    tf = import_tensorflow()[0]
    gc.freeze()  # Keras looks for garbage whenever a model is closed, and here is none
    return tf


@pytest.fixture(scope="module")
def keras(tf: Any) -> Any:
    return import_tensorflow()[1]


@pytest.fixture(scope="module")
def converted(tf: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tf2onnx, Outputs, list[str]]:
    """The digits model, converted once."""
    said: list[str] = []
    stage = Tf2onnx(Options())
    calibration = sealed(Dataset.at(SPECS / "data" / "keras-digits-calibration.npz", role="calibration"))
    ctx = StageContext(workdir=tmp_path_factory.mktemp("convert"), log=said.append)
    model = digits(tmp_path_factory.mktemp("digits"))
    return stage, stage.run(Inputs(model=model, calibration=calibration), ctx), said


@pytest.fixture
def saved(keras: Any, tmp_path: Path) -> Callable[..., TensorflowModel]:
    """Save a Keras model and return it as source."""

    def make(
        network: Any, inputs: tuple[TensorSpec, ...] = (ONE_IN,), outputs: tuple[TensorSpec, ...] = (ONE_OUT,),
        **fields: Any,
    ) -> TensorflowModel:  # fmt: skip
        path = tmp_path / "net.keras"
        network.save(path)
        signature = Signature(inputs=inputs, outputs=outputs)
        return sealed(TensorflowModel.at(path, format="keras", signature=signature, **fields))

    return make


@pytest.fixture
def exported(tf: Any, tmp_path: Path) -> Callable[..., TensorflowModel]:
    """Export functions as the signatures of a SavedModel and return it as source."""

    def make(
        functions: Mapping[str, Callable[..., Any]],
        inputs: tuple[TensorSpec, ...] = (ONE_IN,),
        outputs: tuple[TensorSpec, ...] = (ONE_OUT,),
        **fields: Any,
    ) -> TensorflowModel:
        module = tf.Module()
        specs = {spec.name: tf.TensorSpec([None, *spec.shape[1:]], spec.dtype, spec.name) for spec in inputs}
        signatures = {
            name: tf.function(function).get_concrete_function(**specs) for name, function in functions.items()
        }
        tf.saved_model.save(module, str(tmp_path / "saved"), signatures=signatures)
        signature = Signature(inputs=inputs, outputs=outputs)
        return sealed(
            TensorflowModel.at(tmp_path / "saved", format="saved-model", signature=signature, **fields)
        )

    return make


def convert(model: TensorflowModel, context: Any, **options: Any) -> Outputs:
    return Tf2onnx(Options(**options)).run(Inputs(model=model), context())


def session_of(outputs: Outputs) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(outputs.model.path, providers=["CPUExecutionProvider"])


def test_keras_digits_give_the_same_logits_within_rounding(converted: Any) -> None:
    stage, outputs, _ = converted
    verdicts = stage.judge(outputs, JudgeContext())
    assert [(verdict.gate, verdict.outcome) for verdict in verdicts] == [
        ("parity.max_abs_error", Outcome.PASS),
        ("parity.max_rel_error", Outcome.PASS),
        ("parity.cosine", Outcome.PASS),
        ("parity.top1", Outcome.PASS),
    ]
    assert {verdict.subject for verdict in verdicts} == {outputs.model.digest}
    cases = [row["case"] for row in outputs.report.details["parity"]]
    assert cases[:3] == ["random inputs, batch 1", "random inputs, batch 3", "random inputs, batch 16"]
    assert sum(row["samples"] for row in outputs.report.details["parity"][3:]) == 256


def test_graph_is_as_the_signature_says_and_answers_golden_samples(converted: Any) -> None:
    _, outputs, _ = converted
    model = onnx.load(outputs.model.path)
    assert graph.graph_differences(model, DIGITS) == []
    assert graph.opset_of(model) == outputs.model.opset == 18
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    golden = np.load(SPECS / "data" / "keras-digits-golden.npz")
    (logits,) = session_of(outputs).run(["logits"], {"image": golden["image"]})
    np.testing.assert_allclose(logits, golden["logits"], rtol=1e-4, atol=1e-4)


def test_names_of_the_layers_stay_without_counters(converted: Any) -> None:
    nodes = onnx.load(converted[1].model.path).graph.node
    assert [node.name for node in nodes if "conv_0" in node.name or "norm_0" in node.name]
    assert [node.name for node in nodes if "__" in node.name] == []


def test_nothing_is_printed_and_the_log_has_no_noise(
    converted: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    assert converted[2] == []
    assert capfd.readouterr() == ("", "")


def test_other_process_with_other_hashes_gives_the_same_digest_whatever_its_user_wishes_for_keras(
    converted: Any, tmp_path: Path
) -> None:
    """Importing TensorFlow leaves the environment as it was, writes nothing and says nothing."""
    model = digits(tmp_path / "somewhere-else")
    script = (
        "import os, sys; from pathlib import Path\n"
        "before = dict(os.environ)\n"
        "from shipctl_plugins._sources.tensorflow_source import import_tensorflow\n"
        "tf, keras = import_tensorflow()\n"
        "import numpy as np\n"
        "assert tf.constant(np.ones(2)).numpy().sum() == 2\n"
        "assert (keras.config.backend(), keras.config.floatx()) == ('tensorflow', 'float32')\n"
        "assert dict(os.environ) == before, dict(os.environ)\n"
        "assert os.listdir(Path.home()) == ['.keras'], os.listdir(Path.home())\n"
        "from shipctl.stages.artifacts import TensorflowModel\n"
        "from shipctl.stages.context import StageContext\n"
        "from shipctl_plugins.convert.tf2onnx import Inputs, Options, Tf2onnx\n"
        "model = TensorflowModel.model_validate_json(sys.argv[1]).located(Path(sys.argv[2]))\n"
        "Path(sys.argv[3]).mkdir()\n"
        "print(Tf2onnx(Options()).run(Inputs(model=model), StageContext(workdir=Path(sys.argv[3]))).model.digest)\n"
        "assert dict(os.environ) == before, dict(os.environ)\n"
    )
    # whose wishes for Keras must not reach a model
    home = tmp_path / "home"
    (home / ".keras").mkdir(parents=True)
    (home / ".keras" / "keras.json").write_text('{"floatx": "float16", "backend": "torch"}')
    command = [sys.executable, "-c", script, model.model_dump_json(), str(model.root), str(tmp_path / "work")]
    environment = {**os.environ, "PYTHONHASHSEED": "77", "HOME": str(home), "KERAS_BACKEND": "torch"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    said = (done.returncode, done.stdout.strip(), done.stderr)
    assert said == (0, converted[1].model.digest, "")


def test_saved_model_is_converted_like_the_file(
    converted: Any, keras: Any, tmp_path: Path, context: Any
) -> None:
    network = keras.saving.load_model(SPECS / "models" / "keras-digits.keras", compile=False)
    network.export(tmp_path / "saved", verbose=False)
    model = sealed(TensorflowModel.at(tmp_path / "saved", format="saved-model", signature=DIGITS))
    outputs = convert(model, context)
    golden = np.load(SPECS / "data" / "keras-digits-golden.npz")
    (logits,) = session_of(outputs).run(["logits"], {"image": golden["image"]})
    np.testing.assert_allclose(logits, golden["logits"], rtol=1e-4, atol=1e-4)


def test_inputs_and_outputs_go_by_name_in_the_order_of_the_signature(
    keras: Any, saved: Any, context: Any
) -> None:
    left, right = keras.Input((3,), name="left"), keras.Input((3,), name="right")
    total = keras.layers.Subtract()([left, right])
    network = keras.Model(
        {"left": left, "right": right}, {"difference": total, "twice": keras.layers.Add()([total, total])}
    )
    shape = ("batch", 3)
    model = saved(
        network,
        (
            TensorSpec(name="right", dtype="float32", shape=shape),
            TensorSpec(name="left", dtype="float32", shape=shape),
        ),
        (
            TensorSpec(name="twice", dtype="float32", shape=shape),
            TensorSpec(name="difference", dtype="float32", shape=shape),
        ),
    )
    session = session_of(convert(model, context))
    assert [value.name for value in session.get_inputs()] == ["right", "left"]
    ones = np.ones((5, 3), np.float32)
    twice, difference = session.run(None, {"right": ones, "left": 4 * ones})
    assert (twice[0, 0], difference[0, 0]) == (6, 3)


def test_made_up_names_go_by_order(keras: Any, saved: Any, context: Any) -> None:
    first, second = keras.Input((3,)), keras.Input((3,))
    network = keras.Model([first, second], keras.layers.Subtract()([first, second]))
    shape = ("batch", 3)
    model = saved(
        network,
        tuple(TensorSpec(name=name, dtype="float32", shape=shape) for name in ("a", "b")),
        (TensorSpec(name="c", dtype="float32", shape=shape),),
    )
    ones = np.ones((2, 3), np.float32)
    (answer,) = session_of(convert(model, context)).run(None, {"a": 4 * ones, "b": ones})
    assert answer[0, 0] == 3


def test_sequential_model_of_a_fixed_batch_is_compared_at_that(keras: Any, saved: Any, context: Any) -> None:
    network = keras.Sequential([keras.Input(batch_shape=(2, 4)), keras.layers.Dense(3)])
    fixed_in = TensorSpec(name="x", dtype="float32", shape=(2, 4))
    fixed_out = TensorSpec(name="y", dtype="float32", shape=(2, 3))
    outputs = convert(saved(network, (fixed_in,), (fixed_out,)), context)
    assert [row["case"] for row in outputs.report.details["parity"]] == ["random inputs, batch 2"]


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        (
            (TensorSpec(name="x", dtype="float32", shape=("batch", 1, 4)),),
            (ONE_OUT,),
            (
                "the model's inputs are x: float32[?, 4]; declared is x: float32[batch, 1, 4]; correct the signature "
                "or the model"
            ),
        ),
        (
            (TensorSpec(name="x", dtype="float64", shape=("batch", 4)),),
            (ONE_OUT,),
            (
                "the model's inputs are x: float32[?, 4]; declared is x: float64[batch, 4]; correct the signature or "
                "the model"
            ),
        ),
        (
            (ONE_IN,),
            (ONE_OUT, TensorSpec(name="z", dtype="float32", shape=("batch", 3))),
            (
                "the model's outputs are scores: float32[?, 3]; declared are y: float32[batch, 3], z: float32[batch, 3]"
                "; name them alike in the spec"
            ),
        ),
        (
            (ONE_IN, TensorSpec(name="mask", dtype="float32", shape=("batch", 4))),
            (ONE_OUT,),
            (
                "the model's inputs are x: float32[?, 4]; declared are x: float32[batch, 4], mask: float32[batch, 4]; "
                "name them alike in the spec"
            ),
        ),
    ],
)
def test_signature_that_does_not_fit_lists_what_is_there(
    keras: Any, saved: Any, context: Any, inputs: Any, outputs: Any, message: str
) -> None:
    network = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3, name="scores")])
    with pytest.raises(StageError) as caught:
        convert(saved(network, inputs, outputs), context)
    assert str(caught.value) == message


def test_lambda_layer_runs_only_when_trusted(keras: Any, saved: Any, context: Any) -> None:
    network = keras.Sequential(
        [keras.Input((4,)), keras.layers.Lambda(lambda x: x[:, :3] * 2, name="twice", output_shape=(3,))]
    )
    with pytest.raises(StageError) as caught:
        convert(saved(network), context)
    assert str(caught.value) == (
        "net.keras has code of its own in layer twice (Lambda), which runs when it is opened; write it with Keras's "
        "operations, or `trust_pickle: true` below `model:` if you trust who made it"
    )
    outputs = convert(saved(network, trusted=True), context)
    (answer,) = session_of(outputs).run(None, {"x": np.ones((1, 4), np.float32)})
    assert answer.tolist() == [[2, 2, 2]]


def test_saved_model_that_reads_files_is_refused(tf: Any, exported: Any, context: Any) -> None:
    def leak(x: Any) -> dict[str, Any]:
        return {"y": x[:, :3] + tf.cast(tf.strings.length(tf.io.read_file("/etc/hostname")), tf.float32)}

    with pytest.raises(StageError) as caught:
        convert(exported({"serving_default": leak}), context)
    assert str(caught.value) == (
        "the SavedModel has the operators ReadFile, which reach any file of this machine; export it without them, or "
        "write `trust_pickle: true` below `model:` if you trust who made it"
    )


def test_signature_of_a_saved_model_is_chosen_by_name_or_by_what_it_has(exported: Any, context: Any) -> None:
    functions = {
        "double": lambda x: {"y": x[:, :3] * 2},
        "other": lambda x: {"z": x[:, :3] * 3},
    }
    model = exported(functions)
    ones = {"x": np.ones((1, 4), np.float32)}
    assert session_of(convert(model, context)).run(None, ones)[0][0, 0] == 2
    assert session_of(convert(model, context, signature_name="other")).run(None, ones)[0][0, 0] == 3
    with pytest.raises(StageError) as caught:
        convert(model, context, signature_name="predict")
    assert str(caught.value) == (
        "the SavedModel has no signature 'predict', only double(x: float32[?, 4]) -> y: float32[?, 3]; "
        "other(x: float32[?, 4]) -> z: float32[?, 3]; correct `signature_name`"
    )


def test_several_inputs_of_a_saved_model_are_not_guessed(exported: Any, context: Any) -> None:
    inputs = (ONE_IN, TensorSpec(name="w", dtype="float32", shape=("batch", 4)))
    model = exported({"serving_default": lambda x, w: {"y": (x - w)[:, :3]}}, inputs)
    renamed = tuple(spec.model_copy(update={"name": f"my_{spec.name}"}) for spec in inputs)
    signature = Signature(inputs=renamed, outputs=(ONE_OUT,))
    with pytest.raises(StageError) as caught:
        convert(model.model_copy(update={"signature": signature}).located(model.root), context)
    assert "declared are my_x: float32[batch, 4], my_w: float32[batch, 4]; name them alike" in str(
        caught.value
    )


def test_operator_that_onnx_does_not_have_is_named(tf: Any, exported: Any, context: Any) -> None:
    model = exported({"serving_default": lambda x: {"y": tf.math.lgamma(x[:, :3])}})
    with pytest.raises(StageError) as caught:
        convert(model, context)
    assert str(caught.value).endswith(
        " has no ONNX of opset 18 for TensorFlow's Lgamma; write that part of the model otherwise"
    )


def test_graph_that_computes_something_else_does_not_pass(tf: Any, exported: Any, context: Any) -> None:
    model = exported({"serving_default": lambda x: {"y": x[:, :3] + tf.random.normal(tf.shape(x[:, :3]))}})
    stage = Tf2onnx(Options())
    outputs = stage.run(Inputs(model=model), context())
    outcomes = {verdict.gate: verdict.outcome for verdict in stage.judge(outputs, JudgeContext())}
    assert outcomes["parity.max_rel_error"] is Outcome.FAIL


def test_output_whose_size_is_not_as_declared_fails(exported: Any, context: Any) -> None:
    model = exported({"serving_default": lambda x: {"y": x[x[:, 0] > 100][:, :3]}})
    with pytest.raises(
        StageError, match=r"^the model is not as the signature says: output 'y' has shape \[0, 3\]"
    ):
        convert(model, context)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "net.keras is not a file of Keras 3: File is not a zip file; save the model again with model.save(…)"),
        (b"\x89HDF\r\n\x1a\n" * 9, ("net.keras is not a file of Keras 3: File is not a zip file; save the model again "
         "with model.save(…)")),
    ],
)  # fmt: skip
def test_file_that_is_no_keras_file_fails(
    tf: Any, tmp_path: Path, context: Any, content: bytes, message: str
) -> None:
    (tmp_path / "net.keras").write_bytes(content)
    signature = Signature(inputs=(ONE_IN,), outputs=(ONE_OUT,))
    model = sealed(TensorflowModel.at(tmp_path / "net.keras", format="keras", signature=signature))
    with pytest.raises(StageError) as caught:
        convert(model, context)
    assert str(caught.value) == message


def test_truncated_saved_model_fails(exported: Any, context: Any) -> None:
    model = exported({"serving_default": lambda x: {"y": x[:, :3]}})
    path = model.root / "saved_model.pb"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StageError, match=r"^saved_model\.pb cannot be read: .*; export the model again$"):
        convert(model, context)


def test_opset_that_tf2onnx_does_not_write_is_refused() -> None:
    with pytest.raises(ValidationError, match="less than or equal to 18"):
        Options(opset=19)


def test_signature_name_for_a_keras_file_is_refused_in_the_plan(tmp_path: Path) -> None:
    signature = Signature(inputs=(ONE_IN,), outputs=(ONE_OUT,))
    keras_file = TensorflowModel(format="keras", signature=signature)
    ctx = CheckContext(
        project=tmp_path, pipeline="p", inputs={"model": (Upstream("model", "", artifact=keras_file),)}
    )
    Tf2onnx(Options()).check(ctx)
    with pytest.raises(SpecError) as caught:
        Tf2onnx(Options(signature_name="predict")).check(ctx)
    assert str(caught.value) == "a .keras file has no signatures to choose from; take `signature_name` out"


def test_model_too_large_for_one_file_fails(
    tf: Any, tmp_path: Path, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "INLINE_LIMIT", 1000)
    with pytest.raises(
        StageError, match=r"^the model has \d+ bytes, and tf2onnx makes graphs of one file, which"
    ):
        convert(digits(tmp_path), context)
