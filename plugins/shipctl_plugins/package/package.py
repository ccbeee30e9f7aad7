"""Stage `package`: a model with everything that is known about it, in one folder that can be signed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from shipctl.errors import GateError, SpecError, StageError
from shipctl.evidence.package import APPROVALS, CHECKLIST, GATES
from shipctl.records import Record
from shipctl.spec.fields import ProjectFile, Text
from shipctl.stages.artifacts import Dataset, ModelPackage, OnnxModel, Report, TritonRepository
from shipctl.stages.base import Bound, Stage, StageInputs, StageOptions, StageOutputs
from shipctl.stages.context import CheckContext, JudgeContext, StageContext
from shipctl.stages.verdicts import Verdict
from shipctl_plugins._evidence.licenses import normal_license
from shipctl_plugins._evidence.requirements import read_requirements
from shipctl_plugins._onnx.reports import write_report
from shipctl_plugins.package import _checklist, _documents, _evidence
from shipctl_plugins.package._checklist import Line, Waiver
from shipctl_plugins.package._contents import Contents
from shipctl_plugins.package._facts import (
    CHECKLIST_TEXT,
    LICENSE,
    MODEL_CARD,
    PROCESSING,
    REQUIREMENTS,
    CheckId,
    Facts,
)
from shipctl_plugins.package._history import History


class ModelCard(Record):
    """What only people know; it stands in MODEL_CARD.md beside what shipctl knows."""

    intended_use: Text | None = Field(None, description="What the model is for.")
    users: Text | None = Field(None, description="Who it is for.")
    out_of_scope: Text | None = Field(None, description="What it must not be used for.")
    factors: Text | None = Field(
        None, description="Groups, instruments and surroundings that its quality may depend on."
    )
    processing: Text | None = Field(
        None, description="How inputs are prepared and outputs are read, where no code says so."
    )
    training_data: Text | None = Field(None, description="What it learned from.")
    ethical_considerations: Text | None = Field(
        None, description="Risks and harms, and what was done about them."
    )
    limitations: Text | None = Field(None, description="Where it fails; caveats and recommendations.")


class Options(StageOptions):
    """What stands below ``with:``."""

    processing: tuple[ProjectFile, ...] = Field(
        default=(),
        description="Files of pre- and post-processing to take along: code, tokenizers, label lists.",
    )
    requirements: tuple[Text, ...] = Field(
        default=(),
        description="What it takes to run the model, a line each as in requirements.txt; left out, the runtime that "
        "the model was measured in.",
    )
    requirements_file: ProjectFile | None = Field(
        default=None, description="A requirements.txt of the project, in place of `requirements`."
    )
    license: Text | None = Field(
        default=None, description="SPDX expression of the model's licence, such as MIT."
    )
    license_file: ProjectFile | None = Field(default=None, description="The licence's text.")
    model_card: ModelCard = Field(default=ModelCard(), description="Texts for the model card.")
    include: tuple[Literal["calibration", "evaluation"], ...] = Field(
        default=(), description="Data to take along beside the golden samples; the digests are always there."
    )
    waive: tuple[Waiver, ...] = Field(
        default=(), description="Lines of the checklist that may fail, by whom and why."
    )
    review_date: date | None = Field(
        default=None, description="When to look at the model again (YYYY-MM-DD)."
    )
    require: tuple[CheckId, ...] = Bound(
        (
            "parity",
            "accuracy",
            "accuracy-drop",
            "latency",
            "memory",
            "signature",
            "provenance",
            "ml-bom",
            "owner",
        ),
        description="Lines of the checklist that have to be settled: passed, not applicable, or waived.",
    )


class Inputs(StageInputs):
    """What the stage takes. Data is optional: its name in the spec is the input's."""

    model: OnnxModel
    repository: TritonRepository | None = None
    reports: list[Report]
    golden: Dataset | None = None
    calibration: Dataset | None = None
    evaluation: Dataset | None = None


class Outputs(StageOutputs):
    """What the stage gives."""

    package: ModelPackage
    checklist: Report


