"""Stage `scan`: what could harm whoever loads a model, or whoever ships it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from shipctl.evidence.package import read_manifest
from shipctl.spec.fields import ProjectFile
from shipctl.spec.units import Duration
from shipctl.stages.artifacts import ModelPackage, OnnxModel, Report, TorchModel, TritonRepository
from shipctl.stages.base import Bound, Stage, StageInputs, StageOptions, StageOutputs
from shipctl.stages.context import JudgeContext, StageContext
from shipctl.stages.verdicts import Verdict
from shipctl_plugins._evidence.requirements import Requirements, read_requirements
from shipctl_plugins._onnx.reports import write_report
from shipctl_plugins.package import _scan_advisories as advisories
from shipctl_plugins.package import _scan_external as external
from shipctl_plugins.package import _scan_licenses as licenses
from shipctl_plugins.package._scan_files import Inspector
from shipctl_plugins.package._scan_findings import Findings, Severity, Waiver
from shipctl_plugins.package._scan_gates import GROUPS, MODEL, REQUIREMENTS, Gates


class Options(StageOptions):
    """What stands below ``with:``."""

    vulnerabilities: ProjectFile | None = Field(
        default=None,
        description="A database of known vulnerabilities in OSV format: a zip of JSON records, such as PyPI's all.zip "
        "of https://osv.dev, or one JSON file. Nothing is asked over the network.",
    )
    scanners: tuple[tuple[str, ...], ...] = Field(
        default=(),
        description="Scanners of others to call, each as a list of words, in which `{folder}` stands for the folder "
        "and `{image}` for an OCI image layout of it; any exit code but 0 is a finding.",
    )
    scanner_timeout: Duration = Field(default=Duration("10m"), description="How long each of those may take.")
    max_severity: Severity = Bound(
        "low", description="The worst finding that may stay: info, low, medium, high, critical."
    )
    max_vulnerability: Severity = Bound("medium", description="The worst known vulnerability that may stay.")
    require_vulnerabilities: bool = Bound(
        False,
        description="Whether requirements have to be compared with a database; without one nothing is known.",
    )
    max_database_age: Duration = Bound(
        Duration("90d"), description="How long ago the newest record of that database may have been changed."
    )
    allow_pickles: bool = Bound(
        False, description="Whether pickles may be there that name nothing dangerous or unknown."
    )
    allowed_globals: tuple[str, ...] = Bound(
        (),
        description="Patterns of names (`mypackage.*`) that pickles may import beyond those known to be harmless.",
    )
    allow_code: tuple[Literal["native-code", "python-backend", "python-code", "script"], ...] = Bound(
        (), description="Kinds of code that may be there whatever `max_severity` says."
    )
    allowed_domains: tuple[str, ...] = Bound(
        ("ai.onnx", "ai.onnx.ml", "com.microsoft"),
        description="Domains of ONNX operators; any other needs a library that the runtime would have to load.",
    )
    allowed_licenses: tuple[str, ...] | None = Bound(
        None,
        description="Patterns of SPDX identifiers (`BSD-*`) that are allowed; every one if this is not given.",
    )
    denied_licenses: tuple[str, ...] = Bound(
        (), description="Patterns of SPDX identifiers that are not allowed."
    )
    ignore: tuple[Waiver, ...] = Bound(
        (), description="Findings that may stay, with a reason and a name; they are shown."
    )


class Inputs(StageInputs):
    """What the stage takes."""

    subject: OnnxModel | TorchModel | TritonRepository | ModelPackage


class Outputs(StageOutputs):
    """What the stage gives."""

    report: Report


class Scan(Stage[Options, Inputs, Outputs]):
    """Look for pickles that run code, hostile archives, foreign operators, native code, licences, vulnerabilities.

    Every file is recognised by its bytes as well as by its name, and archives are looked into, one within another, in
    memory. Nothing is unpickled, imported or unpacked. What cannot be looked at is a finding of its own and never
    passes. Licences and known vulnerabilities are those of the `requirements.txt` beside the model.
    """

    api_version = 1
    subject = "subject"
    requires: ClassVar[Mapping[str, str]] = {
        "license_expression": "shipctl[evidence]",
        "numpy": "shipctl",
        "onnx": "shipctl",
        "packaging": "shipctl[evidence]",
        "picklescan": "shipctl[evidence]",
    }
    metrics = (
        "scan.files", "scan.bytes", "scan.members", "scan.pickles", "scan.archives", "scan.models", "scan.findings",
        "scan.requirements", "scan.database_records", "scan.database_modified",
    )  # fmt: skip
    tools = ("license-expression", "numpy", "onnx", "packaging", "picklescan")

    def run(self, inputs: Inputs, ctx: StageContext) -> Outputs:
        """Look at every file and at what is required."""
        subject = inputs.subject
        root = subject.root.parent if subject.root.is_file() else subject.root
        paths = [entry.path for entry in subject.files]
        found = Findings()
        inspector = Inspector(root, paths, found)
        for path in paths:
            inspector.look_at(path)
        for command in self.options.scanners:
            external.call(command, root, subject, float(self.options.scanner_timeout), found, ctx.log)
        metrics, details = self._required(root, paths, found)
        details["operators"] = [
            {"file": file, "domain": domain, "operators": ", ".join(sorted(names))}
            for file, domain, names in inspector.operators
        ]
        if isinstance(subject, ModelPackage):
            said = read_manifest(root).license or ""
            row = {"of": MODEL, "version": subject.version, "license": said, "source": "package.json"}
            details["licenses"] = [row, *details["licenses"]]
        rows = found.rows()
        metrics |= {
            "scan.files": float(len(paths)), "scan.bytes": float(subject.size), "scan.members": float(found.members),
            "scan.pickles": float(found.pickles), "scan.archives": float(found.archives),
            "scan.models": float(found.models), "scan.findings": float(len(rows)),
        }  # fmt: skip
        ctx.log(f"{len(paths)} files with {found.members} members: {len(rows)} findings")
        report = write_report(
            ctx.workdir,
            subject=subject.digest,
            title="Scan",
            metrics=metrics,
            details={"findings": rows, **details},
        )
        return Outputs(report=report)

    def _required(
        self, root: Path, paths: Sequence[str], found: Findings
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Look at the requirements; return metrics and details about them."""
        parsed = Requirements((), ())
        if REQUIREMENTS in paths:
            text = (root / REQUIREMENTS).read_text(encoding="utf-8", errors="replace")
            parsed = read_requirements(text)
        for number, line in parsed.unreadable:
            found.unscannable(REQUIREMENTS, f"line {number} brings what it does not name: {line}")
        metrics = {"scan.requirements": float(len(parsed.found))}
        details: dict[str, Any] = {
            "licenses": licenses.rows_of(parsed.found),
            "requirements": REQUIREMENTS in paths,
        }
        if self.options.vulnerabilities is not None:
            database = advisories.read_database(Path(self.options.vulnerabilities))
            advisories.match(database, parsed.found, REQUIREMENTS, found)
            details["database"] = {"records": database.count, "newest": database.newest}
            metrics |= {
                "scan.database_records": float(database.count), "scan.database_modified": database.modified,
            }  # fmt: skip
        return metrics, details

    def judge(self, outputs: Outputs, ctx: JudgeContext) -> Sequence[Verdict]:
        """Decide on each kind of finding; what was waived is shown."""
        gates = Gates(self.options, outputs.report)
        return [gates.files(), *(gates.group(name) for name in GROUPS), gates.database()]
