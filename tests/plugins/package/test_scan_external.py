"""Scanners of others that `scan` calls."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shipctl.stages.context import JudgeContext, StageContext
from shipctl.stages.verdicts import Outcome
from shipctl.testing.samples import tiny_onnx_model
from shipctl_plugins.package.scan import Inputs, Options, Outputs, Scan

MakeContext = Callable[..., StageContext]
PYTHON = sys.executable


def scan(
    context: MakeContext, tmp_path: Path, *command: str, **options: object
) -> tuple[Outputs, list[str], set[str]]:
    """Return the outputs, the log, and the gates that say no."""
    given = Options.model_validate({"scanners": [list(command)], **options})
    said: list[str] = []
    outputs = Scan(given).run(Inputs(subject=tiny_onnx_model(tmp_path / "model")), context(log=said.append))
    verdicts = Scan(given).judge(outputs, JudgeContext())
    return outputs, said, {v.gate for v in verdicts if v.outcome is not Outcome.PASS}


def test_a_scanner_that_is_content_adds_nothing(context: MakeContext, tmp_path: Path) -> None:
    check = "import os, sys; print(sorted(os.listdir(sys.argv[1])))"
    _, said, failed = scan(context, tmp_path, PYTHON, "-c", check)
    assert "scan.scanners" not in failed
    assert any("model.onnx" in line for line in said)


def test_a_scanner_that_objects_fails_its_gate_and_is_quoted(context: MakeContext, tmp_path: Path) -> None:
    outputs, _, failed = scan(
        context, tmp_path, PYTHON, "-c", "import sys; print('CVE-1 found'); sys.exit(3)", "{folder}"
    )
    assert "scan.scanners" in failed
    [row] = outputs.report.details["findings"]
    assert row["message"].endswith("ended with exit code 3: CVE-1 found")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["no-such-scanner"], "the scanner no-such-scanner is not installed"),
        ([PYTHON, "-c", "import time; time.sleep(60)"], "failed: TimeoutExpired"),
    ],
)
def test_a_scanner_that_cannot_answer_never_passes(
    context: MakeContext, tmp_path: Path, command: list[str], said: str
) -> None:
    outputs, _, failed = scan(context, tmp_path, *command, scanner_timeout="500ms")
    assert "scan.unscannable" in failed
    assert said in outputs.report.details["findings"][0]["message"]


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not on PATH: apt-get install skopeo")
def test_an_image_scanner_gets_an_image(context: MakeContext, tmp_path: Path) -> None:
    _, said, failed = scan(context, tmp_path, "skopeo", "inspect", "oci:{image}")
    assert "scan.scanners" not in failed
    assert any("Layers" in line for line in said)