class Package(Stage[Options, Inputs, Outputs]):
    """Put a model, its repository, golden samples and all evidence about it into one package.

    Name it after everything whose reports are evidence, and say which model it is::

        - uses: package
          needs: [best, repository, accuracy, speed]
          inputs: {model: best}
          with: {license: Apache-2.0}

    The package holds a model card, provenance, an ML-BOM, a drift reference, what gates said, and the delivery
    checklist, each line of which is decided by evidence. The stage fails where a line of `require` is not settled.
    """

    api_version = 1
    requires: ClassVar[Mapping[str, str]] = {
        "cyclonedx": "shipctl[evidence]",
        "license_expression": "shipctl[evidence]",
        "packaging": "shipctl[evidence]",
    }
    reads = ("metadata", "slo", "budget", "data", "lineage")
    templates = ("package",)
    tools = ("cyclonedx-python-lib", "jinja2", "numpy", "onnx", "onnxruntime")
    metrics = _checklist.METRICS

    def check(self, ctx: CheckContext) -> None:
        """Look at what can be wrong before anything has run: licence, requirements, names that clash."""
        options = self.options
        if options.requirements and options.requirements_file:
            raise SpecError(
                "requirements and requirements_file say the same thing twice; take one of them out"
            )
        if options.license is not None:
            try:
                normal_license(options.license)
            except GateError as exc:
                raise SpecError(f"license: {exc}") from exc
        unreadable = read_requirements("\n".join(options.requirements)).unreadable
        if unreadable:
            message = f"requirements: {unreadable[0][1]!r} is no requirement such as name==version (PEP 508)"
            raise SpecError(message)
        names = [Path(path).name for path in options.processing]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            message = (
                f"processing: two files are called {twice!r}, and the package keeps names only; rename one"
            )
            raise SpecError(message)
        checks = [item.check for item in options.waive]
        again = next((name for name in checks if checks.count(name) > 1), None)
        if again is not None:
            raise SpecError(f"waive: {again!r} is waived twice; leave one of the two")

    def run(self, inputs: Inputs, ctx: StageContext) -> Outputs:
        """Lay out the package, decide the checklist, and write package.json last."""
        model, options = inputs.model, self.options
        if inputs.repository is not None and inputs.repository.source != model.digest:
            message = (
                f"the repository holds the model {inputs.repository.source[:12]}, and {model.digest[:12]} is to be "
                "packaged; wire both from the same stage with `inputs`"
            )
            raise StageError(message)
        history = History(ctx.lineage, model)
        contents = Contents(ctx.workdir / "package")
        packaged = [contents.put_artifact("model", "model", model)]
        if inputs.repository is not None:
            packaged.append(contents.put_artifact("repository", "repository", inputs.repository))
        for name, data in self._data(inputs).items():
            packaged.append(contents.put_artifact(f"data.{name}", f"data/{name}", data))
        self._put_project_files(contents, history)
        reports = _evidence.put_reports(contents, inputs.reports)
        packaged += [item for _, _, item in reports]
        contents.put_json(GATES, _evidence.gates(ctx.lineage))
        contents.put_json(APPROVALS, [])
        drift = _evidence.put_drift_reference(contents, model, inputs.evaluation, threads=ctx.threads)
        metrics = _evidence.metrics_of(history, inputs.reports)
        card = options.model_card.model_dump(exclude_none=True)
        _evidence.put_ml_bom(contents, history, ctx.objectives, metrics, options.license, card)
        facts = Facts(
            history=history,
            objectives=ctx.objectives,
            files=contents.digests(),
            reports=[(path, report) for path, report, _ in reports],
            golden=_evidence.golden_problem(inputs.golden, model.signature),
            signature=_evidence.signature_problems(model),
            drift=drift,
            card=card,
            license=options.license,
            review_date=options.review_date,
        )
        lines = _checklist.checklist(facts, options.waive)
        contents.put_json(CHECKLIST, _checklist.as_json(lines))
        contents.put(CHECKLIST_TEXT, _documents.checklist_text(ctx, lines))
        contents.put(MODEL_CARD, _documents.card_text(ctx, facts, lines, metrics, inputs.evaluation))
        package = _evidence.seal(contents, packaged, facts, metrics)
        return Outputs(package=package, checklist=_report(package, lines, ctx))

    def judge(self, outputs: Outputs, ctx: JudgeContext) -> Sequence[Verdict]:
        """Ask for every line of `require` to be settled."""
        return _checklist.judge(outputs.checklist, self.options.require)

    def _data(self, inputs: Inputs) -> dict[str, Dataset]:
        """Return the data sets that go along.

        :raises StageError: if one is to and there is none
        """
        found = {"golden": inputs.golden} if inputs.golden is not None else {}
        given = {"calibration": inputs.calibration, "evaluation": inputs.evaluation}
        for name in self.options.include:
            data = given[name]
            if data is None:
                message = f"include: there is no {name} data; add `data.{name}` to the spec or take it out"
                raise StageError(message)
            found[name] = data
        return found

    def _put_project_files(self, contents: Contents, history: History) -> None:
        """Add what the options name, and the runtime as a requirement where they name none."""
        options = self.options
        for path in options.processing:
            contents.put_file(f"{PROCESSING}/{Path(path).name}", Path(path))
        if options.license_file is not None:
            contents.put_file(LICENSE, Path(options.license_file))
        if options.requirements_file is not None:
            contents.put_file(REQUIREMENTS, Path(options.requirements_file))
            return
        runtimes = (f"{name}=={version}" for name, version in sorted(history.runtimes().items()))
        if text := "".join(f"{line}\n" for line in options.requirements or runtimes):
            contents.put(REQUIREMENTS, text)


def _report(package: ModelPackage, lines: Sequence[Line], ctx: StageContext) -> Report:
    counted = ", ".join(f"{count} {status}" for status, count in _checklist.counts(lines).items() if count)
    ctx.log(f"{package.name}@{package.version}: checklist: {counted}")
    for line in lines:
        if line.status in {"failed", "waived"}:
            ctx.log(f"{line.status}: {line.title}: {line.reason}")
    return write_report(
        ctx.workdir, subject=package.digest, title=f"Delivery checklist of {package.name} {package.version}",
        metrics=_checklist.metrics(lines), details={"lines": _checklist.as_json(lines)},
    )  # fmt: skip
