"""The delivery checklist: no line passes without its evidence, and what does not apply says by which fact."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shipctl.errors import SpecError
from shipctl.signature import TensorSpec
from shipctl.stages.artifacts import OnnxModel, Report
from shipctl.stages.context import CheckContext, LineageSource
from shipctl.stages.verdicts import Outcome, compare
from shipctl_plugins.package._facts import TITLES
from shipctl_plugins.package.package import Options
from support_packaging import CARD, FULL, META, SOURCE, Case, dataset, full_case, judged, node, report


@pytest.fixture
def case(tmp_path: Path, digits_onnx: OnnxModel, specs: Path) -> Case:
    return full_case(tmp_path, digits_onnx, specs / "data")


def test_with_all_evidence_every_line_is_settled(case: Case) -> None:
    lines = case.lines()
    assert list(lines) == list(TITLES)
    statuses = {name: line["status"] for name, line in lines.items()}
    settled = dict.fromkeys(TITLES, "passed") | {"memory": "not-applicable", "calibration": "not-applicable"}
    assert statuses == settled | {"approvals": "not-applicable"}


def test_lines_say_what_they_were_decided_on(case: Case) -> None:
    outputs = case.run()
    files = {entry.path: entry.sha256 for entry in outputs.package.files}
    lines = outputs.checklist.details["lines"]
    for line in lines:
        if line["status"] == "passed":
            assert line["evidence"], line["id"]
        for item in line["evidence"]:
            assert item["path"] in files
            if item["sha256"] is not None:  # those that are written after the checklist have none in it
                assert item["sha256"] == files[item["path"]]
    accuracy = next(line for line in lines if line["id"] == "accuracy")
    assert [item["path"] for item in accuracy["evidence"]] == [
        "evidence/reports/01-evaluation/report.json", "evidence/gates.json",
    ]  # fmt: skip
    assert accuracy["reason"] == "accuracy 0.99 >= 0.97"


# -- evidence taken away ---------------------------------------------------------------------------------------------


def without_node(name: str) -> Callable[[Case], Case]:
    return lambda case: case.but(nodes=tuple(node for node in case.nodes if node.node != name))


def with_card(**texts: str | None) -> Callable[[Case], Case]:
    card = {key: value for key, value in {**CARD, **texts}.items() if value}
    return lambda case: case.but(options={**FULL, "model_card": card})


def with_meta(**fields: Any) -> Callable[[Case], Case]:
    return lambda case: case.but(objectives={**case.objectives, "metadata": {**META, **fields}})


def without_option(name: str) -> Callable[[Case], Case]:
    return lambda case: case.but(options={key: value for key, value in FULL.items() if key != name})


def quiet(*names: str) -> Callable[[Case], Case]:
    """The stage ran, and no gate of it said anything."""
    return lambda case: case.but(
        nodes=tuple(
            node.model_copy(update={"verdicts": ()}) if node.node in names else node for node in case.nodes
        )
    )


GONE: dict[str, tuple[str, Callable[[Case], Case], str]] = {
    "weights": (
        "weights", without_node("weights"),
        "no gate looked at the weights; add `validate-weights` before the conversion",
    ),
    "parity": (
        "parity", quiet("onnx"),
        "no gate compared what onnx (torch-export) made with what it was made from; give it a bound of parity",
    ),
    "how-it-was-made": (
        "parity", without_node("onnx"),
        "nothing is known of how the model was made; make it with stages of the same spec",
    ),
    "evaluation": (
        "accuracy", lambda case: case.without_report("Evaluation"),
        "no report about the model says how good its answers are; add `evaluate` and wire its report",
    ),
    "bound-and-gate-of-quality": (
        "accuracy",
        lambda case: quiet("accuracy")(case.but(objectives={**case.objectives, "data": {"evaluation": {}}})),
        "nothing bounds the quality of the answers; set `min` in data.evaluation and add `evaluate`",
    ),
    "accuracy-drop": (
        "accuracy-drop", lambda case: case.without_report("Evaluation"),
        "no report about the model has accuracy_drop; let `evaluate` compare with the source model",
    ),
    "benchmark": (
        "latency", lambda case: case.without_report("Benchmark"),
        "no report about the model has latency.p95; add `benchmark` and wire its report",
    ),
    "one-objective-of-two": (
        "latency",
        lambda case: case.but(objectives={**case.objectives, "slo": {"latency.p95": 0.02, "throughput": 5.0}}),
        "no report about the model has throughput; add `benchmark` and wire its report",
    ),
    "memory": (
        "memory", lambda case: case.but(objectives={**case.objectives, "budget": {"memory": 1e9}}),
        "no report about the model has memory",
    ),
    "golden": (
        "golden", lambda case: case.but(golden=None),
        "there are none; add `data.golden` to the spec, with an array per input and output",
    ),
    "processing": (
        "processing", with_card(processing=None),
        (
            "nothing says how inputs are prepared and outputs are read; list the code in `processing`, "
            "or describe it in `model_card.processing`"
        ),
    ),
    "license": ("license", without_option("license"), "no licence is stated; set `license` to an SPDX expression"),
    "card-text": (
        "model-card", with_card(limitations=None), "it does not say model_card.limitations; write them in the spec",
    ),
    "description": (
        "model-card", with_meta(description=None), "it does not say metadata.description; write them in the spec",
    ),
    "requirements": (
        "requirements", lambda case: case.but(nodes=()),
        "nothing says what it takes to run the model; set `requirements` or `requirements_file`",
    ),
    "provenance": (
        "provenance", lambda case: case.but(sources=case.sources[1:]),
        "the way from the sources to the model is not known; make it with stages of the same spec",
    ),
    "drift-reference": (
        "drift-reference", lambda case: case.but(evaluation=None),
        "there is no evaluation data to take it of; add `data.evaluation` to the spec",
    ),
    "owner": ("owner", with_meta(owner=None), "nobody is named; set metadata.owner"),
    "review-date": (
        "review-date", without_option("review_date"),
        "nobody said when to look at the model again; set `review_date`",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", GONE)
def test_line_without_evidence_is_failed(case: Case, what: str) -> None:
    name, change, reason = GONE[what]
    assert change(case).line(name) == ("failed", reason)


# -- evidence against ------------------------------------------------------------------------------------------------


def with_verdict(case: Case, name: str, verdict: Any) -> Case:
    return case.but(
        nodes=tuple(
            item.model_copy(update={"verdicts": (*item.verdicts, verdict)}) if item.node == name else item
            for item in case.nodes
        )
    )


def test_a_gate_that_said_no_outweighs_one_that_said_yes(case: Case) -> None:
    bad = compare("weights.inf", 3.0, "==", 0.0, subject=SOURCE)
    assert with_verdict(case, "weights", bad).line("weights") == ("failed", "weights.inf 3 is not == 0")


def test_a_bound_that_moved_is_asked_again_of_the_report(case: Case) -> None:
    """The gate said yes to the old bound; the spec says another one now."""
    moved = case.but(
        objectives={**case.objectives, "data": {"evaluation": {"metric": "accuracy", "min": 0.995}}}
    )
    assert moved.line("accuracy") == ("failed", "accuracy 0.99 is not >= 0.995")
    assert case.but(objectives={**case.objectives, "slo": {"latency.p95": 0.001}}).line("latency") == (
        "failed", "latency.p95 0.01 is not <= 0.001",
    )  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_none_is_no_evidence(case: Case, tmp_path: Path, value: float) -> None:
    broken = report(tmp_path / "nan", case.model, "Evaluation", accuracy=value)
    changed = case.without_report("Evaluation")
    status, reason = changed.but(reports=(broken, *changed.reports)).line("accuracy")
    assert (status, reason) == ("failed", f"accuracy is {value}, >= 0.97 cannot be decided")


def test_report_about_another_model_is_no_evidence(case: Case) -> None:
    changed = case.without_report("Evaluation")
    [evaluation] = [item for item in case.reports if item.title == "Evaluation"]
    other = evaluation.model_copy(update={"subject": "9" * 64}).located(evaluation.root)
    assert changed.but(reports=(other, *changed.reports)).line("accuracy")[0] == "failed"


def test_verdict_about_another_candidate_is_no_evidence(case: Case, tmp_path: Path) -> None:
    """`select` took two models and passed on one: what gates said of the other counts for nothing."""
    other = "9" * 64
    chosen = node("best", "select", {"models": case.model.digest}, {"model": case.model.digest})
    chosen = chosen.model_copy(update={"inputs": {"models": (case.model.digest, other)}})
    loser = node("int8", "int8-calibration", {"model": case.model.digest}, {"model": other},
                 compare("parity.cosine", 0.1, ">=", 0.98, subject=other))  # fmt: skip
    both = case.but(nodes=(*case.nodes, loser, chosen))
    assert both.line("parity") == ("passed", "parity.max_abs_error 1e-06 <= 0.001")
    assert quiet("onnx")(both).line("parity")[0] == "failed"


def test_accuracy_of_the_source_is_no_accuracy_of_the_model(case: Case) -> None:
    source = judged(
        Report(subject=case.model.digest, title="x", metrics={"accuracy_source": 0.99}),
        "accuracy_source",
        ">=",
        0.5,
    )
    assert with_verdict(case.without_report("Evaluation"), "onnx", source).line("accuracy")[0] == "failed"


GOLDEN: dict[str, tuple[dict[str, Any], str]] = {
    "no-input": (
        {"logits": (2, 10)}, "golden data has no array 'image', only logits; name its arrays after the model's inputs",
    ),
    "no-output": (
        {"image": (2, 1, 8, 8)}, "golden data has no array 'logits', which is what the model should answer; add it",
    ),
    "counts": ({"image": (2, 1, 8, 8), "logits": (3, 10)}, "golden data has 2, 3 samples in different arrays"),
    "empty": ({"image": (0, 1, 8, 8), "logits": (0, 10)}, "golden data has no samples; give at least one"),
    "shape": (
        {"image": (2, 8, 8), "logits": (2, 10)},
        "golden data: array 'image' has shape [2, 8, 8], the model takes image: float32[batch, 1, 8, 8]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", GOLDEN)
def test_golden_samples_have_to_fit(case: Case, tmp_path: Path, what: str) -> None:
    import numpy as np

    shapes, reason = GOLDEN[what]
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    assert case.but(golden=dataset(tmp_path / "g.npz", "golden", **arrays)).line("golden") == (
        "failed",
        reason,
    )


def test_signature_has_to_be_that_of_the_graph(case: Case, tmp_path: Path) -> None:
    wrong = case.model.signature.model_copy(
        update={"outputs": (TensorSpec(name="logits", dtype="float32", shape=("batch", 12)),)}
    )
    model = case.model.model_copy(update={"signature": wrong}).located(case.model.root)
    status, reason = case.but(model=model, repository=None).line("signature")
    assert status == "failed"
    assert reason.startswith("the graph is not as the signature says: output 'logits'")


def test_data_that_does_not_fit_gives_no_drift_reference(case: Case, tmp_path: Path) -> None:
    import numpy as np

    other = dataset(tmp_path / "e.npz", "evaluation", picture=np.zeros((2, 1, 8, 8), np.float32))
    assert case.but(evaluation=other).line("drift-reference") == (
        "failed",
        "evaluation data has no array 'image', only picture; name its arrays after the model's inputs",
    )


def test_quantised_model_without_calibration_data_is_failed(case: Case) -> None:
    model = case.model.model_copy(update={"precision": "int8"}).located(case.model.root)
    assert case.but(model=model, repository=None, nodes=()).line("calibration") == (
        "failed", "the model computes in int8, and no calibration data is on record",
    )  # fmt: skip


# -- what does not apply ---------------------------------------------------------------------------------------------


def from_the_spec(case: Case) -> Case:
    """The spec brings the ONNX model itself."""
    source = LineageSource(name="model", uri="model.onnx", digest=case.model.digest)
    return case.but(sources=(source, *case.sources[1:]), nodes=case.nodes[2:])


def without_objective(name: str) -> Callable[[Case], Case]:
    return lambda case: case.but(objectives={**case.objectives, name: {}})


NOT_APPLICABLE: dict[str, tuple[str, Callable[[Case], Case], str]] = {
    "nothing-converted": (
        "parity", from_the_spec, "the spec brings the model as it is: nothing was converted",
    ),
    "nothing-quantised": (
        "calibration", lambda case: case, "the model computes in fp32: nothing was calibrated",
    ),
    "brought-as-it-is": (
        "calibration", from_the_spec, "the spec brings the model as it is: nothing was calibrated on the way",
    ),
    "no-budget": ("accuracy-drop", without_objective("budget"), "the spec has no budget.accuracy_drop"),
    "no-slo": ("latency", without_objective("slo"), "the spec has no objective for latency or throughput"),
    "no-memory": ("memory", lambda case: case, "neither the spec nor a gate bounds memory"),
}  # fmt: skip


@pytest.mark.parametrize("what", NOT_APPLICABLE)
def test_line_that_does_not_apply_says_by_which_fact(case: Case, what: str) -> None:
    name, change, reason = NOT_APPLICABLE[what]
    assert change(case).line(name) == ("not-applicable", reason)


def test_model_of_the_spec_has_provenance(case: Case) -> None:
    """Also where a stage passed it on, which made nothing of it."""
    brought = from_the_spec(case)
    assert brought.line("provenance") == ("passed", "the spec brings the model as it is")
    chosen = node("best", "select", {"models": case.model.digest}, {"model": case.model.digest})
    passed_on = brought.but(nodes=(*brought.nodes, chosen))
    assert passed_on.line("provenance") == ("passed", "the spec brings the model as it is")


# -- waivers and the verdict -----------------------------------------------------------------------------------------


def waiving(case: Case, check: str, **options: Any) -> Case:
    waiver = {"check": check, "by": "Ann", "reason": "first release"}
    return case.but(options={**case.options, "waive": [waiver], **options})


def test_waived_line_names_who_and_why_and_what_was_found(case: Case) -> None:
    line = waiving(case.but(golden=None), "golden").lines()["golden"]
    assert (line["status"], line["by"], line["reason"]) == (
        "waived", "Ann",
        "first release (found: there are none; add `data.golden` to the spec, with an array per input and output)",
    )  # fmt: skip


def test_waiver_of_a_line_that_passes_changes_nothing(case: Case) -> None:
    line = waiving(case, "owner").lines()["owner"]
    assert (line["status"], line["by"]) == ("passed", None)


@pytest.mark.parametrize(
    "waiver", [{"by": "Ann"}, {"reason": "x"}, {"by": "", "reason": "x"}, {"by": "A", "reason": ""}]
)
def test_waiver_needs_a_name_and_a_reason(waiver: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="waive"):
        Options.model_validate({"waive": [{"check": "owner", **waiver}]})


def test_line_cannot_be_waived_twice(case: Case) -> None:
    waivers = [{"check": "owner", "by": name, "reason": "x"} for name in ("Ann", "Bob")]
    stage = case.but(options={"waive": waivers}).stage
    with pytest.raises(SpecError) as caught:
        stage.check(CheckContext(project=case.workdir, pipeline="digits"))
    assert str(caught.value) == "waive: 'owner' is waived twice; leave one of the two"


def test_required_lines_pass_without_further_options(case: Case) -> None:
    bare = case.but(options={})
    verdicts = bare.verdicts()
    assert {verdict.outcome for verdict in verdicts.values()} == {Outcome.PASS}
    assert verdicts["checklist.accuracy"].message == (
        "Quality on the evaluation data within its bound: passed: accuracy 0.99 >= 0.97"
    )
    assert verdicts["checklist.memory"].message == (
        "Memory within its bound: not-applicable: neither the spec nor a gate bounds memory"
    )


def test_required_line_that_failed_says_what_to_do(case: Case) -> None:
    verdict = with_meta(owner=None)(case).verdicts()["checklist.owner"]
    assert verdict.outcome is Outcome.FAIL
    assert verdict.message == (
        "Owner named: nobody is named; set metadata.owner; "
        "or let a person answer for it with `waive: [{check: owner, by: NAME, reason: WHY}]`"
    )


def test_required_line_that_is_waived_passes(case: Case) -> None:
    verdict = waiving(with_meta(owner=None)(case), "owner").verdicts()["checklist.owner"]
    assert (verdict.outcome, verdict.message) == (
        Outcome.PASS,
        "Owner named: waived by Ann: first release (found: nobody is named; set metadata.owner)",
    )


def test_what_is_required_is_chosen(case: Case) -> None:
    options = {**FULL, "require": ["review-date", "license"]}
    del options["review_date"]
    verdicts = case.but(options=options).verdicts()
    assert {gate: verdict.outcome for gate, verdict in verdicts.items()} == {
        "checklist.review-date": Outcome.FAIL, "checklist.license": Outcome.PASS,
    }  # fmt: skip


@pytest.mark.parametrize("details", [{}, {"lines": "x"}, {"lines": [{"id": "owner"}]}])
def test_report_that_does_not_say_is_no_pass(case: Case, details: dict[str, Any]) -> None:
    outputs = case.run()
    hollow = outputs.checklist.model_copy(update={"details": details})
    verdict = case.verdicts(outputs.model_copy(update={"checklist": hollow}))["checklist.owner"]
    assert verdict.outcome is Outcome.FAIL


def test_unknown_line_is_refused() -> None:
    with pytest.raises(ValueError, match="require"):
        Options.model_validate({"require": ["no-such-line"]})
