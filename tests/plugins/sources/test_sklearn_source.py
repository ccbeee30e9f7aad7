"""Opening scikit-learn models from source."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shipctl.errors import StageError
from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import SklearnModel
from shipctl.testing.samples import sealed
from shipctl_plugins._sources.opening import open_source

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("sklearn", "skops")),
    reason="scikit-learn or skops is not installed: pip install 'shipctl[sklearn]'",
)

SPECS = Path(__file__).parents[3] / "specs"
X = TensorSpec(name="x", dtype="float32", shape=("batch", 3))
LABEL = TensorSpec(name="label", dtype="int64", shape=("batch",))
PROBABILITIES = TensorSpec(name="probabilities", dtype="float32", shape=("batch", 2))
TABLE = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
CLASSES = (TABLE[:, 0] > 0).astype(np.int64)


@pytest.fixture
def source(tmp_path: Path) -> Any:
    """Save an object with skops and return it as source."""

    def make(found: Any, inputs: Any = (X,), outputs: Any = (LABEL,), **fields: Any) -> SklearnModel:
        import skops.io

        skops.io.dump(found, tmp_path / "net.skops")
        signature = Signature(inputs=inputs, outputs=outputs)
        return sealed(SklearnModel.at(tmp_path / "net.skops", format="skops", signature=signature, **fields))

    return make


def classifier() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression().fit(TABLE, CLASSES)


def refusal(model: SklearnModel) -> str:
    with pytest.raises(StageError) as caught, open_source(model):
        pass
    return str(caught.value)


def test_forest_answers_golden_samples() -> None:
    signature = Signature(
        inputs=(TensorSpec(name="measurements", dtype="float32", shape=("batch", 30)),),
        outputs=(PROBABILITIES, LABEL),
    )
    path = SPECS / "models" / "forest.skops"
    model = sealed(SklearnModel.at(path, format="skops", signature=signature, trusted=True))
    golden = np.load(SPECS / "data" / "forest-golden.npz")
    with open_source(model) as found:
        answers = found.run({"measurements": golden["measurements"]})
    assert list(answers) == ["probabilities", "label"]
    assert answers["label"].tolist() == golden["label"].tolist()
    np.testing.assert_array_equal(answers["probabilities"], golden["probabilities"])


def test_columns_go_where_the_estimator_has_them_by_name(source: Any) -> None:
    estimator = classifier()
    estimator.feature_names_in_ = np.array(["a", "b", "c"], dtype=object)
    shuffled = tuple(TensorSpec(name=name, dtype="float32", shape=("batch", 1)) for name in ("c", "a", "b"))
    feed = {name: TABLE[:, index : index + 1] for index, name in enumerate("abc")}
    with open_source(source(estimator, shuffled, trusted=True)) as found:
        assert found.run(feed)["label"].tolist() == classifier().predict(TABLE).tolist()


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (
            (LABEL, LABEL.model_copy(update={"name": "again"})),
            ("a LogisticRegression answers with labels (int64 or string) and probabilities (float32); declared are "
            "label: int64[batch], again: int64[batch]"),
        ),
        ((PROBABILITIES, PROBABILITIES.model_copy(update={"name": "again"})),
         ("a LogisticRegression answers with labels (int64 or string) and probabilities (float32); declared are "
         "probabilities: float32[batch, 2], again: float32[batch, 2]")),
    ],
)  # fmt: skip
def test_outputs_that_a_classifier_does_not_have_are_refused(source: Any, outputs: Any, message: str) -> None:
    assert refusal(source(classifier(), outputs=outputs)) == message


def test_classifier_without_probabilities_is_refused_for_them(source: Any) -> None:
    from sklearn.linear_model import RidgeClassifier

    model = source(RidgeClassifier().fit(TABLE, CLASSES), outputs=(PROBABILITIES,))
    assert (
        refusal(model)
        == "this RidgeClassifier has no probabilities; declare its labels alone (int64 or string)"
    )


def test_two_outputs_of_a_regressor_are_refused(source: Any) -> None:
    from sklearn.linear_model import Ridge

    values = tuple(TensorSpec(name=name, dtype="float32", shape=("batch",)) for name in ("low", "high"))
    assert refusal(source(Ridge().fit(TABLE, CLASSES), outputs=values)) == (
        "a Ridge answers with one output of floats; declared are low: float32[batch], high: float32[batch]"
    )


def test_what_is_no_fitted_estimator_is_refused(source: Any) -> None:
    from sklearn.cluster import KMeans
    from sklearn.linear_model import LogisticRegression

    assert refusal(source({"weights": TABLE})) == (
        "the file holds a dict, not a scikit-learn estimator; save the estimator itself"
    )
    assert refusal(source(KMeans(2, n_init=1).fit(TABLE))) == (
        "a KMeans is neither a classifier nor a regressor; save a model that ends in one"
    )
    assert (
        refusal(source(LogisticRegression())) == "the LogisticRegression is not fitted; save it after `fit`"
    )


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            (X.model_copy(update={"shape": ("batch", 2)}),),
            "the LogisticRegression takes 3 features, declared are 2: x: float32[batch, 2]",
        ),
        (
            (X.model_copy(update={"shape": ("batch", 1, 3)}),),
            "input x: float32[batch, 1, 3] is no table; declare [batch, n] with the number of features",
        ),
        (
            (
                X.model_copy(update={"shape": ("batch", 2)}),
                TensorSpec(name="n", dtype="int64", shape=("batch", 1)),
            ),
            "the inputs have several types (float32, int64); features come as one, such as float32",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused(source: Any, inputs: Any, message: str) -> None:
    assert refusal(source(classifier(), inputs)) == message


def test_broken_file_is_refused(source: Any) -> None:
    model = source(classifier())
    model.root.write_bytes(model.root.read_bytes()[:50])
    assert refusal(model) == (
        "net.skops is not a skops file: BadZipFile: File is not a zip file; save it again with skops.io.dump"
    )


def test_pickle_that_does_not_open_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "net.pkl").write_bytes(b"\x80\x04cno_such_module\nThing\n.")
    signature = Signature(inputs=(X,), outputs=(LABEL,))
    model = SklearnModel.at(tmp_path / "net.pkl", format="pickle", signature=signature, trusted=True)
    said = refusal(sealed(model))
    assert said == "net.pkl does not open: ModuleNotFoundError: No module named 'no_such_module'"


def test_sample_that_the_estimator_refuses_says_on_what(source: Any) -> None:
    with open_source(source(classifier())) as found, pytest.raises(StageError) as caught:
        found.run({"x": np.full((2, 3), np.nan, np.float32)})
    assert str(caught.value) == "the estimator's predict fails on x float32[2, 3]: Input X contains NaN."
