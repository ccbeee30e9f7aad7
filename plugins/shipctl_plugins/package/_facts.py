"""What the lines of the delivery checklist are called, and the facts that they are decided on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal, NamedTuple

from shipctl.stages.artifacts import Report
from shipctl.stages.context import Objectives
from shipctl_plugins.package._history import History

CheckId = Literal[
    "weights", "parity", "accuracy", "accuracy-drop", "latency", "memory", "golden", "signature", "processing",
    "license", "model-card", "requirements", "provenance", "ml-bom", "drift-reference", "calibration", "owner",
    "approvals", "review-date",
]  # fmt: skip
Status = Literal["passed", "failed", "not-applicable", "waived"]
TITLES: dict[CheckId, str] = {
    "weights": "Weights checked",
    "parity": "Every conversion agrees with what it was made from",
    "accuracy": "Quality on the evaluation data within its bound",
    "accuracy-drop": "Accuracy drop within the budget",
    "latency": "Latency and throughput within the objectives",
    "memory": "Memory within its bound",
    "golden": "Golden samples are there and fit",
    "signature": "Signature declared, and that of the graph",
    "processing": "Pre- and post-processing documented",
    "license": "Licence stated",
    "model-card": "Model card complete",
    "requirements": "Requirements recorded",
    "provenance": "Provenance back to the sources",
    "ml-bom": "Bill of materials (ML-BOM) written",
    "drift-reference": "Drift reference taken",
    "calibration": "Calibration data on record",
    "owner": "Owner named",
    "approvals": "Approved",
    "review-date": "Date of the next review set",
}
"""In the order in which they are decided and shown."""

MODEL_CARD = "MODEL_CARD.md"
CHECKLIST_TEXT = "CHECKLIST.md"
REQUIREMENTS = "requirements.txt"
LICENSE = "LICENSE"
PROCESSING = "processing"
CARD_TEXTS = ("intended_use", "limitations", "training_data", "ethical_considerations")
"""What a complete card says beside what shipctl knows by itself."""


@dataclass(frozen=True)
class Facts:
    """All that the lines are decided on."""

    history: History
    objectives: Objectives
    files: Mapping[str, str]
    """Path in the package to SHA-256, of what is written so far."""
    reports: Sequence[tuple[str, Report]]
    """With the path of each in the package."""
    golden: str | None
    """What is wrong with the golden samples; None where there are some that fit."""
    signature: Sequence[str]
    """Where the graph differs from the signature."""
    drift: str | None
    """Why there is no drift reference; None where there is one."""
    card: Mapping[str, str]
    """Texts of the model card by name."""
    license: str | None
    review_date: date | None
    approvals: Sequence[Mapping[str, Any]] = ()
    """What is known of approvals."""


class Finding(NamedTuple):
    """What a check found."""

    status: Status
    reason: str
    """One line for a person: what was found or, for a line that failed, what to do."""
    evidence: tuple[str, ...] = ()
    """Paths in the package."""
