"""Stage `unpack`: what comes out is what went in, or nothing does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from shipctl.errors import GateError, ShipctlError, StageError
from shipctl.records import digest_of
from shipctl.stages.artifacts import Artifact, ModelPackage, OnnxModel
from shipctl.stages.base import NoOptions
from shipctl.testing.conformance import StageConformance
from shipctl.testing.samples import sealed, tiny_dataset, tiny_onnx_model
from shipctl_plugins.package.unpack import Inputs, Outputs, Unpack
from support_engine import EngineProject, flip_bit
from support_packaging import META, Case, full_case, repository_of


class TestConformance(StageConformance):
    stage = "unpack"

    def inputs(self, tmp_path: Path) -> Mapping[str, Artifact | list[Artifact] | None]:
        folder = tmp_path / "inputs"
        folder.mkdir()
        model = tiny_onnx_model(folder / "model")
        case = Case(
            workdir=folder, model=model, reports=(), nodes=(), sources=(),
            repository=repository_of(model, folder / "repository"), golden=tiny_dataset(folder, "golden"),
            calibration=None, evaluation=None, objectives={"metadata": META},
        )  # fmt: skip
        return {"package": case.run().package}


@pytest.fixture
def case(tmp_path: Path, digits_onnx: OnnxModel, specs: Path) -> Case:
    return full_case(tmp_path, digits_onnx, specs / "data")


@pytest.fixture
def package(case: Case, tmp_path: Path) -> ModelPackage:
    """A package whose files are no links, so that a test can change them."""
    made = case.run().package
    shutil.copytree(made.root, tmp_path / "own")
    return made.located(tmp_path / "own")


def unpack(case: Case, package: ModelPackage) -> Outputs:
    return Unpack(NoOptions()).run(Inputs.model_construct(package=package), case.context())


def test_what_comes_out_has_the_digests_that_went_in(case: Case, package: ModelPackage) -> None:
    outputs = unpack(case, package)
    assert case.repository is not None
    assert case.golden is not None
    assert outputs.model.digest == sealed(outputs.model).digest == case.model.digest
    assert outputs.repository.digest == sealed(outputs.repository).digest == case.repository.digest
    assert outputs.golden.digest == sealed(outputs.golden).digest == case.golden.digest
    assert outputs.model.path.read_bytes() == case.model.path.read_bytes()


def test_signed_package_is_unpacked(case: Case, package: ModelPackage) -> None:
    """What `sign` adds is in no manifest."""
    (package.root / "model.sig").write_text("{}")
    (package.root / "evidence" / "provenance.dsse.json").write_text("{}")
    assert unpack(case, package).model.digest == case.model.digest


MISSING = {
    "repository": (
        "digits@1.0.0 has no repository; put `triton-config` into the `needs` of its `package` stage, "
        "and package it again"
    ),
    "golden": "digits@1.0.0 has no golden; add `data.golden` to the spec that packages it, and package it again",
}  # fmt: skip


@pytest.mark.parametrize("what", MISSING)
def test_package_without_a_part_says_how_to_get_it(case: Case, what: str) -> None:
    with pytest.raises(StageError) as caught:
        unpack(case, case.but(**{what: None}).run().package)
    assert str(caught.value) == MISSING[what]


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "changed": (lambda root: flip_bit(root / "model/model.onnx"), "model/model.onnx"),
    "changed-evidence": (lambda root: flip_bit(root / "evidence/gates.json"), "evidence/gates.json"),
    "missing": (lambda root: (root / "MODEL_CARD.md").unlink(), "MODEL_CARD.md"),
    "surplus": (lambda root: (root / "repository/more").write_text("x"), "repository/more"),
    "link": (
        lambda root: (root / "repository/link").symlink_to(root / "package.json"), "repository/link is a link",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_package_that_differs_from_its_manifest_is_refused(
    case: Case, package: ModelPackage, what: str
) -> None:
    change, name = CHANGES[what]
    change(package.root)
    with pytest.raises(GateError) as caught:
        unpack(case, package)
    assert name in str(caught.value)


def edit(package: ModelPackage, change: Callable[[dict[str, Any]], object]) -> None:
    path = package.root / "package.json"
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))


def relabel(document: dict[str, Any]) -> None:
    document["version"] = "2.0.0"


def lie_about_the_model(document: dict[str, Any]) -> None:
    """With a digest that fits: what does not is the one that the package was published under."""
    item = document["artifacts"][0]
    item["manifest"]["precision"] = "fp16"
    item["digest"] = digest_of(item["manifest"])


def lie_about_a_digest(document: dict[str, Any]) -> None:
    document["artifacts"][1]["manifest"]["max_batch_size"] = 64


def reach_outside(document: dict[str, Any]) -> None:
    document["artifacts"][1]["manifest"]["files"][0]["path"] = "../../../etc/passwd"


def another_kind(document: dict[str, Any]) -> None:
    del document["artifacts"][2]["manifest"]["role"]


LIES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "version": (relabel, "package.json says digits@2.0.0, and the package is called digits@1.0.0"),
    "model": (lie_about_the_model, "and says that it is"),
    "digest": (lie_about_a_digest, "digits@1.0.0: repository is"),
    "path": (reach_outside, "what package.json says of repository is no triton-repository; package it again"),
    "kind": (another_kind, "what package.json says of data.golden is no dataset; package it again"),
    "format": (lambda document: document.update(format="other"), "is not a package manifest"),
}  # fmt: skip


@pytest.mark.parametrize("what", LIES)
def test_manifest_that_lies_is_refused(case: Case, package: ModelPackage, what: str) -> None:
    change, said = LIES[what]
    edit(package, change)
    with pytest.raises(GateError) as caught:
        unpack(case, package)
    assert said in str(caught.value)


def test_folder_that_is_no_package_is_refused(case: Case, package: ModelPackage) -> None:
    (package.root / "package.json").unlink()
    with pytest.raises(ShipctlError, match="is no package"):
        unpack(case, package)


# -- through the engine ----------------------------------------------------------------------------------------------

STAGES = """
- {id: weights, uses: validate-weights}
- {id: accuracy, uses: evaluate}
- {id: repository, uses: triton-config, needs: [accuracy]}
- id: package
  uses: package
  needs: [accuracy, repository]
  inputs: {model: accuracy}
  with: {license: MIT, processing: [prepare.py]}
