"""Stage `sklearn-export`."""

from __future__ import annotations

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
from shipctl.stages.artifacts import Artifact, Dataset, SklearnModel
from shipctl.stages.context import CheckContext, JudgeContext, StageContext, Upstream
from shipctl.stages.verdicts import Outcome
from shipctl.testing.conformance import StageConformance
from shipctl.testing.samples import sealed
from shipctl_plugins._onnx import graph
from shipctl_plugins.convert.sklearn_export import Inputs, Options, Outputs, SklearnExport

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("sklearn", "skl2onnx", "skops")),
    reason="scikit-learn, skl2onnx or skops is not installed: pip install 'shipctl[sklearn]'",
)

SPECS = Path(__file__).parents[3] / "specs"
LABEL = TensorSpec(name="label", dtype="int64", shape=("batch",))
PROBABILITIES = TensorSpec(name="probabilities", dtype="float32", shape=("batch", 2))
VALUE = TensorSpec(name="value", dtype="float32", shape=("batch",))
FOREST = Signature(
    inputs=(TensorSpec(name="measurements", dtype="float32", shape=("batch", 30)),),
    outputs=(LABEL, PROBABILITIES),
)
Fit = Callable[..., SklearnModel]


def forest(**fields: Any) -> SklearnModel:
    """The boosted trees of `specs/`."""
    path = SPECS / "models" / "forest.skops"
    return sealed(
        SklearnModel.at(path, **{"format": "skops", "signature": FOREST, "trusted": True, **fields})
    )


class TestConformance(StageConformance):
    stage = "sklearn-export"

    def inputs(self, tmp_path: Path) -> Mapping[str, Artifact | list[Artifact] | None]:
        """Boosted trees; the samples of the kit do not fit them."""
        return {"model": forest(), "calibration": None}


@pytest.fixture(scope="module")
def tables() -> dict[str, tuple[Any, Any]]:
    """Real samples: tumours with two classes, diabetes with a value."""
    from sklearn.datasets import load_breast_cancer, load_diabetes

    found = {"classes": load_breast_cancer(return_X_y=True), "values": load_diabetes(return_X_y=True)}
    return {name: (x.astype(np.float32), y) for name, (x, y) in found.items()}


@pytest.fixture
def fitted(tables: Any, tmp_path: Path) -> Fit:
    """Fit an estimator to real samples and return it as source, with its file at ``tmp_path/net.skops``."""

    def make(
        estimator: Any, outputs: tuple[TensorSpec, ...], *, table: str = "classes", dtype: str = "float32",
        features: int | None = None, labels: Any = None, **fields: Any,
    ) -> SklearnModel:  # fmt: skip
        import skops.io

        x, y = tables[table]
        x = x[:, :features]
        estimator.fit(x, y if labels is None else labels[y])
        skops.io.dump(estimator, tmp_path / "net.skops")
        inputs = (TensorSpec(name="x", dtype=dtype, shape=("batch", x.shape[1])),)
        np.savez(tmp_path / "calibration.npz", x=x.astype(dtype))
        signature = Signature(inputs=inputs, outputs=outputs)
        return sealed(
            SklearnModel.at(
                tmp_path / "net.skops",
                **{"format": "skops", "signature": signature, "trusted": True, **fields},
            )
        )

    return make


def convert(model: SklearnModel, context: Any, calibration: Path | None = None, **options: Any) -> Outputs:
    data = sealed(Dataset.at(calibration, role="calibration")) if calibration is not None else None
    return SklearnExport(Options(**options)).run(Inputs(model=model, calibration=data), context())


def judged(outputs: Outputs, **options: Any) -> dict[str, Outcome]:
    verdicts = SklearnExport(Options(**options)).judge(outputs, JudgeContext())
    return {verdict.gate: verdict.outcome for verdict in verdicts}


def session_of(outputs: Outputs) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(outputs.model.path, providers=["CPUExecutionProvider"])


