"""scikit-learn estimators from source: opened with what may be trusted only, called with named arrays."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from shipctl.errors import StageError
from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import SklearnModel
from shipctl_plugins._onnx.session import first_line
from shipctl_plugins._sources.files import main_file

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

Role = Literal["predict", "predict_proba"]
SUFFIXES: Mapping[str, frozenset[str]] = {
    "skops": frozenset({".skops"}),
    "pickle": frozenset({".pkl", ".pickle", ".joblib"}),
}
NUMBERS = frozenset({"float16", "float32", "float64"})
_SHOWN = 5


class SklearnSource:
    """A fitted classifier or regressor, or a pipeline that ends in one."""

    def __init__(self, estimator: Any, signature: Signature, trusted: Sequence[str] = ()) -> None:
        """Find out which of the estimator's answers each output is.

        :raises StageError: if the estimator is none, not fitted, or cannot answer what the signature says
        """
        self.estimator, self.signature = estimator, signature
        self.trusted_types = tuple(trusted)
        """The types in a skops file that skops itself does not know to be harmless."""
        _require_estimator(estimator)
        self.inputs = _ordered_inputs(estimator, signature)
        """The inputs in the order in which the estimator has its features."""
        self.roles: dict[str, Role] = _roles(estimator, signature.outputs)
        """Output to the method that answers it."""

    @property
    def features(self) -> int:
        """How many features the estimator takes."""
        return sum(int(spec.shape[1]) for spec in self.inputs)

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs for ``feed`` by the signature's names.

        :raises StageError: if the estimator fails on it
        """
        import numpy as np

        answers: dict[str, Array] = {}
        table = np.concatenate([feed[spec.name] for spec in self.inputs], axis=1)
        for spec in self.signature.outputs:
            try:
                with warnings.catch_warnings():
                    # it was fitted on a table with names, and these are its columns in that order
                    warnings.filterwarnings("ignore", message="X does not have valid feature names")
                    answer = np.asarray(getattr(self.estimator, self.roles[spec.name])(table))
            except Exception as exc:  # an estimator may raise anything
                shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in feed.items())
                message = f"the estimator's {self.roles[spec.name]} fails on {shapes}: {first_line(exc)}"
                raise StageError(message) from exc
            answers[spec.name] = _as_declared(answer, spec)
        return answers


@contextmanager
def sklearn_source(model: SklearnModel, *, threads: int) -> Iterator[SklearnSource]:
    """Open ``model``; it keeps at most ``threads`` threads busy.

    :raises StageError: if it cannot be opened, holds what is not to be trusted, or does not fit its signature
    """
    from threadpoolctl import threadpool_limits

    estimator, trusted = load_estimator(model)
    with threadpool_limits(threads):
        yield SklearnSource(estimator, model.signature, trusted)


def load_estimator(model: SklearnModel) -> tuple[Any, Sequence[str]]:
    """Return the object in ``model``'s file, and the names of the types that it took trust to open.

    :raises StageError: if it cannot be opened, or takes trust that the spec does not give
    """
    path = main_file(model, SUFFIXES[model.format])
    if model.format == "skops":
        return _load_skops(path, trusted=model.trusted)
    if not model.trusted:
        message = (
            f"{path.name} is a pickle, which can run any code when it is opened; save it as a .skops file, or write "
            "`trust_pickle: true` below `model:` if you trust who made it"
        )
        raise StageError(message)
    import joblib

    try:
        return joblib.load(path), ()
    except Exception as exc:  # a pickle may raise anything
        message = f"{path.name} does not open: {type(exc).__name__}: {first_line(exc)}"
        raise StageError(message) from exc


