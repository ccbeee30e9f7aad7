"""Scanners of others, such as trivy or grype: called with the folder, or with an OCI image of it."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from shipctl.stages.artifacts import Artifact, ModelPackage
from shipctl_plugins.package._scan_findings import Findings

FOLDER, IMAGE = "{folder}", "{image}"
_SHOWN = 200
"""Characters of what a scanner said that its finding shows; the log has all of it."""


def call(
    command: Sequence[str],
    root: Path,
    subject: Artifact,
    timeout: float,
    found: Findings,
    log: Callable[[str], None],
) -> None:
    """Run a scanner; anything but exit code 0 is a finding, and so is one that is missing or does not end."""
    name = Path(command[0]).name
    with tempfile.TemporaryDirectory() as temporary:
        image = Path(temporary) / "image"
        if any(IMAGE in word for word in command):
            _write_image(root, image, subject)
        words = [word.replace(FOLDER, str(root)).replace(IMAGE, str(image)) for word in command]
        if not any(FOLDER in word or IMAGE in word for word in command):
            words.append(str(root))
        try:
            done = subprocess.run(
                words, capture_output=True, text=True, errors="replace", timeout=timeout, check=False
            )
        except FileNotFoundError:
            found.unscannable("", f"the scanner {command[0]} is not installed")
            return
        except (OSError, subprocess.TimeoutExpired) as exc:
            found.unscannable("", f"the scanner `{shlex.join(command)}` failed: {type(exc).__name__}")
            return
    said = (done.stdout + done.stderr).replace(str(root), "").strip()
    for line in said.splitlines():
        log(f"{name}: {line}")
    if done.returncode:
        last = said.splitlines()[-1][:_SHOWN] if said else "it said nothing"
        found.add("scanner", "high", "", f"{name} ended with exit code {done.returncode}: {last}", name)


def _write_image(root: Path, image: Path, subject: Artifact) -> None:
    from shipctl.evidence.archives import write_oci

    if isinstance(subject, ModelPackage):
        write_oci(root, image, name=subject.name, version=subject.version)
    else:
        write_oci(root, image, name=subject.kind, version="0.0.0")