def test_forest_gives_identical_labels_and_close_probabilities(context: Any) -> None:
    calibration = Dataset.at(SPECS / "data" / "forest-calibration.csv", role="calibration", format="csv")
    said: list[str] = []
    stage = SklearnExport(Options())
    inputs = Inputs(model=forest(), calibration=sealed(calibration))
    outputs = stage.run(inputs, context(log=said.append))
    assert judged(outputs) == dict.fromkeys(
        ("parity.max_rel_error", "parity.cosine", "parity.top1", "parity.agreement"), Outcome.PASS
    )
    assert outputs.report.metrics["parity.agreement"] == 1
    assert sum(row["samples"] for row in outputs.report.details["labels"]) == 1 + 3 + 16 + 120
    assert said == [
        "trusted, as the spec says: sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"
    ]
    model = onnx.load(outputs.model.path)
    assert graph.graph_differences(model, FOREST) == []
    assert {entry.domain for entry in model.opset_import} == {"", "ai.onnx.ml"}
    golden = np.load(SPECS / "data" / "forest-golden.npz")
    label, probabilities = session_of(outputs).run(None, {"measurements": golden["measurements"]})
    assert label.tolist() == golden["label"].tolist()
    np.testing.assert_allclose(probabilities, golden["probabilities"], atol=1e-6)


def estimator_of(name: str) -> Any:
    """Return an estimator that is not fitted, small enough to be fitted at once."""
    from sklearn import ensemble, linear_model, pipeline, preprocessing

    if name == "Pipeline":
        return pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression())
    few = {"HistGradientBoostingRegressor": {"max_iter": 5}, "Ridge": {}}.get(name, {"n_estimators": 5})
    return getattr(ensemble if few else linear_model, name)(**few)


@pytest.mark.parametrize("name", ["Pipeline", "GradientBoostingClassifier", "RandomForestClassifier"])
@pytest.mark.parametrize("outputs", [(LABEL, PROBABILITIES), (PROBABILITIES, LABEL), (PROBABILITIES,), (LABEL,)],
                         ids=lambda specs: "-".join(spec.name for spec in specs))  # fmt: skip
def test_classifiers_answer_what_is_declared_in_that_order(
    fitted: Fit, context: Any, tmp_path: Path, name: str, outputs: Any
) -> None:
    renamed = tuple(spec.model_copy(update={"name": f"my_{spec.name}"}) for spec in outputs)
    converted = convert(fitted(estimator_of(name), renamed), context, tmp_path / "calibration.npz")
    assert set(judged(converted).values()) == {Outcome.PASS}
    assert ("parity.agreement" in converted.report.metrics) == (LABEL in outputs)
    assert ("parity.max_rel_error" in converted.report.metrics) == (PROBABILITIES in outputs)
    assert [value.name for value in session_of(converted).get_outputs()] == [spec.name for spec in renamed]


@pytest.mark.parametrize("name", ["HistGradientBoostingRegressor", "RandomForestRegressor", "Ridge"])
@pytest.mark.parametrize("shape", [("batch",), ("batch", 1)], ids=str)
def test_regressors_give_a_value_per_sample(
    fitted: Fit, context: Any, tmp_path: Path, name: str, shape: Any
) -> None:
    estimator = estimator_of(name)
    model = fitted(estimator, (VALUE.model_copy(update={"shape": shape}),), table="values")
    outputs = convert(model, context, tmp_path / "calibration.npz")
    assert set(judged(outputs)) == {"parity.max_rel_error", "parity.cosine"}
    assert set(judged(outputs).values()) == {Outcome.PASS}
    sample = np.load(tmp_path / "calibration.npz")["x"][:2]
    (answer,) = session_of(outputs).run(None, {"x": sample})
    np.testing.assert_allclose(answer, estimator.predict(sample).reshape(answer.shape), rtol=1e-5)
    assert answer.ndim == len(shape)


def test_doubles_stay_doubles_where_they_are_declared(fitted: Fit, context: Any) -> None:
    from sklearn.linear_model import Ridge

    wide = TensorSpec(name="value", dtype="float64", shape=("batch", 1))
    outputs = convert(fitted(Ridge(), (wide,), table="values", dtype="float64"), context)
    assert outputs.report.metrics["parity.max_rel_error"] < 1e-12


