"""Stage `archive`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from shipctl.errors import VerificationError
from shipctl.evidence.archives import opened
from shipctl.evidence.keys import PrivateKey
from shipctl.evidence.verify import Trust, verify_package
from shipctl.stages.artifacts import Artifact, ModelPackage, OnnxModel
from shipctl.testing.conformance import StageConformance
from shipctl.testing.samples import sealed, tiny_onnx_model
from shipctl_plugins.package.archive import Archive, Inputs, Options, Outputs
from support_engine import flip_bit
from support_packaging import META, Case, full_case
from support_signing import native_key, signed


def tiny_package(tmp_path: Path) -> ModelPackage:
    """Return a package of the tiny model, with nothing else."""
    bare = Case(
        workdir=tmp_path, model=tiny_onnx_model(tmp_path / "model"), reports=(), nodes=(), sources=(),
        repository=None, golden=None, calibration=None, evaluation=None, objectives={"metadata": META},
    )  # fmt: skip
    return bare.run().package


class Conformance(StageConformance):
    stage = "archive"

    def inputs(self, tmp_path: Path) -> Mapping[str, Artifact | list[Artifact] | None]:
        (tmp_path / "inputs").mkdir()
        return {"package": tiny_package(tmp_path / "inputs")}


class TestConformance(Conformance):
    pass


class TestConformanceOfLayouts(Conformance):
    options: ClassVar[Mapping[str, Any]] = {"format": "oci", "compression": "gzip"}


@pytest.fixture
def case(tmp_path: Path, digits_onnx: OnnxModel, specs: Path) -> Case:
    return full_case(tmp_path, digits_onnx, specs / "data")


def archive(case: Case, package: ModelPackage, **options: Any) -> Outputs:
    return Archive(Options(**options)).run(Inputs.model_construct(package=package), case.context())


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("form", ["tar", "oci"])
def test_archive_opens_as_the_package_it_was(case: Case, form: Any, compression: Any) -> None:
    package = case.run().package
    made = archive(case, package, format=form, compression=compression).archive
    assert (made.name, made.version, made.package, made.format) == ("digits", "1.0.0", package.digest, form)
    with opened(made.root) as folder:
        assert sealed(package.located(folder)).digest == package.digest


def test_tar_is_called_after_the_model_and_its_version(case: Case) -> None:
    package = case.run().package
    assert archive(case, package).archive.root.name == "digits-1.0.0.tar"
    assert archive(case, package, compression="gzip").archive.root.name == "digits-1.0.0.tar.gz"


def test_layout_tells_licence_owner_and_description(case: Case) -> None:
    root = archive(case, case.run().package, format="oci").archive.root
    [entry] = json.loads((root / "index.json").read_bytes())["manifests"]
    manifest = json.loads((root / "blobs/sha256" / entry["digest"].removeprefix("sha256:")).read_bytes())
    assert manifest["annotations"] == {
        "org.opencontainers.image.title": "digits", "org.opencontainers.image.version": "1.0.0",
        "org.opencontainers.image.licenses": "Apache-2.0", "org.opencontainers.image.vendor": "vision-team",
        "org.opencontainers.image.description": "Reads a digit.",
    }  # fmt: skip
    titles = [layer["annotations"]["org.opencontainers.image.title"] for layer in manifest["layers"]]
    assert titles == ["package", "data", "evidence", "model", "repository"]


@pytest.mark.parametrize("form", ["tar", "oci"])
def test_archive_of_a_signed_package_is_verified_as_it_is(case: Case, tmp_path: Path, form: Any) -> None:
    key = PrivateKey(native_key())
    package = case.run().package
    shutil.copytree(package.root, tmp_path / "signed")
    both = sealed(package.located(signed(tmp_path / "signed", key)))
    made = archive(case, both, format=form).archive
    found = verify_package(made.root, Trust(keys=(key.public,)), expect="digits@1.0.0")
    assert (found.reference, found.signer, found.files) == ("digits@1.0.0", key.public.id, len(both.files))
    with pytest.raises(VerificationError, match="was expected"):
        verify_package(made.root, Trust(keys=(key.public,)), expect="digits@2.0.0")
    flip_bit(tmp_path / "signed" / "model" / "model.onnx")
    altered = archive(case, both, format=form).archive
    with pytest.raises(VerificationError, match=r"model/model\.onnx was altered"):
        verify_package(altered.root, Trust(keys=(key.public,)))
