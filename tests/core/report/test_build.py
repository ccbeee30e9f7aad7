from __future__ import annotations

from pathlib import Path

import pytest

from shipctl.engine.journal import Journal, RunRow, StageRow, StepRow
from shipctl.engine.project import Project
from shipctl.errors import SpecError
from shipctl.records import digest_of
from shipctl.report.build import build_report
from shipctl.stages.artifacts import FileEntry, OnnxModel, Report
from shipctl.stages.verdicts import Outcome, compare
from shipctl.store.local import LocalStore, Result
from shipctl.testing.samples import SIGNATURE

MODEL = OnnxModel(
    files=(FileEntry(path="model.onnx", sha256="1" * 64, size=400),),
    signature=SIGNATURE,
    opset=21,
    precision="int8",
)


def report_about(subject: str, **details: object) -> Report:
    return Report(
        files=(FileEntry(path="report.json", sha256="2" * 64, size=4),), subject=subject, title="Selection",
        metrics={"latency.p95": 0.01, "bad": float("nan")}, details=details,
    )  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project with one run of two stages: one made a model, the cached other chose it."""
    project = Project(tmp_path)
    project.create()
    candidates = [
        {
            "name": "fp32",
            "digest": "0" * 64,
            "chosen": False,
            "reason": "slower",
            "values": {"latency.p95": 0.02},
        },
        {
            "name": "int8",
            "digest": MODEL.digest,
            "chosen": True,
            "reason": "",
            "values": {"latency.p95": "nan"},
        },
    ]
    selection = report_about(
        MODEL.digest, candidates=candidates, direction="minimize", objective="latency.p95"
    )
    store = LocalStore(project.store)
    for fingerprint, outputs, passed in (
        ("a" * 64, {"model": MODEL}, {}),
        ("b" * 64, {"model": MODEL, "report": selection}, {"model": MODEL.digest}),
    ):
        store.save_result(
            Result(
                fingerprint=fingerprint, uses="light", passed=passed,
                created=1.0, seconds=7.5,
                outputs={name: item.manifest() for name, item in outputs.items()}, peak_memory=1000,
            )
        )  # fmt: skip
    journal = Journal(project.journal)
    for run in ("run-1", "run-2"):
        journal.begin_run(
            RunRow(
                run,
                "p",
                "1.0.0",
                "spec.yaml",
                "shipctl apply",
                "ada",
                "forge",
                "c" * 64,
                5.0,
                None,
                None,
                None,
            )
        )
    journal.record_stage(
        StageRow("run-2", "int8", "int8", "light", 1, "done", "", ["new"], "a" * 64, 5.5, 2.0, 2000)
    )
    journal.record_stage(
        StageRow("run-2", "best", "best", "select", 1, "cached", "", [], "b" * 64, 8.0, 0.0, None)
    )
    journal.record_verdict("run-2", "int8", compare("accuracy", 0.99, ">=", 0.97), 6.0)
    journal.record_verdict("run-2", "int8", compare("latency", None, "<=", 1.0), 6.0)
    journal.record_step(StepRow("run-2", "release", "local", "d" * 64, "done", "it serves", 9.0))
    journal.end_run("run-2", 10.0, 0, "done")
    journal.close()
    return project


def test_stages_with_their_gates_and_where_the_outputs_were_made(project: Project) -> None:
    report = build_report(project, "run-2")
    made, cached = report.stages
    assert (made.node, made.seconds, made.made_in, made.peak_memory, made.gates) == (
        "int8",
        2.0,
        None,
        2000,
        2,
    )
    assert made.outcome is Outcome.ERROR
    assert (cached.node, cached.made_in, cached.peak_memory, cached.outcome) == ("best", 7.5, 1000, None)
    assert [(step.phase, step.message) for step in report.steps] == [("done", "it serves")]
    assert (report.run.finished, report.run.exit_code) == (10.0, 0)


def test_artifacts_are_named_where_they_were_made_not_where_they_passed(project: Project) -> None:
    (artifact,) = build_report(project, "run-2").artifacts
    assert (artifact.node, artifact.kind, artifact.size, artifact.files) == ("int8", "onnx-model", 400, 1)
    assert artifact.digest == digest_of(MODEL.manifest()) == MODEL.digest
    assert artifact.facts == {"opset": "21", "precision": "int8"}


def test_selection_names_candidates_by_the_stage_that_made_them(project: Project) -> None:
    (selection,) = build_report(project, "run-2").selections
    assert (selection.node, selection.objective) == ("best", "minimize latency.p95")
    assert [(item.node, item.name, item.chosen, item.reason) for item in selection.candidates] == [
        ("int8", "int8", True, ""),
        (None, "fp32", False, "slower"),
    ]


def test_front_and_what_was_not_tried_are_read(project: Project) -> None:
    rows = [
        {
            "name": "int8",
            "digest": MODEL.digest,
            "x": 1.0,
            "y": 0.0,
            "on_front": True,
            "chosen": True,
            "share": 0.5,
        },
    ]
    axes = {
        "x": {
            "metric": "latency.p95", "direction": "minimize",
            "bounds": [{"text": "latency.p95 <= 20ms", "value": 0.02}],
        },
        "y": {"metric": "accuracy_drop", "direction": "minimize", "bounds": []},
    }  # fmt: skip
    _keep(project, report_about(MODEL.digest, candidates=[], pareto=rows, pareto_axes=axes))
    (selection,) = build_report(project, "run-3").selections
    assert [(item.node, item.reason) for item in selection.not_tried] == [
        ("int4", "best takes 1 of 2 candidates")
    ]
    assert selection.pareto is not None
    assert selection.pareto.x_bounds == ((0.02, "latency.p95 <= 20ms"),)
    assert [(item.node, item.x, item.chosen, item.share) for item in selection.pareto.points] == [
        (None, 1.0, True, 0.5)
    ]


@pytest.mark.parametrize(
    "details", [{"pareto": [{"x": 1}]}, {"pareto": 3, "pareto_axes": {}}, {"pareto_axes": {"x": 1}}]
)
def test_details_that_mean_something_else_by_the_word_are_no_front(
    project: Project, details: dict[str, object]
) -> None:
    _keep(project, report_about(MODEL.digest, candidates=[], **details))
    assert build_report(project, "run-3").selections[0].pareto is None


def _keep(project: Project, selection: Report) -> None:
    """Add a run whose stage `best` made a report, and in which `int4` and `other` were skipped."""
    result = Result(
        fingerprint="e" * 64, uses="search", passed={}, created=1.0, seconds=1.0, peak_memory=1,
        outputs={"report": selection.manifest()},
    )  # fmt: skip
    LocalStore(project.store).save_result(result)
    with Journal(project.journal) as journal:
        journal.begin_run(
            RunRow(
                "run-3", "p", "1.0.0", "spec.yaml", "apply", "ada", "forge", "c" * 64, 6.0, None, None, None
            )
        )
        said = {"int4": "not tried: best takes 1 of 2 candidates", "other": "its `when` says no"}
        for node, why in said.items():
            journal.record_stage(
                StageRow("run-3", node, node, "light", 1, "skipped", why, [], None, None, None, None)
            )
        journal.record_stage(
            StageRow("run-3", "best", "best", "search", 1, "done", "", [], "e" * 64, 8.0, 0.0, None)
        )


def test_the_latest_run_is_the_default_and_a_prefix_is_enough(project: Project) -> None:
    assert build_report(project).run.id in {"run-1", "run-2"}
    with pytest.raises(SpecError, match=r"^2 runs begin with 'run': run-\d, run-\d; write more of it$"):
        build_report(project, "run")


def test_a_report_survives_json(project: Project) -> None:
    report = build_report(project, "run-2")
    assert (
        type(report).model_validate_json(report.model_dump_json()).model_dump_json()
        == report.model_dump_json()
    )


def test_nothing_has_run(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"yet; begin with `shipctl apply SPEC`$"):
        build_report(Project(tmp_path))