def test_labels_may_be_texts(fitted: Fit, context: Any, tmp_path: Path) -> None:
    from sklearn.tree import DecisionTreeClassifier

    outputs = (LABEL.model_copy(update={"dtype": "string"}),)
    names = np.array(["malignant", "benign"])
    model = fitted(DecisionTreeClassifier(max_depth=3), outputs, labels=names)
    converted = convert(model, context, tmp_path / "calibration.npz")
    assert converted.report.metrics == {"parity.agreement": 1}


def test_column_inputs_are_joined_in_the_order_of_the_features(fitted: Fit, context: Any) -> None:
    import skops.io as sio
    from sklearn.linear_model import LogisticRegression

    model = fitted(LogisticRegression(max_iter=5000), (PROBABILITIES,), features=3)
    columns = tuple(TensorSpec(name=name, dtype="float32", shape=("batch", 1)) for name in ("r", "t", "p"))
    signature = Signature(inputs=columns, outputs=(PROBABILITIES,))
    outputs = convert(model.model_copy(update={"signature": signature}).located(model.root), context)
    assert set(judged(outputs).values()) == {Outcome.PASS}
    session = session_of(outputs)
    assert [value.name for value in session.get_inputs()] == ["r", "t", "p"]
    values = {"r": 14.0, "t": 20.0, "p": 90.0}
    (named,) = session.run(None, {name: np.full((1, 1), value, np.float32) for name, value in values.items()})
    estimator = sio.load(model.root)
    np.testing.assert_allclose(named, estimator.predict_proba([[14.0, 20.0, 90.0]]), rtol=1e-5)


@pytest.mark.slow
def test_tree_behind_a_scaler_that_falls_on_the_other_side_does_not_pass(
    fitted: Fit, context: Any, tmp_path: Path
) -> None:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = fitted(
        make_pipeline(StandardScaler(), HistGradientBoostingClassifier(max_iter=20)), (LABEL, PROBABILITIES)
    )
    outputs = convert(model, context, tmp_path / "calibration.npz", samples=1000)
    assert outputs.report.metrics["parity.agreement"] < 1
    assert judged(outputs)["parity.agreement"] is Outcome.FAIL
    assert judged(outputs, min_agreement=0.99)["parity.agreement"] is Outcome.PASS


def test_types_that_skops_does_not_trust_are_named(context: Any) -> None:
    with pytest.raises(StageError) as caught:
        convert(forest(trusted=False), context)
    assert str(caught.value) == (
        "forest.skops holds types that skops does not trust: "
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor; write `trust_pickle: true` below `model:` "
        "if you trust who made it"
    )


@pytest.mark.parametrize("name", ["net.pkl", "net.joblib"])
def test_pickle_is_opened_only_when_trusted(fitted: Fit, context: Any, tmp_path: Path, name: str) -> None:
    import pickle

    import joblib
    from sklearn.linear_model import LogisticRegression

    estimator = LogisticRegression(max_iter=5000)
    skopsed = fitted(estimator, (LABEL,), features=3)
    dump = (
        joblib.dump if name.endswith("joblib") else lambda found, path: path.write_bytes(pickle.dumps(found))
    )
    dump(estimator, tmp_path / name)
    fields = {"format": "pickle", "signature": skopsed.signature}
    with pytest.raises(StageError) as caught:
        convert(sealed(SklearnModel.at(tmp_path / name, **fields)), context)
    assert str(caught.value) == (
        f"{name} is a pickle, which can run any code when it is opened; save it as a .skops file, or write "
        "`trust_pickle: true` below `model:` if you trust who made it"
    )
    outputs = convert(sealed(SklearnModel.at(tmp_path / name, **fields, trusted=True)), context)
    assert set(judged(outputs).values()) == {Outcome.PASS}


