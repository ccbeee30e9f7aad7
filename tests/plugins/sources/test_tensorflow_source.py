"""Opening TensorFlow models from source."""

from __future__ import annotations

import gc
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shipctl.errors import StageError
from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import TensorflowModel
from shipctl.testing.samples import sealed
from shipctl_plugins._sources.opening import open_source
from shipctl_plugins._sources.tensorflow_source import import_tensorflow

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


@pytest.fixture(scope="module")
def keras() -> Any:
    keras = import_tensorflow()[1]
    gc.freeze()  # Keras looks for garbage whenever a model is closed, and here is none
    return keras


@pytest.fixture
def digits(keras: Any) -> TensorflowModel:
    path = SPECS / "models" / "keras-digits.keras"
    return sealed(TensorflowModel.at(path, format="keras", signature=DIGITS))


def test_keras_file_answers_golden_samples(digits: TensorflowModel) -> None:
    golden = np.load(SPECS / "data" / "keras-digits-golden.npz")
    with open_source(digits) as source:
        answers = source.run({"image": golden["image"]})
    assert list(answers) == ["logits"]
    np.testing.assert_allclose(answers["logits"], golden["logits"], rtol=1e-4, atol=1e-4)


def test_saved_model_answers_golden_samples(keras: Any, digits: TensorflowModel, tmp_path: Path) -> None:
    keras.saving.load_model(digits.root, compile=False).export(tmp_path / "saved", verbose=False)
    model = sealed(TensorflowModel.at(tmp_path / "saved", format="saved-model", signature=DIGITS))
    golden = np.load(SPECS / "data" / "keras-digits-golden.npz")
    with open_source(model) as source:
        answers = source.run({"image": golden["image"][:3]})
    np.testing.assert_allclose(answers["logits"], golden["logits"][:3], rtol=1e-4, atol=1e-4)


def test_dropout_and_normalisation_are_in_inference_mode(keras: Any, tmp_path: Path) -> None:
    network = keras.Sequential(
        [keras.Input((4,)), keras.layers.BatchNormalization(), keras.layers.Dropout(0.9)]
    )
    network.save(tmp_path / "net.keras")
    x = TensorSpec(name="x", dtype="float32", shape=("batch", 4))
    signature = Signature(inputs=(x,), outputs=(x.model_copy(update={"name": "y"}),))
    model = sealed(TensorflowModel.at(tmp_path / "net.keras", format="keras", signature=signature))
    feed = {"x": np.ones((3, 4), np.float32)}
    with open_source(model) as source:
        np.testing.assert_allclose(source.run(feed)["y"], feed["x"], rtol=1e-3)


def test_model_that_fails_says_on_what(digits: TensorflowModel) -> None:
    with (
        open_source(digits) as source,
        pytest.raises(StageError, match=r"^the model fails on image float32\[2, 7, 8, 1\]: \w+: "),
    ):
        source.run({"image": np.zeros((2, 7, 8, 1), np.float32)})


def test_files_beside_the_model_do_not_matter_and_a_second_model_does(keras: Any, tmp_path: Path) -> None:
    content = (SPECS / "models" / "keras-digits.keras").read_bytes()
    (tmp_path / "net.keras").write_bytes(content)
    (tmp_path / "notes.txt").write_text("by hand")
    with open_source(sealed(TensorflowModel.at(tmp_path, format="keras", signature=DIGITS))):
        pass
    (tmp_path / "other.keras").write_bytes(content)
    with (
        pytest.raises(StageError) as caught,
        open_source(sealed(TensorflowModel.at(tmp_path, format="keras", signature=DIGITS))),
    ):
        pass
    assert str(caught.value) == (
        "the model should be one .keras file, found: net.keras, other.keras; take others out of `model.files`"
    )
