"""Applies one release in a process of its own and kills itself at a given point, for the test of resuming.

``python applying_process.py JOB.json POINT``: the job has the artifacts' manifests and roots; the state is kept
beside it. POINT is ``before:<method>`` or ``after:<method>`` of LocalTarget or Releases, or ``-``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from shipctl.stages.artifacts import Artifact, Dataset, TritonRepository
from shipctl.stages.context import ReleaseContext
from shipctl_plugins._triton.local_target import LocalTarget
from shipctl_plugins._triton.releases import Releases
from shipctl_plugins._triton.server import TritonServer
from shipctl_plugins.deploy.triton_deploy import (
    TritonDeploy,
    TritonDeployInputs,
    TritonDeployOptions,
    TritonDeployState,
)


def open_artifact(kind: type[Artifact], job: dict[str, Any]) -> Any:
    fields = {name: value for name, value in job["manifest"].items() if name != "kind"}
    return kind.model_validate(fields).located(Path(job["root"]))


def die(point: str) -> None:
    when, _, name = point.partition(":")
    owner = next((owner for owner in (LocalTarget, Releases, TritonServer) if name in vars(owner)), None)
    if owner is None:
        return
    original = getattr(owner, name)

    def replaced(*args: Any, **kwargs: Any) -> Any:
        if when == "after":
            original(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, replaced)


def main() -> None:
    job_file, point = Path(sys.argv[1]), sys.argv[2]
    job = json.loads(job_file.read_text())
    die(point)
    stage = TritonDeploy(TritonDeployOptions.model_validate(job["options"]))
    inputs = TritonDeployInputs(
        repository=open_artifact(TritonRepository, job["repository"]),
        golden=open_artifact(Dataset, job["golden"]),
    )
    folders: dict[str, Any] = {name: Path(job["context"].pop(name)) for name in ("project", "target_dir")}
    context = ReleaseContext(**folders, **job["context"])
    state_file = job_file.with_suffix(".state")
    state = TritonDeployState()
    if state_file.exists():
        state = TritonDeployState.model_validate_json(state_file.read_text())
    while True:
        state, step = stage.step(state, inputs, context)
        state_file.write_text(state.model_dump_json())
        sys.stdout.write(f"{step.phase} {step.message}\n")
        sys.stdout.flush()
        if step.phase.is_final:
            return
        time.sleep(step.requeue)


if __name__ == "__main__":
    main()
