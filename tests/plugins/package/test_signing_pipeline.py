"""`sign` in a pipeline: the key comes from a secret and is nowhere afterwards."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shipctl.evidence.keys import PrivateKey
from shipctl.evidence.verify import Trust, verify_package
from shipctl.stages.artifacts import ModelPackage
from shipctl.store.local import LocalStore
from shipctl.testing.fixtures import Invocation, SampleProject, project
from support_cli import install

__all__ = ["project"]

MAKER = '''
"""A stage that makes a package."""
from support_signing import SIGNATURE, MODEL, make_package
from shipctl import Dataset, Stage, StageInputs, StageOptions, StageOutputs
from shipctl.stages.artifacts import ModelPackage

class Options(StageOptions):
    """None."""

class Inputs(StageInputs):
    """Nothing that matters."""
    samples: Dataset

class Outputs(StageOutputs):
    """A package."""
    package: ModelPackage

class Maker(Stage[Options, Inputs, Outputs]):
    """Make a package."""
    api_version = 1
    isolation = "inline"

    def run(self, inputs, ctx):
        folder = make_package(ctx.workdir / "p")
        return Outputs(package=ModelPackage.at(
            folder, name="digits", version="1.1.0", model=MODEL, signature=SIGNATURE))
'''

SPEC = """\
apiVersion: shipctl.dev/v1
kind: Pipeline
metadata: {name: digits, version: 1.1.0}
data:
  samples: {uri: samples.npz}
secrets:
  signing_key: {env: SIGNING_KEY}
stages:
  - id: make
    uses: test-maker
  - id: sign
    uses: sign
    with:
      key: ${{ secrets.signing_key }}
      public_key: release.pub
"""


@pytest.fixture
def pipeline(
    project: SampleProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SampleProject]:
    """A project that makes a package and signs it."""
    import numpy as np

    install(tmp_path / "site", "package_maker", MAKER, "[shipctl.stages]\ntest-maker = package_maker:Maker\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    np.savez(project.root / "samples.npz", x=np.zeros((2, 3), dtype=np.float32))
    yield project.write({"spec.yaml": SPEC})
    sys.modules.pop("package_maker", None)


def apply(project: SampleProject, key: PrivateKey) -> Invocation:
    project.write({"release.pub": key.public.pem()})
    return project.run("apply", "spec.yaml", "-v", environ={"SIGNING_KEY": key.pem().decode()})


def signed_by(project: SampleProject, key: PrivateKey) -> str:
    """Return the digest of the package in the store that a key has signed, after verifying it."""
    store = LocalStore(project.root / ".shipctl/store")
    for path in (project.root / ".shipctl/store/results").rglob("*"):
        result = store.load_result(path.name) if path.is_file() else None
        if result is not None and result.outputs.get("package", {}).get("signer") == key.public.id:
            package = store.artifact(ModelPackage, result.outputs["package"])
            folder = store.view(package, project.root / "view" / key.public.id[-8:]).root
            assert verify_package(folder, Trust((key.public,))).digest == package.digest
            return package.digest
    raise AssertionError("nothing was signed")


def test_a_pipeline_signs_with_a_secret_that_is_nowhere_afterwards(pipeline: SampleProject) -> None:
    key = PrivateKey.generate("ecdsa-p256")
    result = apply(pipeline, key)
    assert result.exit_code == 0, result.stderr
    assert f"signed digits@1.1.0 with {key.public.id}" in result.stdout + result.stderr
    assert signed_by(pipeline, key)
    secrets = [line.encode() for line in key.pem().decode().splitlines()[1:-1]]
    secrets.append(base64.b64encode(key.pem())[4:60])
    for path in pipeline.root.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(secret in content for secret in secrets), path
    assert not any(secret.decode() in result.stdout + result.stderr for secret in secrets)


@pytest.mark.slow
def test_a_rotated_key_signs_anew_and_only_then(pipeline: SampleProject) -> None:
    first, second = PrivateKey.generate(), PrivateKey.generate()
    assert apply(pipeline, first).exit_code == 0
    before = signed_by(pipeline, first)
    again = apply(pipeline, first)
    assert again.exit_code == 0
    assert "signed digits@1.1.0" not in again.stdout + again.stderr
    rotated = apply(pipeline, second)
    assert f"signed digits@1.1.0 with {second.public.id}" in rotated.stdout + rotated.stderr
    assert signed_by(pipeline, second) != before
    assert signed_by(pipeline, first) == before


@pytest.mark.slow
def test_a_wrong_key_fails_the_stage_without_a_traceback(pipeline: SampleProject) -> None:
    project = pipeline.write({"release.pub": PrivateKey.generate().public.pem()})
    key = PrivateKey.generate()
    result = project.run("apply", "spec.yaml", environ={"SIGNING_KEY": key.pem().decode()})
    assert result.exit_code == 1
    assert f"the private key is {key.public.id} and public_key is sha256:" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr
