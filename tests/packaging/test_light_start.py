"""Commands that only look at a spec start at once: they import no framework."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {
    "google.protobuf", "kubernetes", "matplotlib", "minio", "numpy", "onnx", "onnxruntime", "onnxscript", "onnxslim",
    "safetensors", "scipy", "sklearn", "tensorflow", "torch", "tritonclient",
}  # fmt: skip
TERMINAL_ONLY = {"rich"}
RENDERING = {"jinja2"}

RUN_AND_LIST_MODULES = """
import json, sys
from shipctl.cli.main import main
sys.argv = ["shipctl", *sys.argv[1:]]
try:
    code = main()
except SystemExit as exc:
    code = exc.code
print("\\n" + json.dumps({"modules": sorted(sys.modules)}))
sys.exit(code)
"""


def imported_by(folder: Path, *arguments: str) -> tuple[str, set[str]]:
    """Run the command in a fresh interpreter; return what it printed and what it had imported at its end."""
    done = subprocess.run(
        [sys.executable, "-c", RUN_AND_LIST_MODULES, *arguments],
        cwd=folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    output, _, last = done.stdout.rstrip("\n").rpartition("\n")
    assert done.returncode == 0, output + done.stderr
    return output, set(json.loads(last)["modules"])


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["apply", "--help"]], ids=" ".join)
def test_help_and_version_import_neither_frameworks_nor_plugins(arguments: list[str], tmp_path: Path) -> None:
    _, modules = imported_by(tmp_path, *arguments)
    assert modules.isdisjoint(HEAVY | TERMINAL_ONLY | RENDERING)
    assert not [name for name in modules if name.startswith("shipctl_plugins.")]


def test_validate_imports_no_framework(tmp_path: Path) -> None:
    _, modules = imported_by(tmp_path, "validate", str(ROOT / "specs/digits.yaml"))
    assert modules.isdisjoint(HEAVY | TERMINAL_ONLY)


def test_validate_does_not_import_jinja_for_a_spec_without_expressions(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x3a\x00")
    spec = tmp_path / "spec.yaml"
    spec.write_text("""\
apiVersion: shipctl.dev/v1
kind: Pipeline
metadata: {name: small, version: 1.0.0}
model:
  uri: model.onnx
  inputs: [{name: x, dtype: float32, shape: [batch, 4]}]
  outputs: [{name: y, dtype: float32, shape: [batch, 4]}]
stages:
  - {id: weights, uses: validate-weights}
""")
    _, modules = imported_by(tmp_path, "validate", str(spec))
    assert modules.isdisjoint(HEAVY | TERMINAL_ONLY | RENDERING)


def test_the_version_is_the_installed_one(tmp_path: Path) -> None:
    output, _ = imported_by(tmp_path, "--version")
    assert output.strip() == f"shipctl {version('shipctl')}"
