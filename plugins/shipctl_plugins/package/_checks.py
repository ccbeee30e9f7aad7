"""The single checks behind the lines of the checklist. Each looks at facts and names the files that it looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from shipctl.evidence.package import APPROVALS, DRIFT_REFERENCE, GATES, MANIFEST, ML_BOM, PROVENANCE
from shipctl.stages.verdicts import Comparison, Outcome, Verdict, compare
from shipctl_plugins.package._facts import (
    CARD_TEXTS,
    LICENSE,
    MODEL_CARD,
    PROCESSING,
    REQUIREMENTS,
    CheckId,
    Facts,
    Finding,
)
from shipctl_plugins.package._history import FLOATING

_QUALITY = ("accuracy", "rmse", "mae", "f1.", "precision.", "recall.", "spearman", "pearson")
_NOT_QUALITY = ("_source", "_drop")
_SHOWN = 3


class _Bound(NamedTuple):
    metric: str
    comparison: Comparison
    value: float


class _Said(NamedTuple):
    """One comparison with a bound, and where it can be read."""

    verdict: Verdict
    paths: tuple[str, ...]


def _measured(facts: Facts, bounds: Sequence[_Bound]) -> list[_Said]:
    """Compare what reports about the model itself say with bounds of the spec."""
    model = facts.history.model.digest
    return [
        _Said(compare(bound.metric, report.metrics[bound.metric], bound.comparison, bound.value), (path,))
        for path, report in facts.reports
        for bound in bounds
        if report.subject == model and bound.metric in report.metrics
    ]


def _judged(
    facts: Facts, wanted: Callable[[Verdict], bool], about: tuple[str, ...] | None = None
) -> list[_Said]:
    """Return what gates said about the model, or about other artifacts."""
    paths = {report.digest: (path,) for path, report in facts.reports}
    return [
        _Said(verdict, (*paths.get(verdict.source or "", ()), GATES))
        for _, verdict in facts.history.verdicts(about or facts.history.models[:1], wanted)
    ]


def _decide(said: Sequence[_Said], missing: str) -> Finding:
    """All have to pass, and one at least has to be there."""
    if not said:
        return Finding("failed", missing)
    # a gate and the spec may have asked the same of the same number; the gate words it better and comes last
    distinct = {(v.metric or v.gate, v.outcome, v.value, v.comparison, v.bound): v for v, _ in said}
    against = [verdict for verdict in distinct.values() if verdict.outcome is not Outcome.PASS]
    messages = list(dict.fromkeys(verdict.message for verdict in against or distinct.values()))
    shown = "; ".join(messages[:_SHOWN])
    if len(messages) > _SHOWN:
        shown += f"; and {len(messages) - _SHOWN} more"
    evidence = dict.fromkeys(path for item in said for path in item.paths)
    return Finding("failed" if against else "passed", shown, tuple(evidence))


def _starts(*prefixes: str) -> Callable[[Verdict], bool]:
    return lambda verdict: (verdict.metric or verdict.gate).startswith(prefixes)


# -- what was measured -------------------------------------------------------------------------------------------------


def _weights(facts: Facts) -> Finding:
    clean = [_Bound(f"weights.{name}", "==", 0.0) for name in ("nan", "inf", "unchecked")]
    said = _judged(facts, _starts("weights"), facts.history.models) + _measured(facts, clean)
    return _decide(said, "no gate looked at the weights; add `validate-weights` before the conversion")


def _parity(facts: Facts) -> Finding:
    history = facts.history
    if history.is_source:
        return Finding(
            "not-applicable", "the spec brings the model as it is: nothing was converted", (PROVENANCE,)
        )
    if not history.conversions:
        return Finding(
            "failed", "nothing is known of how the model was made; make it with stages of the same spec"
        )
    said: list[_Said] = []
    for item in history.conversions:
        found = _judged(facts, _starts("parity"), (item.made,))
        if not found:
            reason = (
                f"no gate compared what {item.node.node} ({item.node.uses}) made with what it was made from; "
                "give it a bound of parity"
            )
            return Finding("failed", reason)
        said += found
    return _decide(said, "")


def _accuracy(facts: Facts) -> Finding:
    spec = facts.objectives.data.get("evaluation", {})
    metric = str(spec.get("metric") or "")
    names = [metric] if metric else ["accuracy", "rmse"]
    ends: tuple[tuple[Comparison, str], ...] = ((">=", "min"), ("<=", "max"))
    bounds = [
        _Bound(name, how, float(spec[end]))
        for how, end in ends
        for name in names
        if spec.get(end) is not None
    ]

    def quality(verdict: Verdict) -> bool:
        name = verdict.metric or ""
        return verdict.bound is not None and (
            name == metric or (name.startswith(_QUALITY) and not name.endswith(_NOT_QUALITY))
        )

    said = _measured(facts, bounds) + _judged(facts, quality)
    missing = "no report about the model says how good its answers are; add `evaluate` and wire its report"
    if not bounds:
        missing = "nothing bounds the quality of the answers; set `min` in data.evaluation and add `evaluate`"
    if metric and bounds and not any(item.verdict.metric == metric for item in said):
        return Finding("failed", missing)
    return _decide(said, missing)


def _accuracy_drop(facts: Facts) -> Finding:
    allowed = facts.objectives.budget.get("accuracy_drop")
    if allowed is None:
        return Finding("not-applicable", "the spec has no budget.accuracy_drop", (MANIFEST,))
    said = _measured(facts, [_Bound("accuracy_drop", "<=", allowed)])
    said += _judged(facts, lambda verdict: verdict.metric == "accuracy_drop")
    return _decide(
        said, "no report about the model has accuracy_drop; let `evaluate` compare with the source model"
    )


def _latency(facts: Facts) -> Finding:
    slo = {
        name: bound
        for name, bound in facts.objectives.slo.items()
        if name.startswith("latency.") or name == "throughput"
    }
    if not slo:
        return Finding("not-applicable", "the spec has no objective for latency or throughput", (MANIFEST,))
    bounds = [_Bound(name, ">=" if name == "throughput" else "<=", bound) for name, bound in slo.items()]
    said = _measured(facts, bounds) + _judged(facts, lambda verdict: verdict.metric in slo)
    for name in slo:
        if not any(item.verdict.metric == name for item in said):
            return Finding(
                "failed", f"no report about the model has {name}; add `benchmark` and wire its report"
            )
    return _decide(said, "")


def _memory(facts: Facts) -> Finding:
    limits: dict[str, float] = {**facts.objectives.slo, **facts.objectives.budget}
    bounds = [_Bound(name, "<=", bound) for name, bound in limits.items() if name.startswith("memory")]
    said = _measured(facts, bounds) + _judged(facts, _starts("memory"))
    if not bounds and not said:
        return Finding("not-applicable", "neither the spec nor a gate bounds memory", (GATES,))
    return _decide(said, f"no report about the model has {bounds[0].metric}" if bounds else "")


# -- what was written --------------------------------------------------------------------------------------------------


def _golden(facts: Facts) -> Finding:
    if facts.golden is not None:
        return Finding("failed", facts.golden)
    return Finding("passed", "an array for every input and output", _below(facts, "data/golden/"))


def _signature(facts: Facts) -> Finding:
    evidence = _below(facts, "model/")
    if facts.signature:
        reason = f"the graph is not as the signature says: {'; '.join(facts.signature)}"
        return Finding("failed", reason, evidence)
    signature = facts.history.model.signature
    tensors = ", ".join(f"{spec}" for spec in signature.inputs)
    answers = ", ".join(f"{spec}" for spec in signature.outputs)
    return Finding("passed", f"{tensors} → {answers}, as in the graph", evidence)


def _processing(facts: Facts) -> Finding:
    files = _below(facts, f"{PROCESSING}/")
    if files:
        return Finding("passed", f"{len(files)} file{'s' if len(files) > 1 else ''} in the package", files)
    if facts.card.get("processing"):
        return Finding("passed", "described in the model card", (MODEL_CARD,))
    return Finding(
        "failed",
        "nothing says how inputs are prepared and outputs are read; list the code in `processing`, "
        "or describe it in `model_card.processing`",
    )


def _license(facts: Facts) -> Finding:
    if facts.license is None:
        return Finding("failed", "no licence is stated; set `license` to an SPDX expression")
    evidence = tuple(path for path in (LICENSE, MANIFEST) if path == MANIFEST or path in facts.files)
    return Finding("passed", facts.license, evidence)


def _model_card(facts: Facts) -> Finding:
    missing = [f"model_card.{name}" for name in CARD_TEXTS if not facts.card.get(name)]
    if not facts.objectives.metadata.get("description"):
        missing.insert(0, "metadata.description")
    if missing:
        return Finding(
            "failed", f"it does not say {', '.join(missing)}; write them in the spec", (MODEL_CARD,)
        )
    return Finding(
        "passed", "it says what it is for, what it is not for, and what it learned from", (MODEL_CARD,)
    )


def _requirements(facts: Facts) -> Finding:
    if REQUIREMENTS in facts.files:
        return Finding("passed", "what it takes to run the model", (REQUIREMENTS,))
    return Finding(
        "failed", "nothing says what it takes to run the model; set `requirements` or `requirements_file`"
    )


def _provenance(facts: Facts) -> Finding:
    history = facts.history
    if not history.lineage.spec or not history.origin_known:
        return Finding(
            "failed",
            "the way from the sources to the model is not known; make it with stages of the same spec",
            (PROVENANCE,),
        )
    stages = ", ".join(item.node.node for item in reversed(history.conversions))
    reason = f"from what the spec brings by {stages}" if stages else "the spec brings the model as it is"
    return Finding("passed", reason, (PROVENANCE,))


def _ml_bom(facts: Facts) -> Finding:
    if ML_BOM in facts.files:
        return Finding("passed", "CycloneDX, with every file of the model", (ML_BOM,))
    return Finding("failed", "none was written")


def _drift_reference(facts: Facts) -> Finding:
    if facts.drift is not None:
        return Finding("failed", facts.drift)
    return Finding("passed", "of the evaluation data", (DRIFT_REFERENCE,))


def _calibration(facts: Facts) -> Finding:
    precision = facts.history.model.precision
    if facts.history.is_source:
        return Finding(
            "not-applicable",
            "the spec brings the model as it is: nothing was calibrated on the way",
            (PROVENANCE,),
        )
    if precision in FLOATING:
        return Finding(
            "not-applicable", f"the model computes in {precision}: nothing was calibrated", (MANIFEST,)
        )
    found = facts.history.calibration()
    if not found:
        return Finding("failed", f"the model computes in {precision}, and no calibration data is on record")
    said = ", ".join(f"{name} {digest[:12]}" for name, digest in found.items())
    return Finding("passed", said, (MANIFEST,))


def _owner(facts: Facts) -> Finding:
    owner = facts.objectives.metadata.get("owner")
    if not owner:
        return Finding("failed", "nobody is named; set metadata.owner")
    return Finding("passed", str(owner), (MANIFEST,))


def _approvals(facts: Facts) -> Finding:
    if not facts.approvals:
        # a package is made before anybody can be asked: what is approved is its release
        return Finding(
            "not-applicable",
            "approvals are bound to the release and are in the store's log: `shipctl history --audit`",
            (APPROVALS,),
        )
    return Finding("passed", f"{len(facts.approvals)} approvals", (APPROVALS,))


def _review_date(facts: Facts) -> Finding:
    if facts.review_date is None:
        return Finding("failed", "nobody said when to look at the model again; set `review_date`")
    return Finding("passed", facts.review_date.isoformat(), (MODEL_CARD,))


def _below(facts: Facts, folder: str) -> tuple[str, ...]:
    return tuple(path for path in facts.files if path.startswith(folder))


CHECKS: Mapping[CheckId, Callable[[Facts], Finding]] = {
    "weights": _weights,
    "parity": _parity,
    "accuracy": _accuracy,
    "accuracy-drop": _accuracy_drop,
    "latency": _latency,
    "memory": _memory,
    "golden": _golden,
    "signature": _signature,
    "processing": _processing,
    "license": _license,
    "model-card": _model_card,
    "requirements": _requirements,
    "provenance": _provenance,
    "ml-bom": _ml_bom,
    "drift-reference": _drift_reference,
    "calibration": _calibration,
    "owner": _owner,
    "approvals": _approvals,
    "review-date": _review_date,
}
