"""Parity of models that answer with labels: labels agree or they do not, values are near each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shipctl.stages.artifacts import Report
from shipctl.stages.verdicts import Verdict, compare
from shipctl_plugins._onnx.parity import Parity, ParityOptions, judge_parity

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]


class Answers(Parity):
    """Gathers, besides the errors of floats, how many labels (integers or texts) are the same.

    ``parity.agreement`` is the fraction of samples with the same label, over all runs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.labels: list[dict[str, Any]] = []

    def add(self, case: str, before: Mapping[str, Array], after: Mapping[str, Array]) -> None:
        """Compare the outputs (same names and shapes) of one run; ``case`` names it in the report."""
        floats = {name: array for name, array in before.items() if array.dtype.kind == "f"}
        super().add(case, floats, after)
        for name in before.keys() - floats.keys():
            same = int((before[name] == after[name]).sum())
            self.labels.append({"case": case, "output": name, "samples": before[name].size, "same": same})

    def metrics(self) -> dict[str, float]:
        """Return the worst errors over all runs, and the agreement, by name."""
        found = super().metrics()
        if self.labels:
            samples = sum(row["samples"] for row in self.labels)
            found["parity.agreement"] = sum(row["same"] for row in self.labels) / samples
        return found

    def details(self) -> dict[str, Any]:
        """Return a table with a row per run and output of each kind."""
        return super().details() | {"labels": self.labels}


def judge_answers(report: Report, bounds: ParityOptions, min_agreement: float) -> Sequence[Verdict]:
    """Compare a report of :class:`Answers` with its bounds, those of the kinds of outputs that the model has."""
    verdicts = list(judge_parity(report, bounds)) if report.details.get("parity") else []
    if report.details.get("labels") or not verdicts:
        name = "parity.agreement"
        agreement = compare(
            name, report.metrics.get(name), ">=", min_agreement, subject=report.subject, source=report.digest
        )
        verdicts.append(agreement)
    return verdicts
