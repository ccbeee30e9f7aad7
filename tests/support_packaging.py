"""The digits model as a pipeline hands it to `package`: repository, reports, data, and the history of it all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from shipctl.signature import Signature
from shipctl.stages.artifacts import Dataset, OnnxModel, Report, TritonRepository
from shipctl.stages.context import JudgeContext, Lineage, LineageNode, LineageSource, Objectives, StageContext
from shipctl.stages.verdicts import Verdict, compare
from shipctl.testing.samples import sealed
from shipctl_plugins._onnx.reports import write_report
from shipctl_plugins.package.package import Inputs, Options, Outputs, Package

SOURCE = "5" * 64
"""Digest of the source model."""
META: dict[str, Any] = {
    "name": "digits", "version": "1.0.0", "owner": "vision-team", "description": "Reads a digit.",
    "labels": {"tier": "demo"},
}  # fmt: skip
CARD = {
    "intended_use": "Reading digits on forms.", "limitations": "Small images only.",
    "training_data": "UCI optical digits.", "ethical_considerations": "None known.",
    "processing": "Pixels are divided by 16.",
}  # fmt: skip
FULL: dict[str, Any] = {"license": "Apache-2.0", "model_card": CARD, "review_date": "2027-01-01"}
"""Options with which every line is settled."""


@dataclass(frozen=True)
class Case:
    """Everything that `package` is given; change it with `but`."""

    workdir: Path
    model: OnnxModel
    reports: tuple[Report, ...]
    nodes: tuple[LineageNode, ...]
    sources: tuple[LineageSource, ...]
    repository: TritonRepository | None
    golden: Dataset | None
    calibration: Dataset | None
    evaluation: Dataset | None
    objectives: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def but(self, **changes: Any) -> Case:
        return replace(self, **changes)

    def without_report(self, title: str) -> Case:
        """Neither wired to the stage, nor did the stage run that made it."""
        gone = {report.digest for report in self.reports if report.title == title}
        assert gone
        nodes = tuple(
            node for node in self.nodes if not any(verdict.source in gone for verdict in node.verdicts)
        )
        return self.but(reports=tuple(r for r in self.reports if r.digest not in gone), nodes=nodes)

    @property
    def lineage(self) -> Lineage:
        return Lineage(
            spec="e" * 64, nodes=self.nodes, sources=self.sources, python="3.11.7", platform="linux-x86_64",
            revision="c" * 40, shipctl="0.1.0",
        )  # fmt: skip

    def context(self, log: Callable[[str], None] = lambda line: None) -> StageContext:
        number = len(list(self.workdir.glob("run-*")))
        folder = self.workdir / f"run-{number}"
        folder.mkdir()
        return StageContext(
            workdir=folder, objectives=Objectives(**self.objectives), lineage=self.lineage, log=log
        )

    @property
    def stage(self) -> Package:
        return Package(Options.model_validate(dict(self.options)))

    def run(self, log: Callable[[str], None] = lambda line: None) -> Outputs:
        inputs = Inputs.model_construct(
            model=self.model, repository=self.repository, reports=list(self.reports), golden=self.golden,
            calibration=self.calibration, evaluation=self.evaluation,
        )  # fmt: skip
        return self.stage.run(inputs, self.context(log))

    def lines(self) -> dict[str, Mapping[str, Any]]:
        """Return the lines of the checklist by id."""
        return {line["id"]: line for line in self.run().checklist.details["lines"]}

    def line(self, name: str) -> tuple[str, str]:
        """Return status and reason of one line."""
        found = self.lines()[name]
        return found["status"], found["reason"]

    def verdicts(self, outputs: Outputs | None = None) -> dict[str, Verdict]:
        judged = self.stage.judge(outputs or self.run(), JudgeContext())
        return {verdict.gate: verdict for verdict in judged}


def full_case(tmp_path: Path, model: OnnxModel, data: Path, options: Mapping[str, Any] | None = None) -> Case:
    """Return a case in which everything has its evidence; ``model`` is as if `onnx` had made it of the source."""
    sets = {
        name: sealed(Dataset.at(data / f"digits-{name}.npz", role=name))
        for name in ("calibration", "evaluation", "golden")
    }
    with np.load(data / "digits-evaluation.npz") as arrays:  # fewer samples, for speed
        few = {name: arrays[name][:40] for name in arrays.files}
    sets["evaluation"] = dataset(tmp_path / "digits-evaluation.npz", "evaluation", **few)
    evaluation = report(
        tmp_path / "r1", model, "Evaluation", accuracy=0.99, accuracy_drop=0.001, samples=600.0,
        details={"classes": [{"class": 0, "samples": 59, "precision": 1.0, "recall": 0.98, "f1": 0.99}]},
    )  # fmt: skip
    speed = report(tmp_path / "r2", model, "Benchmark", **{"latency.p95": 0.01, "latency.p95.low": 0.009})
    parity = report(tmp_path / "r3", model, "Export", **{"parity.max_abs_error": 1e-6})
    nodes = (
        node("weights", "validate-weights", {"model": SOURCE}, {"report": "7" * 64},
             compare("weights.nan", 0.0, "==", 0.0, subject=SOURCE)),
        node("onnx", "torch-export", {"model": SOURCE, "calibration": sets["calibration"].digest},
             {"model": model.digest, "report": parity.digest},
             judged(parity, "parity.max_abs_error", "<=", 1e-3), tools={"onnxruntime": "1.31.1", "torch": "2.13.0"}),
        node("accuracy", "evaluate", {"model": model.digest}, {"report": evaluation.digest},
             judged(evaluation, "accuracy", ">=", 0.97), judged(evaluation, "accuracy_drop", "<=", 0.005),
             tools={"onnxruntime": "1.31.1"}),
        node("speed", "benchmark", {"model": model.digest}, {"report": speed.digest},
             judged(speed, "latency.p95", "<=", 0.02)),
    )  # fmt: skip
    sources = [
        LineageSource(name="model", uri="digits.py:build", digest=SOURCE, files={"digits.py": "6" * 64})
    ]
    for name, item in sets.items():
        files = {entry.path: entry.sha256 for entry in item.files}
        uri = f"data/digits-{name}.npz"
        sources.append(LineageSource(name=f"data.{name}", uri=uri, digest=item.digest, files=files))
    return Case(
        workdir=tmp_path, model=model, reports=(evaluation, speed, parity), nodes=nodes, sources=tuple(sources),
        repository=repository_of(model, tmp_path / "repository"), golden=sets["golden"],
        calibration=sets["calibration"], evaluation=sets["evaluation"],
        objectives={
            "metadata": META, "slo": {"latency.p95": 0.02}, "budget": {"accuracy_drop": 0.005},
            "data": {"evaluation": {"metric": "accuracy", "min": 0.97}},
        },
        options=FULL if options is None else options,
    )  # fmt: skip


def report(folder: Path, model: OnnxModel, title: str, /, details: Any = None, **metrics: float) -> Report:
    """Write a report about a model."""
    folder.mkdir()
    return write_report(folder, subject=model.digest, title=title, metrics=metrics, details=details or {})


def judged(about: Report, metric: str, how: Any, bound: float) -> Verdict:
    """Return what a gate says of a metric in a report."""
    return compare(metric, about.metrics[metric], how, bound, subject=about.subject, source=about.digest)


def node(
    name: str, uses: str, inputs: Mapping[str, str], outputs: Mapping[str, str], *verdicts: Verdict,
    tools: Mapping[str, str] | None = None,
) -> LineageNode:  # fmt: skip
    """Return a stage as it went."""
    return LineageNode(
        node=name, uses=uses, plugin="shipctl 0.1.0", fingerprint="f" * 64, options={"opset": 21},
        tools=dict(tools or {}), inputs={key: (value,) for key, value in inputs.items()}, outputs=dict(outputs),
        verdicts=verdicts,
    )  # fmt: skip


def repository_of(model: OnnxModel, root: Path) -> TritonRepository:
    """Lay out a repository of the model."""
    version = root / "digits" / "1"
    version.mkdir(parents=True)
    shutil.copyfile(model.path, version / "model.onnx")
    (version.parent / "config.pbtxt").write_text('name: "digits"\n')
    made = TritonRepository.at(
        root, model="digits", signature=model.signature, max_batch_size=8, source=model.digest
    )
    return sealed(made)


def dataset(path: Path, role: str, **arrays: Any) -> Dataset:
    """Write a data set of these arrays."""
    np.savez(path, allow_pickle=False, **arrays)
    return sealed(Dataset.at(path, role=role))


def signature_of(model: OnnxModel, **sides: Any) -> Signature:
    """Return the model's signature with a side replaced."""
    return model.signature.model_copy(update=sides)