def test_estimator_without_a_converter_is_named(fitted: Fit, context: Any) -> None:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.semi_supervised import LabelPropagation

    model = fitted(make_pipeline(StandardScaler(), LabelPropagation()), (LABEL,))
    with pytest.raises(StageError) as caught:
        convert(model, context)
    assert str(caught.value).endswith(
        " has no converter for sklearn.semi_supervised._label_propagation.LabelPropagation; replace that estimator"
    )


def test_wrong_number_of_features_fails(fitted: Fit, context: Any) -> None:
    from sklearn.linear_model import LogisticRegression

    model = fitted(LogisticRegression(max_iter=5000), (LABEL,), features=3)
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),), outputs=(LABEL,)
    )
    with pytest.raises(StageError) as caught:
        convert(model.model_copy(update={"signature": signature}).located(model.root), context)
    assert (
        str(caught.value) == "the LogisticRegression takes 3 features, declared are 4: x: float32[batch, 4]"
    )


def test_classes_that_are_not_as_many_as_declared_fail(fitted: Fit, context: Any) -> None:
    from sklearn.linear_model import LogisticRegression

    three = PROBABILITIES.model_copy(update={"shape": ("batch", 3)})
    with pytest.raises(StageError, match=r"^the converted graph is not as the signature says: output "
                                         r"'probabilities': dimension 1 is 2, declared is 3"):  # fmt: skip
        convert(fitted(LogisticRegression(max_iter=5000), (three,), features=3), context)


def test_graph_that_answers_otherwise_does_not_pass(
    fitted: Fit, context: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sklearn.linear_model import LogisticRegression

    from shipctl_plugins._sources.sklearn_source import SklearnSource

    run = SklearnSource.run

    def swapped(source: SklearnSource, feed: Any) -> Any:
        answers = run(source, feed)
        return {"label": 1 - answers["label"], "probabilities": answers["probabilities"][:, ::-1]}

    monkeypatch.setattr(SklearnSource, "run", swapped)
    model = fitted(LogisticRegression(max_iter=5000), (LABEL, PROBABILITIES), features=3)
    assert set(judged(convert(model, context, tmp_path / "calibration.npz")).values()) == {Outcome.FAIL}


def test_same_model_gives_the_same_bytes_after_another_one(fitted: Fit, context: Any) -> None:
    from sklearn.linear_model import Ridge

    first = convert(forest(), context).model.digest
    convert(fitted(Ridge(), (VALUE,), table="values"), context)
    assert convert(forest(), context).model.digest == first


def test_opset_beyond_what_skl2onnx_writes_is_refused() -> None:
    with pytest.raises(ValidationError, match="less than or equal to 22"):
        Options(opset=23)


def test_opset_is_the_newest_that_the_graph_may_use(context: Any) -> None:
    outputs = convert(forest(), context, opset=15)
    assert (outputs.model.opset or 0) <= 15


def test_input_of_a_type_that_skl2onnx_does_not_take_is_refused_in_the_plan(tmp_path: Path) -> None:
    half = Signature(inputs=(TensorSpec(name="x", dtype="float16", shape=("batch", 3)),), outputs=(LABEL,))
    model = SklearnModel(format="skops", signature=half)
    ctx = CheckContext(
        project=tmp_path, pipeline="p", inputs={"model": (Upstream("model", "", artifact=model),)}
    )
    with pytest.raises(SpecError) as caught:
        SklearnExport(Options()).check(ctx)
    assert str(caught.value) == (
        "skl2onnx takes no input x: float16[batch, 3]; declare one of float32, float64, int64, int32, bool, string"
    )


def test_calibration_data_without_the_input_fails(dataset: Any, context: Any) -> None:
    data = dataset("calibration", rows=np.zeros((2, 30), np.float32))
    with pytest.raises(StageError) as caught:
        SklearnExport(Options()).run(Inputs(model=forest(), calibration=data), context())
    assert str(caught.value) == (
        "calibration data has no array 'measurements', only rows; name its arrays after the model's inputs"
    )


def test_nothing_is_printed(context: Any, capfd: pytest.CaptureFixture[str]) -> None:
    ctx: StageContext = context()
    SklearnExport(Options()).run(Inputs(model=forest()), ctx)
    assert capfd.readouterr() == ("", "")