def _load_skops(path: Path, *, trusted: bool) -> tuple[Any, Sequence[str]]:
    import skops.io

    try:
        unknown = skops.io.get_untrusted_types(file=path)
    except Exception as exc:  # a broken file makes it raise what its reader raises
        reason = f"{type(exc).__name__}: {first_line(exc)}"
        message = f"{path.name} is not a skops file: {reason}; save it again with skops.io.dump"
        raise StageError(message) from exc
    if unknown and not trusted:
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        message = (
            f"{path.name} holds types that skops does not trust: {', '.join(unknown[:_SHOWN])}{more}; write "
            "`trust_pickle: true` below `model:` if you trust who made it"
        )
        raise StageError(message)
    try:
        return skops.io.load(path, trusted=unknown), unknown
    except Exception as exc:  # the same
        message = f"{path.name} does not open: {type(exc).__name__}: {first_line(exc)}"
        raise StageError(message) from exc


def _require_estimator(estimator: Any) -> None:
    from sklearn.base import BaseEstimator, is_classifier, is_regressor
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    kind = type(estimator).__name__
    if not isinstance(estimator, BaseEstimator):
        message = f"the file holds a {kind}, not a scikit-learn estimator; save the estimator itself"
        raise StageError(message)
    if not is_classifier(estimator) and not is_regressor(estimator):
        message = f"a {kind} is neither a classifier nor a regressor; save a model that ends in one"
        raise StageError(message)
    try:
        check_is_fitted(estimator)
    except NotFittedError as exc:
        message = f"the {kind} is not fitted; save it after `fit`"
        raise StageError(message) from exc


def _ordered_inputs(estimator: Any, signature: Signature) -> tuple[TensorSpec, ...]:
    """Return the inputs in the order of the features: as the estimator names them, else as declared."""
    for spec in signature.inputs:
        if len(spec.shape) != 2 or isinstance(spec.shape[1], str):  # noqa: PLR2004  (samples and features)
            message = f"input {spec} is no table; declare [batch, n] with the number of features"
            raise StageError(message)
    kinds = {spec.dtype for spec in signature.inputs}
    if len(kinds) > 1:
        message = f"the inputs have several types ({', '.join(sorted(kinds))}); features come as one, such as float32"
        raise StageError(message)
    names = [str(name) for name in getattr(estimator, "feature_names_in_", ())]
    specs = list(signature.inputs)
    if len(specs) > 1 and {spec.name for spec in specs} == set(names):
        specs.sort(key=lambda spec: names.index(spec.name))
    declared = sum(int(spec.shape[1]) for spec in specs)
    fitted = getattr(estimator, "n_features_in_", declared)
    if fitted != declared:
        shown = ", ".join(map(str, signature.inputs))
        message = f"the {type(estimator).__name__} takes {fitted} features, declared are {declared}: {shown}"
        raise StageError(message)
    return tuple(specs)


def _roles(estimator: Any, outputs: Sequence[TensorSpec]) -> dict[str, Role]:
    """Return which method answers each output: probabilities are a classifier's floats."""
    from sklearn.base import is_classifier

    kind = type(estimator).__name__
    classifier = is_classifier(estimator)
    roles: dict[str, Role] = {
        spec.name: "predict_proba" if classifier and spec.dtype in NUMBERS else "predict" for spec in outputs
    }
    if len(set(roles.values())) < len(roles):
        answers = (
            "labels (int64 or string) and probabilities (float32)" if classifier else "one output of floats"
        )
        message = f"a {kind} answers with {answers}; declared are {', '.join(map(str, outputs))}"
        raise StageError(message)
    if "predict_proba" in roles.values() and not hasattr(estimator, "predict_proba"):
        message = f"this {kind} has no probabilities; declare its labels alone (int64 or string)"
        raise StageError(message)
    return roles


def _as_declared(answer: Array, spec: TensorSpec) -> Array:
    """Return an answer in the declared precision, and a value per sample in as many dimensions as declared."""
    same_kind = {"f": "f", "i": "iu", "u": "iu", "b": "iub"}.get(answer.dtype.kind, "")
    if spec.dtype != "string":
        import numpy as np

        if np.dtype(spec.dtype).kind in same_kind:
            answer = answer.astype(spec.dtype)
    if answer.ndim == 1 and len(spec.shape) == 2 and spec.shape[1] == 1:  # noqa: PLR2004  (samples and values)
        answer = answer.reshape(-1, 1)
    return answer
