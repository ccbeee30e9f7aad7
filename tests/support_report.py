"""The data of a run's page, made up: every section has something in it."""

from __future__ import annotations

from typing import Any

from shipctl.report.data import (
    ArtifactLine,
    Candidate,
    GateLine,
    Measurement,
    ReleaseStep,
    RunLine,
    RunReport,
    Selection,
    StageLine,
)  # fmt: skip
from shipctl.stages.verdicts import Outcome, Verdict, compare

BEGAN = 1_772_366_462.0
CURVE = [[1, 2e-5], [50, 2.1e-5], [90, 2.4e-5], [95, 3e-5], [99, 9e-5], [99.9, 4e-3]]


def stage(node: str, status: str = "done", **fields: Any) -> StageLine:
    defaults: dict[str, Any] = {
        "node": node, "uses": "light", "status": status, "message": "", "reasons": ("it has not run yet",),
        "attempt": 1,
        "started": BEGAN + 1, "seconds": 3.2, "made_in": None, "peak_memory": 450_000_000, "fingerprint": "f" * 64,
        "gates": 0, "outcome": None,
    }  # fmt: skip
    return StageLine(**{**defaults, **fields})


def measurement(node: str, subject: str, details: dict[str, Any], **metrics: float) -> Measurement:
    return Measurement(
        node=node, uses="benchmark", title=f"Title of {node}", subject=subject, subject_node=f"made-{subject[0]}",
        digest="d" * 64, metrics=metrics, details=details,
    )  # fmt: skip


def benchmark(
    node: str, subject: str, *, factor: float = 1.0, batches: tuple[int, ...] = (1, 8)
) -> Measurement:
    curve = [[percent, seconds * factor] for percent, seconds in CURVE]
    rows = [
        {
            "batch": batch,
            "threads": 1,
            "stable": True,
            "mean": 2e-5 * factor,
            "curve": curve,
            "percentiles": [{"percent": 99.5, "seconds": 1e-4 * factor}],
        }
        for batch in batches
    ]
    return measurement(
        node,
        subject,
        {"configurations": rows, "host": "h" * 64, "headline": {"batch": 1, "threads": 1}},
        **{"latency.p95": 3e-5 * factor},
    )


def sample_report(**changes: Any) -> RunReport:
    rejected = compare("accuracy", 0.91, ">=", 0.97)
    unclear = Verdict(gate="stability", outcome=Outcome.INCONCLUSIVE, message="it did not settle")
    passed = compare("latency.p95", 3e-5, "<=", 0.1, metric="latency.p95")
    details = {
        "classes": [{"class": 0, "precision": 0.99, "ok": True}, {"class": 1, "precision": 0.97, "extra": "x"}],
        "confusion": [[9, 1], [0, 10]], "output": "logits", "batches": [1, 3], "machine": {"cores": 2}, "none": None,
    }  # fmt: skip
    fields: dict[str, Any] = {
        "run": RunLine(
            id="20260301-120102-abcdef", pipeline="digits", version="1.4.0", spec="specs/digits.yaml",
            command="shipctl apply digits.yaml", user="ada", host="forge", plan="a" * 64, started=BEGAN,
            finished=BEGAN + 22.1, exit_code=4, message="accuracy: 0.91 is not >= 0.97",
        ),
        "stages": (
            stage("onnx", gates=1, outcome=Outcome.PASS),
            stage("int8[method=minmax]", "cached", seconds=None, made_in=1.5),
            stage("accuracy", "rejected", message="accuracy 0.91 is not >= 0.97", gates=2, outcome=Outcome.FAIL),
            stage("release", "blocked", message="accuracy was rejected", started=None, seconds=None, peak_memory=None),
        ),
        "gates": (
            GateLine(node="speed", verdict=passed),
            GateLine(node="accuracy", verdict=unclear),
            GateLine(node="accuracy", verdict=rejected),
        ),
        "measurements": (
            benchmark("speed-a", "a" * 64),
            benchmark("speed-b", "b" * 64, factor=2.0),
            measurement("accuracy", "a" * 64, details, accuracy=0.91, **{"accuracy.low": 0.9}),
        ),
        "selections": (
            Selection(
                node="best", objective="minimize latency.p95",
                subject_to=("accuracy_drop <= budget.accuracy_drop",),
                candidates=(
                    Candidate(name="int8 aaaa", node="int8[method=minmax]", digest="a" * 64, chosen=True,
                              reason="latency.p95 30 us", values={"latency.p95": 3e-5, "latency.p95.low": 2e-5}),
                    Candidate(name="fp32 bbbb", node="onnx", digest="b" * 64, chosen=False,
                              reason="60 us against 30 us of int8 aaaa",
                              values={"latency.p95": 6e-5, "size": 400_000.0}),
                ),
            ),
        ),
        "artifacts": (
            ArtifactLine(node="onnx", output="model", kind="onnx-model", digest="b" * 64, size=389_120, files=1,
                         facts={"opset": "21", "precision": "fp32"}),
        ),
        "steps": (
            ReleaseStep(node="release", target="local", revision="c" * 64, phase="preflight",
                        message="golden samples agree", time=BEGAN + 20),
        ),
    }  # fmt: skip
    return RunReport(**{**fields, **changes})
