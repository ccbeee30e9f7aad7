"""Stage `package`: what is in the package, and that the same inputs give the same bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from shipctl.errors import GateError, SpecError, StageError
from shipctl.evidence.contents import check_manifest, hash_files, listing
from shipctl.evidence.package import read_manifest
from shipctl.evidence.provenance import check_subjects, read_statement
from shipctl.stages.artifacts import Artifact, OnnxModel
from shipctl.stages.context import CheckContext, Objectives
from shipctl.testing.conformance import StageConformance
from shipctl.testing.samples import sealed
from shipctl_plugins.package.package import Outputs
from support_packaging import FULL, META, Case, full_case


class TestConformance(StageConformance):
    stage = "package"
    options: ClassVar[Mapping[str, Any]] = {"license": "MIT"}
    objectives = Objectives(metadata=META, slo={"latency.p95": 0.02})


@pytest.fixture
def case(tmp_path: Path, digits_onnx: OnnxModel, specs: Path) -> Case:
    return full_case(tmp_path, digits_onnx, specs / "data")


def document(outputs: Outputs, path: str) -> Any:
    return json.loads((outputs.package.root / path).read_bytes())


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_layout(case: Case, tmp_path: Path) -> None:
    (tmp_path / "prepare.py").write_text("def prepare(image): return image / 16\n")
    (tmp_path / "terms.txt").write_text("Do what you like.\n")
    options = {
        **FULL, "processing": [str(tmp_path / "prepare.py")], "license_file": str(tmp_path / "terms.txt"),
        "include": ["evaluation"],
    }  # fmt: skip
    root = case.but(options=options).run().package.root
    assert names(root) == [
        "CHECKLIST.md", "LICENSE", "MODEL_CARD.md", "data/evaluation/digits-evaluation.npz",
        "data/golden/digits-golden.npz", "evidence/approvals.json", "evidence/checklist.json",
        "evidence/drift-reference.json", "evidence/gates.json", "evidence/ml-bom.cdx.json",
        "evidence/provenance.json", "evidence/reports/01-evaluation/report.json",
        "evidence/reports/02-benchmark/report.json", "evidence/reports/03-export/report.json",
        "model/model.onnx", "package.json", "processing/prepare.py", "repository/digits/1/model.onnx",
        "repository/digits/config.pbtxt", "requirements.txt",
    ]  # fmt: skip


def test_bare_model_is_packaged_with_what_there_is(case: Case) -> None:
    bare = case.but(
        repository=None, golden=None, calibration=None, evaluation=None, reports=(), nodes=(), sources=(),
        options={},
    )  # fmt: skip
    root = bare.run().package.root
    assert names(root) == [
        "CHECKLIST.md", "MODEL_CARD.md", "evidence/approvals.json", "evidence/checklist.json",
        "evidence/gates.json", "evidence/ml-bom.cdx.json", "evidence/provenance.json", "model/model.onnx",
        "package.json",
    ]  # fmt: skip


def test_manifest_names_every_file_and_what_can_be_taken_out(case: Case) -> None:
    package = case.run().package
    manifest = read_manifest(package.root)
    files, empty = listing(package.root, "digits")
    check_manifest(manifest, hash_files(package.root, files, "digits"), "digits")
    assert empty == []
    assert [(item.role, item.path) for item in manifest.artifacts] == [
        ("model", "model"), ("repository", "repository"), ("data.golden", "data/golden"),
        ("report.1", "evidence/reports/01-evaluation"), ("report.2", "evidence/reports/02-benchmark"),
        ("report.3", "evidence/reports/03-export"),
    ]  # fmt: skip
    given: list[Artifact | None] = [case.model, case.repository, case.golden, *case.reports]
    assert [item.digest for item in manifest.artifacts] == [item.digest for item in given if item]
    assert (manifest.reference, manifest.owner, manifest.license) == (
        "digits@1.0.0",
        "vision-team",
        "Apache-2.0",
    )
    assert manifest.labels == {"tier": "demo"}
    assert manifest.signature == case.model.signature
    assert manifest.metrics == {
        "accuracy": 0.99, "accuracy_drop": 0.001, "latency.p95": 0.01, "latency.p95.low": 0.009,
        "parity.max_abs_error": 1e-6, "samples": 600.0,
    }  # fmt: skip


def test_package_is_what_the_engine_will_store(case: Case) -> None:
    """The checklist is about the package by the digest that it will have."""
    outputs = case.run()
    assert sealed(outputs.package).digest == outputs.package.digest == outputs.checklist.subject
    assert outputs.package.model == case.model.digest
    assert outputs.package.signer is None


def test_same_inputs_give_the_same_bytes(case: Case) -> None:
    first, second = case.run().package, case.run().package
    assert first.root != second.root
    assert first.digest == second.digest
    assert first.digest != case.but(options={}).run().package.digest


def test_nothing_of_this_machine_is_in_it(case: Case, tmp_path: Path) -> None:
    (tmp_path / "prepare.py").write_text("")
    package = case.but(options={**FULL, "processing": [str(tmp_path / "prepare.py")]}).run().package
    for path in package.root.rglob("*"):
        assert not path.is_file() or str(tmp_path).encode() not in path.read_bytes(), path


def test_provenance_is_about_every_other_file(case: Case) -> None:
    package = case.run().package
    content = (package.root / "evidence/provenance.json").read_bytes()
    entries = hash_files(package.root, names(package.root), "digits")
    files = {entry.path: entry.sha256 for entry in entries}
    del files["package.json"], files["evidence/provenance.json"]
    check_subjects(read_statement(content), files)


def test_gates_are_told_with_their_numbers(case: Case) -> None:
    gates = document(case.run(), "evidence/gates.json")
    assert [item["node"] for item in gates] == ["weights", "onnx", "accuracy", "speed"]
    [verdict] = gates[0]["verdicts"]
    assert (verdict["metric"], verdict["outcome"], verdict["bound"]) == ("weights.nan", "pass", 0.0)
    assert document(case.run(), "evidence/approvals.json") == []


def test_bill_of_materials_names_the_models_files(case: Case) -> None:
    bom = document(case.run(), "evidence/ml-bom.cdx.json")
    component = bom["metadata"]["component"]
    assert (component["name"], component["version"]) == ("digits", "1.0.0")
    digest = hashlib.sha256(case.model.path.read_bytes()).hexdigest()
    assert digest in json.dumps(component)
    assert "Reading digits on forms." in json.dumps(bom)


def test_calibration_data_is_recorded_by_digest(case: Case) -> None:
    """Of a quantised model: which data of the spec went into the conversions."""
    model = case.model.model_copy(update={"precision": "int8"}).located(case.model.root)
    nodes = tuple(
        item.model_copy(update={"outputs": {"model": model.digest}}) if item.node == "onnx" else item
        for item in case.nodes
    )
    quantised = case.but(model=model, repository=None, nodes=nodes)
    assert case.calibration is not None
    assert read_manifest(quantised.run().package.root).calibration == {"calibration": case.calibration.digest}
    assert quantised.line("calibration") == ("passed", f"calibration {case.calibration.digest[:12]}")
    assert read_manifest(case.run().package.root).calibration == {}


def test_runtime_that_it_was_measured_in_is_required_by_default(case: Case) -> None:
    assert (case.run().package.root / "requirements.txt").read_text() == "onnxruntime==1.31.1\n"


def test_requirements_are_those_of_the_spec(case: Case, tmp_path: Path) -> None:
    asked = case.but(options={"requirements": ["onnxruntime>=1.20", "numpy"]}).run().package.root
    assert (asked / "requirements.txt").read_text() == "onnxruntime>=1.20\nnumpy\n"
    (tmp_path / "req.txt").write_text("# runtime\nonnxruntime==1.31.1\n")
    named = case.but(options={"requirements_file": str(tmp_path / "req.txt")}).run().package.root
    assert (named / "requirements.txt").read_text() == "# runtime\nonnxruntime==1.31.1\n"


def test_same_report_twice_is_packaged_once(case: Case) -> None:
    twice = case.but(reports=(*case.reports, *case.reports))
    assert len([name for name in names(twice.run().package.root) if "/reports/" in name]) == 3


def test_model_card_tells_what_is_known(case: Case) -> None:
    card = (case.run().package.root / "MODEL_CARD.md").read_text()
    for text in (
        "# digits 1.0.0", "| Owner | vision-team |", "| Licence | Apache-2.0 |",
        "| Source | digits.py:build (555555555555) |",
        "| input | image | float32 | [batch, 1, 8, 8] |", "| onnx | torch-export |", "Reading digits on forms.",
        "| slo latency.p95 | 0.02 s |", "| accuracy on evaluation data | ≥ 0.97 |", "| latency.p95 | 0.01 s |",
        "| 0 | 59 | 1 | 0.98 | 0.99 |", "## Training data\n\nUCI optical digits.",
        "Pixels are divided by 16.",
    ):  # fmt: skip
        assert text in card
    bare = (case.but(options={}).run().package.root / "MODEL_CARD.md").read_text()
    assert "## Intended use\n\nNot stated.\n" in bare
    assert ": failed: nobody said when to look at the model again" in bare


def test_tables_hold_together_whatever_is_in_them(case: Case) -> None:
    meta = {**META, "owner": "vision | team\nof two"}
    root = case.but(objectives={**case.objectives, "metadata": meta}).run().package.root
    assert "| Owner | vision \\| team of two |\n" in (root / "MODEL_CARD.md").read_text()
    row = next(line for line in (root / "CHECKLIST.md").read_text().splitlines() if "`owner`" in line)
    assert row.replace("\\|", "").count("|") == 6


def test_log_tells_what_is_not_settled(case: Case) -> None:
    said: list[str] = []
    case.run(said.append)
    assert said == ["digits@1.0.0: checklist: 16 passed, 3 not-applicable"]
    case.but(options={**FULL, "review_date": None}).run(said.append)
    assert said[1] == "digits@1.0.0: checklist: 15 passed, 1 failed, 3 not-applicable"
    assert said[2].endswith(": nobody said when to look at the model again; set `review_date`")


# -- what is wrong with the inputs or the options --------------------------------------------------------------------


def test_repository_of_another_model_is_refused(case: Case) -> None:
    assert case.repository is not None
    other = case.repository.model_copy(update={"source": "9" * 64}).located(case.repository.root)
    with pytest.raises(StageError) as caught:
        case.but(repository=other).run()
    assert str(caught.value) == (
        f"the repository holds the model 999999999999, and {case.model.digest[:12]} is to be packaged; "
        "wire both from the same stage with `inputs`"
    )


def test_data_that_is_not_there_cannot_be_included(case: Case) -> None:
    with pytest.raises(StageError) as caught:
        case.but(evaluation=None, options={"include": ["evaluation"]}).run()
    assert str(caught.value) == (
        "include: there is no evaluation data; add `data.evaluation` to the spec or take it out"
    )


def test_requirements_that_bring_what_they_do_not_name_are_refused(case: Case, tmp_path: Path) -> None:
    (tmp_path / "req.txt").write_text("-r other.txt\n")
    with pytest.raises(GateError, match=r"requirements\.txt:1: '-r other\.txt' brings something"):
        case.but(options={"requirements_file": str(tmp_path / "req.txt")}).run()


def test_requirements_that_are_no_text_are_refused(case: Case, tmp_path: Path) -> None:
    (tmp_path / "req.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(StageError, match=r"requirements\.txt is not UTF-8"):
        case.but(options={"requirements_file": str(tmp_path / "req.txt")}).run()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "license": (
        {"license": "Apache 2"},
        (
            "license: the licence 'Apache 2' names 'Apache 2', which SPDX does not know; write an identifier of "
            "https://spdx.org/licenses, or LicenseRef-… for one of your own"
        ),
    ),
    "requirement": (
        {"requirements": ["numpy", "numpy at all"]},
        "requirements: 'numpy at all' is no requirement such as name==version (PEP 508)",
    ),
    "requirements-twice": (
        {"requirements": ["numpy"], "requirements_file": "requirements.txt"},
        "requirements and requirements_file say the same thing twice; take one of them out",
    ),
    "processing-names": (
        {"processing": ["a/prepare.py", "b/prepare.py"]},
        "processing: two files are called 'prepare.py', and the package keeps names only; rename one",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_wrong_option_is_said_before_anything_runs(case: Case, what: str) -> None:
    options, message = WRONG[what]
    with pytest.raises(SpecError) as caught:
        case.but(options=options).stage.check(CheckContext(project=case.workdir, pipeline="digits"))
    assert str(caught.value) == message


@pytest.mark.parametrize("license_", ["MIT", "Apache-2.0 OR MIT", "LicenseRef-acme AND BSD-3-Clause"])
def test_licence_is_any_spdx_expression(case: Case, license_: str) -> None:
    stage = case.but(options={"license": license_}).stage
    stage.check(CheckContext(project=case.workdir, pipeline="digits"))
