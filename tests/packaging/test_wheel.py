"""The wheel: that it holds what the repository holds, and that it works by itself, beside a plugin by somebody else.

Everything here runs in one fresh environment outside the checkout, without torch and without a runtime.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
THIRD_PARTY = Path(__file__).parent / "third_party"
SOURCES = ("core", "plugins", "templates")

# One worker builds and installs; the others have nothing to do with it.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SPEC = """\
apiVersion: shipctl.dev/v1
kind: Pipeline
metadata: {name: small, version: 1.0.0}
vars: {owner: acme-vision}
model:
  uri: model.onnx
  inputs: [{name: x, dtype: float32, shape: [batch, 4]}]
  outputs: [{name: y, dtype: float32, shape: [batch, 3]}]
stages:
  - id: weights
    uses: validate-weights
  - id: stamp
    uses: acme-stamp
    with: {owner: "${{ vars.owner }}"}
"""


def run(
    *command: str | Path, cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=280, check=False)


def checked(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = run(*command, cwd=cwd, env=env)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def built(project: Path, folder: Path) -> Path:
    """Build the wheel of ``project`` with the tools of this environment, so that nothing is fetched for it."""
    checked(
        sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, project, cwd=folder
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


@dataclass(frozen=True)
class Installation:
    """A fresh environment, and a folder outside the checkout."""

    bin: Path
    outside: Path

    def pip(self, *arguments: str | Path) -> str:
        """Run the pip of this environment on that one."""
        return checked(
            sys.executable, "-m", "pip", "--python", self.bin / "python", *arguments, cwd=self.outside
        )

    def shipctl(self, *arguments: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
        # Nothing of the environment that runs the tests may leak in: neither its path nor its coverage.
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))}
        env |= {"PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", **environ}
        return run(self.bin / "shipctl", *arguments, cwd=cwd, env=env)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def installation(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    folder = tmp_path_factory.mktemp("installation")
    plugin = built(THIRD_PARTY, tmp_path_factory.mktemp("plugin"))
    # Neither a pip of its own nor compiled modules that nothing imports: both take longer than the rest.
    checked(sys.executable, "-m", "venv", "--without-pip", folder / "env", cwd=folder)
    made = Installation(bin=folder / "env" / "bin", outside=folder / "outside")
    made.outside.mkdir()
    made.pip("install", "--quiet", "--no-compile", "--constraint", ROOT / "constraints.txt", wheel, plugin)
    return made


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a folder with a spec and the small ONNX model that it names."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((4, 3)).astype(np.float32), "weight")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"])],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "small.yaml").write_text(SPEC)
    return tmp_path


def files_of_the_repository() -> set[str]:
    """Return what git tracks (or would, once it is added) below the source folders, as the wheel names it."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *SOURCES]
    done = run(*command, cwd=ROOT)
    if done.returncode:
        pytest.skip("this is not a git checkout")
    names = [name for name in done.stdout.split("\0") if name and (ROOT / name).exists()]
    return {name.partition("/")[2] for name in names}


def test_the_wheel_holds_exactly_what_git_tracks(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    metadata = {name for name in names if name.partition("/")[0].endswith(".dist-info")}
    packed, tracked = names - metadata, files_of_the_repository()
    assert tracked, "git tracks no source file"
    assert packed == tracked, (
        f"missing in the wheel: {sorted(tracked - packed)}; foreign: {sorted(packed - tracked)}"
    )


def test_the_wheel_carries_its_licence_and_its_commands(wheel: Path) -> None:
    names = {name.partition("/")[2] for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" in name}
    assert {"METADATA", "entry_points.txt", "licenses/LICENSE"} <= names


def test_the_environment_is_light_and_consistent(installation: Installation) -> None:
    installation.pip("check")
    names = {package["name"].lower() for package in json.loads(installation.pip("list", "--format=json"))}
    assert {"shipctl", "acme-shipctl", "onnx", "numpy"} <= names
    assert names.isdisjoint({"torch", "onnxruntime", "tritonclient", "scipy", "scikit-learn"})


def test_the_installed_command_runs_a_spec_with_a_stage_and_a_hook_of_somebody_else(
    installation: Installation, project: Path
) -> None:
    audit = project / "audit.txt"
    first = installation.shipctl("apply", "small.yaml", cwd=project, ACME_AUDIT_FILE=str(audit))
    assert first.returncode == 0, first.stdout + first.stderr
    assert audit.read_text().splitlines() == [
        "plan small",
        "stage validate-weights done",
        "stage acme-stamp done",
        "run small 0",
    ]
    stored = [path for path in (project / ".shipctl").rglob("*") if path.is_file()]
    assert any(b"acme.owner" in (data := path.read_bytes()) and b"acme-vision" in data for path in stored)

    audit.unlink()
    second = installation.shipctl("apply", "small.yaml", cwd=project, ACME_AUDIT_FILE=str(audit))
    assert second.returncode == 0, second.stdout + second.stderr
    assert audit.read_text().splitlines() == [
        "plan small",
        "stage validate-weights cached",
        "stage acme-stamp cached",
        "run small 0",
    ]


def test_the_stage_of_somebody_else_is_listed_and_described(installation: Installation) -> None:
    listed = installation.shipctl("stages", "list", cwd=installation.outside)
    assert listed.returncode == 0, listed.stderr
    assert "acme-stamp" in listed.stdout
    assert "torch-export" in listed.stdout
    described = installation.shipctl("stages", "describe", "acme-stamp", cwd=installation.outside)
    assert described.returncode == 0, described.stderr
    assert "Write the model's owner into its metadata." in described.stdout
    assert "Who answers for the model." in described.stdout


def test_its_options_are_checked_like_our_own(installation: Installation, project: Path) -> None:
    spec = project / "small.yaml"
    spec.write_text(SPEC.replace('owner: "${{ vars.owner }}"', 'onwer: "acme-vision"'))
    done = installation.shipctl("plan", "small.yaml", cwd=project)
    assert done.returncode == 2, done.stdout + done.stderr
    message = done.stdout + done.stderr
    assert "small.yaml:14:12" in message
    assert "'owner'" in message


def test_a_stage_whose_extra_is_missing_says_what_to_install(
    installation: Installation, project: Path
) -> None:
    spec = project / "small.yaml"
    spec.write_text(SPEC.replace("uses: acme-stamp", "uses: onnx-simplify").partition("    with:")[0])
    done = installation.shipctl("plan", "small.yaml", cwd=project)
    assert "pip install 'shipctl[optimize]'" in done.stdout + done.stderr
