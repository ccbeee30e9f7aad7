"""The gates of a scan: its findings under the bounds of the moment."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from shipctl.stages.artifacts import Report
from shipctl.stages.verdicts import Outcome, Verdict, compare
from shipctl_plugins._evidence.licenses import permits
from shipctl_plugins.package._scan_findings import Finding, Waiver, make, rank

if TYPE_CHECKING:
    from shipctl_plugins.package.scan import Options

REQUIREMENTS = "requirements.txt"
MODEL = "the model"
"""Whose licence it is, in the report's table of licences."""
GROUPS: dict[str, tuple[str, ...]] = {
    "unscannable": ("unscannable",),
    "pickles": ("pickle", "pickle-global"),
    "archives": ("archive-bomb", "archive-inconsistent", "archive-link", "archive-path", "link"),
    "code": ("native-code", "python-backend", "python-code", "script"),
    "operators": ("onnx-domain", "onnx-external"),
    "licenses": ("license", "license-missing", "license-unknown"),
    "scanners": ("scanner",),
    "vulnerabilities": ("vulnerability", "unpinned"),
}
"""Gate (`scan.<name>`) to the rules whose findings it decides on."""
_SHOWN = 3


class Gates:
    """The findings of one report under one set of bounds."""

    def __init__(self, options: Options, report: Report) -> None:
        self._options = options
        self._report = report
        noted = [Finding.model_validate(row) for row in report.details.get("findings", ())]
        # A report whose numbers and rows do not fit together says nothing about anything.
        self._whole = report.metrics.get("scan.findings") == len(noted)
        self._findings = [*noted, *self._domains(), *self._licenses()]

    def _verdict(self, gate: str, outcome: Outcome, message: str) -> Verdict:
        return Verdict(
            gate=gate,
            outcome=outcome,
            message=message,
            subject=self._report.subject,
            source=self._report.digest,
        )

    def files(self) -> Verdict:
        """Whether anything was there to be scanned."""
        count = self._report.metrics.get("scan.files")
        if not count or not math.isfinite(count):
            return self._verdict("scan.files", Outcome.ERROR, "there was no file, so nothing was scanned")
        return compare(
            "scan.files",
            count,
            ">=",
            1,
            metric="scan.files",
            subject=self._report.subject,
            source=self._report.digest,
        )

    def group(self, name: str) -> Verdict:
        """Decide on the findings of one gate."""
        gate = f"scan.{name}"
        if not self._whole:
            return self._verdict(gate, Outcome.ERROR, "the report is not whole; run the scan again")
        mine = [finding for finding in self._findings if finding.rule in GROUPS[name]]
        counted = [finding for finding in mine if self._counts(finding)]
        left = [finding for finding in counted if self._waiver(finding) is None]
        waived = [
            f"{finding.id} is waived by {waiver.by}: {waiver.reason}"
            for finding in counted
            if (waiver := self._waiver(finding)) is not None
        ]
        if left:
            shown = "; ".join(f"{finding.id}: {finding.message}" for finding in left[:_SHOWN])
            more = f"; and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
            return self._verdict(gate, Outcome.FAIL, f"{_count(left)}: {shown}{more}")
        quiet = len(mine) - len(counted)
        parts = [*waived, *([f"{quiet} within the bounds"] if quiet else [])]
        looked = name != "vulnerabilities" or "scan.database_modified" in self._report.metrics
        nothing = "nothing found" if looked else "not looked for; scan.database says why"
        return self._verdict(gate, Outcome.PASS, "; ".join(parts) or nothing)

    def database(self) -> Verdict:
        """Decide whether what is required was compared with something recent."""
        gate, metrics = "scan.database", self._report.metrics
        if not self._whole:
            return self._verdict(gate, Outcome.ERROR, "the report is not whole; run the scan again")
        if not self._report.details.get("requirements"):
            message = f"there is no {REQUIREMENTS}, so no known vulnerability was looked for"
        elif "scan.database_modified" not in metrics:
            message = "no database was given (`vulnerabilities`), so nothing is known of what is required"
        else:
            age = time.time() - metrics["scan.database_modified"]
            return compare(
                gate, age, "<=", float(self._options.max_database_age), metric="age of the database", show=_days,
                subject=self._report.subject, source=self._report.digest,
            )  # fmt: skip
        outcome = Outcome.INCONCLUSIVE if self._options.require_vulnerabilities else Outcome.PASS
        return self._verdict(gate, outcome, message)

    def _counts(self, finding: Finding) -> bool:
        """Whether a finding is bad enough to be decided on, and not allowed by its kind."""
        options, rule = self._options, finding.rule
        if rule == "unscannable":
            return True
        if rule in options.allow_code or (rule == "pickle" and options.allow_pickles):
            return False
        if (
            rule == "pickle-global"
            and finding.severity == "high"
            and _fits(finding.detail, options.allowed_globals)
        ):
            return False
        worst = options.max_vulnerability if rule == "vulnerability" else options.max_severity
        return rank(finding.severity) > rank(worst)

    def _waiver(self, finding: Finding) -> Waiver | None:
        return next((waiver for waiver in self._options.ignore if waiver.finding in finding.names), None)

    def _domains(self) -> list[Finding]:
        return [
            make(
                "onnx-domain", "high", row["file"],
                f"operators of the domain {row['domain']!r} come from a library beside the runtime: {row['operators']}",
                row["domain"],
            )
            for row in self._report.details.get("operators", ())
            if row["domain"] not in self._options.allowed_domains
        ]  # fmt: skip

    def _licenses(self) -> list[Finding]:
        found = []
        for row in self._report.details.get("licenses", ()):
            of, said = row["of"], row["license"]
            if not said and of == MODEL:
                message = f"{MODEL} has no licence; say under which it may be used"
                found.append(make("license-missing", "medium", row["source"], message))
            elif not said:
                message = f"the licence of {of} {row['version']} is unknown: {row['source']}"
                found.append(make("license-unknown", "low", REQUIREMENTS, message, of))
            elif not self._permitted(said):
                file = row["source"] if of == MODEL else REQUIREMENTS
                message = f"{of} {row['version']} is under {said}, which is not allowed"
                found.append(make("license", "high", file, message, f"{of.removeprefix('the ')}:{said}"))
        return found

    def _permitted(self, expression: str) -> bool:
        allowed, denied = self._options.allowed_licenses, self._options.denied_licenses
        if allowed is None and not denied:
            return True
        return permits(
            expression,
            lambda name: not _fits(name, denied) and (allowed is None or _fits(name, allowed)),
        )


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _count(findings: Sequence[Finding]) -> str:
    return "1 finding" if len(findings) == 1 else f"{len(findings)} findings"


def _days(seconds: float) -> str:
    return f"{seconds / 86400:.1f} days"
