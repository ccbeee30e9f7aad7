"""The evidence in a package, file by file, and package.json, which is written last."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from shipctl.errors import StageError
from shipctl.evidence.package import (
    DRIFT_REFERENCE,
    MANIFEST,
    ML_BOM,
    PROVENANCE,
    REPORTS,
    PackagedArtifact,
    PackageManifest,
)
from shipctl.evidence.provenance import slsa_statement, statement_bytes
from shipctl.signature import Signature
from shipctl.stages.artifacts import Dataset, ModelPackage, OnnxModel, Report
from shipctl.stages.context import Lineage, Objectives
from shipctl_plugins._evidence.ml_bom import ml_bom
from shipctl_plugins._onnx import arrays, graph
from shipctl_plugins.package._contents import Contents
from shipctl_plugins.package._drift import drift_reference
from shipctl_plugins.package._facts import REQUIREMENTS, Facts
from shipctl_plugins.package._history import History

_SLUG = 40
_BOM_NAMES = {"ethical_considerations": "ethics"}


def put_reports(contents: Contents, reports: Sequence[Report]) -> list[tuple[str, Report, PackagedArtifact]]:
    """Add every report once; return each with the path of its first file and what package.json says of it."""
    found = []
    for number, report in enumerate({report.digest: report for report in reports}.values(), start=1):
        slug = re.sub(r"[^a-z0-9]+", "-", report.title.lower())[:_SLUG].strip("-") or "report"
        folder = f"{REPORTS}/{number:02}-{slug}"
        item = contents.put_artifact(f"report.{number}", folder, report)
        found.append((f"{folder}/{report.files[0].path}", report, item))
    return found


def gates(lineage: Lineage) -> list[dict[str, Any]]:
    """Return what every gate above the package said, stage by stage."""
    return [
        {
            "node": node.node,
            "uses": node.uses,
            "verdicts": [json.loads(item.model_dump_json()) for item in node.verdicts],
        }
        for node in lineage.nodes
        if node.verdicts
    ]


def metrics_of(history: History, reports: Sequence[Report]) -> dict[str, float]:
    """Return what was measured of the model itself: what reports say, then what gates were told."""
    model = history.model.digest
    found: dict[str, float] = {}
    for report in reports:
        if report.subject == model:
            found = {**report.metrics, **found}
    for _, verdict in history.verdicts((model,), lambda verdict: verdict.value is not None):
        if verdict.metric is not None and verdict.value is not None:
            found.setdefault(verdict.metric, verdict.value)
    return {name: value for name, value in sorted(found.items()) if math.isfinite(value)}


def put_drift_reference(
    contents: Contents, model: OnnxModel, evaluation: Dataset | None, *, threads: int
) -> str | None:
    """Add the drift reference; return why there is none."""
    if evaluation is None:
        return "there is no evaluation data to take it of; add `data.evaluation` to the spec"
    try:
        reference = drift_reference(model, evaluation, threads=threads)
    except StageError as exc:
        return str(exc)
    if not reference["samples"]:
        return "the evaluation data has no samples"
    contents.put_json(DRIFT_REFERENCE, reference)
    return None


def put_ml_bom(
    contents: Contents,
    history: History,
    objectives: Objectives,
    metrics: Mapping[str, float],
    license_: str | None,
    card: Mapping[str, str],
) -> None:
    """Add the ML-BOM.

    :raises StageError: if the requirements are no text
    :raises GateError: if they bring what they do not name
    """
    meta, path = objectives.metadata, contents.root / REQUIREMENTS
    try:
        requirements = path.read_text(encoding="utf-8") if REQUIREMENTS in contents else None
    except UnicodeDecodeError as exc:
        message = f"{REQUIREMENTS} is not UTF-8 ({exc.reason} at byte {exc.start}); save it as text"
        raise StageError(message) from None
    body = ml_bom(
        name=meta["name"],
        version=meta["version"],
        owner=meta.get("owner"),
        description=meta.get("description"),
        license=license_,
        files=[entry for entry in contents.files if entry.path.startswith("model/")],
        signature=history.model.signature,
        metrics=metrics,
        datasets=[item for item in history.lineage.sources if item.name.startswith("data.")],
        lineage=history.lineage,
        requirements=requirements,
        card={_BOM_NAMES.get(name, name): text for name, text in card.items()},
    )
    contents.put(ML_BOM, body)


def golden_problem(golden: Dataset | None, signature: Signature) -> str | None:
    """Say what is wrong with golden samples: none, an array that is missing, no sample."""
    if golden is None:
        return "there are none; add `data.golden` to the spec, with an array per input and output"
    try:
        found = arrays.load_arrays(golden)
        arrays.model_inputs(found, signature, "golden")
    except StageError as exc:
        return str(exc)
    missing = [spec.name for spec in signature.outputs if spec.name not in found]
    if missing:
        return f"golden data has no array {missing[0]!r}, which is what the model should answer; add it"
    counts = {len(found[spec.name]) for spec in (*signature.inputs, *signature.outputs)}
    if len(counts) > 1:
        return f"golden data has {', '.join(map(str, sorted(counts)))} samples in different arrays"
    return None if counts != {0} else "golden data has no samples; give at least one"


def signature_problems(model: OnnxModel) -> list[str]:
    """Say, a line each, where the graph is not as the artifact's signature says."""
    return graph.graph_differences(graph.load_model(model.path, external=False), model.signature)


def seal(
    contents: Contents,
    packaged: Sequence[PackagedArtifact],
    facts: Facts,
    metrics: Mapping[str, float],
) -> ModelPackage:
    """Add the provenance of all other files and then package.json, and return the package."""
    meta, history = facts.objectives.metadata, facts.history
    statement = slsa_statement(
        name=meta["name"],
        version=meta["version"],
        subjects=contents.digests(),
        lineage=history.lineage,
        metadata=meta,
    )
    contents.put(PROVENANCE, statement_bytes(statement))
    manifest = PackageManifest(
        name=meta["name"],
        version=meta["version"],
        owner=meta.get("owner"),
        description=meta.get("description"),
        labels=dict(meta.get("labels") or {}),
        license=facts.license,
        signature=history.model.signature,
        metrics=dict(metrics),
        calibration=history.calibration(),
        artifacts=tuple(packaged),
        files=contents.files,
    )
    contents.put_json(MANIFEST, json.loads(manifest.model_dump_json()))
    return ModelPackage.at(
        contents.root,
        files=contents.files,
        name=manifest.name,
        version=manifest.version,
        model=history.model.digest,
        signature=manifest.signature,
    )
