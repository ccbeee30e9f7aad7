"""The two texts of a package that people read first: the model card and the checklist."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from shipctl.stages.artifacts import Dataset, Report
from shipctl.stages.context import StageContext
from shipctl_plugins.package._checklist import Line, counts
from shipctl_plugins.package._facts import PROCESSING, Facts

_MARKS = {"passed": "✓", "failed": "✗", "not-applicable": "–", "waived": "!"}
_CLASSES = ("class", "samples", "precision", "recall", "f1")
_SHOWN_OPTIONS = 120
_INTERVALS = (".low", ".high")
_UNITS = {"latency": " s", "memory": " bytes", "size": " bytes", "throughput": "/s", "rollback": " s"}


def checklist_text(ctx: StageContext, lines: Sequence[Line]) -> str:
    """Render CHECKLIST.md."""
    meta = ctx.objectives.metadata
    return _render(
        ctx, "CHECKLIST.md.j2", name=meta["name"], version=meta["version"], lines=lines, counts=counts(lines),
        marks=_MARKS,
    )  # fmt: skip


def card_text(
    ctx: StageContext,
    facts: Facts,
    lines: Sequence[Line],
    metrics: Mapping[str, float],
    evaluation: Dataset | None,
) -> str:
    """Render MODEL_CARD.md."""
    model, meta = facts.history.model, ctx.objectives.metadata
    sides = (("input", model.signature.inputs), ("output", model.signature.outputs))
    return _render(
        ctx, "MODEL_CARD.md.j2", name=meta["name"], version=meta["version"], description=meta.get("description"),
        card={name: facts.card.get(name) for name in CARD_FIELDS},
        details=_details(facts),
        tensors=[
            [side, spec.name, spec.dtype, f"[{', '.join(map(str, spec.shape))}]"]
            for side, specs in sides
            for spec in specs
        ],
        steps=[
            [item.node.node, item.node.uses, _options(item.node.options), item.made[:12]]
            for item in reversed(facts.history.conversions)
        ],
        processing=[path for path in facts.files if path.startswith(f"{PROCESSING}/")],
        limits=_limits(facts),
        evaluation=_evaluation(facts, evaluation),
        calibration=[[name, digest] for name, digest in facts.history.calibration().items()],
        metrics=[
            [name, _shown(name, value)]
            for name, value in metrics.items()
            if "@" not in name and not name.endswith(_INTERVALS)
        ],
        slices=[found for _, report in facts.reports if (found := _slice(report, model.digest)) is not None],
        open=[line for line in lines if line.status in {"failed", "waived"}],
    )  # fmt: skip


CARD_FIELDS = (
    "intended_use", "users", "out_of_scope", "factors", "processing", "training_data", "ethical_considerations",
    "limitations",
)  # fmt: skip


def _render(ctx: StageContext, template: str, **values: Any) -> str:
    environment = ctx.templates("package")
    environment.filters["cell"] = _cell
    return environment.get_template(template).render(**values)


def _cell(value: object) -> str:
    """Return text that stays within one cell of a Markdown table."""
    return " ".join(str(value).replace("\\", "\\\\").replace("|", "\\|").split())


def _details(facts: Facts) -> list[list[str]]:
    model, meta = facts.history.model, facts.objectives.metadata
    labels = ", ".join(f"{key}: {value}" for key, value in sorted(dict(meta.get("labels") or {}).items()))
    rows = {
        "Owner": meta.get("owner") or "Not stated.",
        "Version": meta["version"],
        "Licence": facts.license or "Not stated.",
        "Format": "ONNX" + (f", opset {model.opset}" if model.opset else ""),
        "Precision": model.precision,
        "Size": f"{model.size:,} bytes",
        "Digest": model.digest,
        "Source": next(
            (f"{item.uri} ({item.digest[:12]})" for item in facts.history.lineage.sources if item.name == "model"),
            "Not known.",
        ),
        "Labels": labels,
        "Next review": facts.review_date.isoformat() if facts.review_date else "Not stated.",
    }  # fmt: skip
    return [[key, value] for key, value in rows.items() if value]


def _options(options: Mapping[str, Any]) -> str:
    text = json.dumps(dict(options), sort_keys=True, ensure_ascii=False)
    return text if len(text) <= _SHOWN_OPTIONS else f"{text[:_SHOWN_OPTIONS]}…"


def _limits(facts: Facts) -> list[list[str]]:
    objectives = facts.objectives
    rows = [[f"slo {name}", _shown(name, value)] for name, value in sorted(objectives.slo.items())]
    rows += [[f"budget {name}", _shown(name, value)] for name, value in sorted(objectives.budget.items())]
    for name, said in sorted(objectives.data.items()):
        metric = said.get("metric") or "metric"
        rows += [
            [f"{metric} on {name} data", f"{sign} {said[end]:.6g}"]
            for end, sign in (("min", "≥"), ("max", "≤"))
            if said.get(end) is not None
        ]
    return rows


def _evaluation(facts: Facts, evaluation: Dataset | None) -> str:
    if evaluation is None:
        return ""
    model = facts.history.model.digest
    samples = [
        report.metrics["samples"]
        for _, report in facts.reports
        if report.subject == model and "samples" in report.metrics
    ]
    count = f", {samples[0]:.0f} samples" if samples else ""
    source = next(
        (item.uri for item in facts.history.lineage.sources if item.digest == evaluation.digest), "evaluation"
    )
    return f"{source} ({evaluation.digest[:12]}{count})."


def _slice(report: Report, model: str) -> dict[str, Any] | None:
    """Return the table of a report that has one row per class."""
    rows = report.details.get("classes")
    if report.subject != model or not isinstance(rows, list) or not rows:
        return None
    heads = [name for name in _CLASSES if all(isinstance(row, Mapping) and name in row for row in rows)]
    if len(heads) < 2:  # noqa: PLR2004  (the class alone says nothing)
        return None
    shown = [[_number(row[name]) for name in heads] for row in rows]
    return {"title": report.title, "heads": heads, "rows": shown}


def _shown(name: str, value: float) -> str:
    """Return a number in base units with its unit."""
    count = name.endswith((".runs", ".samples", ".nodes"))
    return f"{value:.6g}{'' if count else _UNITS.get(name.partition('.')[0], '')}"


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