- {id: tar, uses: archive, needs: [package]}
- {id: oci, uses: archive, needs: [package], with: {format: oci}}
- {id: back, uses: unpack, needs: [package]}
- {id: again, uses: triton-config, needs: [back]}
"""
HEAD = """
model:
  uri: model.onnx
  inputs: [{name: x, dtype: float32, shape: [batch, 4]}]
  outputs: [{name: y, dtype: float32, shape: [batch, 3]}]
data:
  evaluation: {uri: evaluation.npz, metric: accuracy, min: 97%}
  golden: {uri: golden.npz}
"""


@pytest.mark.slow
def test_package_through_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Store files are linked into the package and out of it again; the store stays whole, the digests the same."""
    project = EngineProject(tmp_path / "project")
    monkeypatch.chdir(project.root)
    shutil.copyfile(tiny_onnx_model(tmp_path / "tiny").path, project.root / "model.onnx")
    for role in ("evaluation", "golden"):
        tiny_dataset(project.root, role)
    (project.root / "prepare.py").write_text("# nothing to do\n")
    project.spec(STAGES, head=HEAD)
    project.edit("{name: demo, version: 1.0.0}", "{name: demo, version: 1.0.0, owner: ann}")
    run = project.apply()
    assert run.code == 0, run.messages
    project.assert_whole()
    made: dict[str, list[dict[str, Any]]] = {}
    for path in project.results():
        result = json.loads(path.read_bytes().partition(b"\n")[2])
        made.setdefault(result["uses"], []).append(result["outputs"])
    [[package], [back], repositories] = [made[name] for name in ("package", "unpack", "triton-config")]
    assert repositories == [{"repository": back["repository"]}]  # `again` found what `repository` had made
    files = {entry["path"]: entry["sha256"] for entry in package["package"]["files"]}
    assert files["model/model.onnx"] == back["model"]["files"][0]["sha256"]
    assert "processing/prepare.py" in files

    # bounds of the stage run nothing again; a file of the project that changed does
    assert set(project.apply().statuses.values()) == {"cached"}
    project.edit("processing: [prepare.py]", "processing: [prepare.py], require: [owner, license]")
    assert set(project.actions().values()) == {"cached"}
    (project.root / "prepare.py").write_text("# another\n")
    assert project.to_run() == ["package", "tar", "oci", "back", "again"]

    # a line that is required and failed stops what comes after
    project.edit("require: [owner, license]", "require: [review-date]")
    failed = project.apply()
    assert failed.code == 4
    assert failed.statuses["package"] == "rejected"
    assert "nobody said when to look at the model again" in failed.messages["package"]
