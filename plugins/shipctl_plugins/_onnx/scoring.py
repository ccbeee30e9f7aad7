"""Scores of a model on labelled samples: what `evaluate` reports and what a search for a better variant asks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from shipctl.errors import StageError
from shipctl.signature import Signature
from shipctl.stages.artifacts import Dataset
from shipctl.stages.base import StageOptions
from shipctl_plugins._onnx import arrays, scores
from shipctl_plugins._onnx.datasets import class_names

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

LABELS = ("label", "target")
"""Names under which labels are looked for when the options name none."""
METRICS = {
    "classification": ("accuracy", "f1.macro", "precision.macro", "recall.macro"),
    "regression": ("rmse", "mae"),
    "pairs": ("spearman", "pearson"),
}
"""The scores of each task, the main one first."""
_SHOWN = 5


class ScoringOptions(StageOptions):
    """How answers are compared with labels."""

    label: str | None = Field(
        default=None, description="The array with the labels; left out, `label` or `target`."
    )
    output: str | None = Field(
        default=None, description="The output that answers; left out, the model's first."
    )
    task: Literal["auto", "classification", "regression", "pairs"] = Field(
        default="auto",
        description="What the labels are; auto takes integers for classes and floats for values. With `pairs`, samples "
        "2i and 2i + 1 are a pair and both have its label: how alike they are, of which the order counts.",
    )
    threshold: float = Field(
        default=0.5,
        description="Where a single output per sample begins to mean class 1, in the output's own scale.",
    )
    batch: int = Field(default=64, ge=1, description="Samples per run, if the model's batch varies.")


@dataclass(frozen=True)
class Scored:
    """What came of scoring."""

    metrics: dict[str, float]
    """`accuracy`, `f1.macro`, …, or `rmse`, `mae`, or `spearman`, `pearson`; and `outputs.not_finite`."""
    main: str
    """The metric that counts unless the spec names another one: `accuracy`, `rmse` or `spearman`."""
    classes: list[dict[str, Any]] = field(default_factory=list)
    """A row per class."""
    confusion: list[list[int]] = field(default_factory=list)
    """Rows are true classes."""


class Scorer:
    """Labelled samples, ready to be answered."""

    def __init__(self, options: ScoringOptions, data: Dataset, signature: Signature) -> None:
        """Read the samples and their labels.

        :raises StageError: if labels or inputs are missing or do not fit each other
        """
        self.options, self.signature, self._data = options, signature, data
        named = arrays.load_arrays(data, signature)
        self.labels = self._labels(named)
        self.features = arrays.model_inputs(named, signature, data.role)
        self.output = options.output or signature.outputs[0].name
        if self.output not in {spec.name for spec in signature.outputs}:
            there = ", ".join(spec.name for spec in signature.outputs)
            message = f"the model has no output {self.output!r}, only {there}; correct `output`"
            raise StageError(message)
        samples = len(next(iter(self.features.values())))
        if len(self.labels) != samples:
            message = f"{data.role} data has {len(self.labels)} labels for {samples} samples"
            raise StageError(message)

    @property
    def samples(self) -> int:
        """How many there are."""
        return len(self.labels)

    def answers(self, run: Callable[[dict[str, Array]], Mapping[str, Array]]) -> Array:
        """Return the answering output for all samples, batch by batch; ``run`` maps inputs to outputs by name."""
        import numpy as np

        feeds = arrays.batches(self.features, self.options.batch, self.signature)
        return np.concatenate([self._answer(run(feed), count) for feed, count in feeds])

    def _answer(self, outputs: Mapping[str, Array], count: int) -> Array:
        if self.output not in outputs:
            there = ", ".join(outputs)
            message = (
                f"the model gives no output {self.output!r}, only {there}; correct `outputs` below `model`"
            )
            raise StageError(message)
        answer = outputs[self.output]
        if not answer.ndim:
            message = f"output {self.output!r} is one number for all samples, not one answer for each"
            raise StageError(message)
        return answer[:count]

    def score(self, answers: Array) -> Scored:
        """Compare answers with the labels; with answers that are not finite, every score is NaN."""
        import numpy as np

        task = self.options.task
        if task == "auto":
            task = "regression" if self.labels.dtype.kind == "f" else "classification"
        texts = answers.dtype.kind in scores.TEXTS
        not_finite = 0 if texts else int(np.size(answers) - np.isfinite(answers.astype(np.float64)).sum())
        base = {"outputs.not_finite": float(not_finite)}
        names = METRICS[task]
        if not_finite:
            return Scored(base | dict.fromkeys(names, math.nan), names[0])
        if task == "regression":
            return Scored(base | scores.regression(answers, self.labels), names[0])
        if task == "pairs":
            similarities = scores.pair_similarities(answers)
            return Scored(base | scores.correlation(similarities, self._grades()), names[0])
        predicted = scores.predicted_classes(answers, self.labels, self.options.threshold)
        self._require_all_classes(answers)
        found, rows, confusion = scores.classification(predicted, self.labels)
        return Scored(base | found, names[0], rows, confusion)

    def _require_all_classes(self, answers: Array) -> None:
        """See that labels that are places among sorted names are the model's: with a name missing they are not."""
        names = class_names(self._data)
        classes = answers.shape[-1] if answers.ndim > self.labels.ndim else 0
        if names is not None and classes and len(names) != classes:
            shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
            message = (
                f"{self._data.role} data has {len(names)} classes by name ({shown}) and output {self.output!r} "
                f"{classes}: the order of the names does not say which is which; give samples of every class, or their "
                "numbers as labels"
            )
            raise StageError(message)

    def _grades(self) -> Array:
        """Return the label of each pair."""
        import numpy as np

        first, second = self.labels[0::2], self.labels[1::2]
        if self.labels.ndim != 1 or not np.array_equal(first, second):
            message = (
                f"evaluation data: labels of shape {list(self.labels.shape)} are not those of pairs: samples 2i and "
                "2i + 1 have to have the same one"
            )
            raise StageError(message)
        return first

    def _labels(self, data: Mapping[str, Array]) -> Array:
        import numpy as np

        names = (self.options.label,) if self.options.label else LABELS
        name = next((name for name in names if name in data), None)
        if name is None:
            asked = " or ".join(map(repr, names))
            there = ", ".join(sorted(data))
            message = f"evaluation data has no array {asked}, only {there}; name the labels with `label`"
            raise StageError(message)
        labels = data[name]
        if labels.dtype.kind == "f" and not np.isfinite(labels).all():
            message = (
                f"evaluation data: array {name!r} has labels that are NaN or infinite; remove those samples"
            )
            raise StageError(message)
        return labels
