"""`--context`: the kubeconfig's context of every target that has one, whatever the spec says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shipctl.testing.fixtures import SampleProject
from support_cli import RELEASING, Call

SPEC = """\
apiVersion: shipctl.dev/v1
kind: Pipeline
metadata: {name: m, version: 1.0.0}
vars: {target: {uses: kubernetes, with: {kubeconfig: kubeconfig, context: here, timeout: 200ms}}}
model:
  uri: m.onnx
  inputs: [{name: x, dtype: float32, shape: [batch, 4]}]
  outputs: [{name: y, dtype: float32, shape: [batch, 3]}]
data:
  golden: {uri: golden.npz}
stages:
  - {id: repository, uses: triton-config}
  - {id: release, uses: k8s-bluegreen, with: {target: TARGET, analysis: null}}
"""
STORE = "store: {uri: 's3://models/team', endpoint: 'http://127.0.0.1:9', region: eu}\n"
VARIABLE = "'${{ vars.target }}'"
WRITTEN = "{uses: kubernetes, with: {kubeconfig: kubeconfig, timeout: 200ms}}"
COMMANDS = (
    ["validate"],
    ["plan"],
    ["apply"],
    ["diff"],
    ["render"],
    ["status"],
    ["watch"],
    ["history"],
    ["promote", "staging", "production"],
    ["rollback"],
    ["abort"],
    ["down"],
)


def kubeconfig() -> str:
    """Return one with two contexts, of clusters that do not answer."""
    names = {"here": 9, "production-eu": 19}
    server = "http://127.0.0.1:{}"
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [
                {"name": name, "cluster": {"server": server.format(port)}} for name, port in names.items()
            ],
            "users": [{"name": "me", "user": {"token": "secret"}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": "me"}} for name in names],
        }
    )


@pytest.fixture
def released(project: SampleProject) -> SampleProject:
    """A project that releases to a cluster which does not answer."""
    import numpy as np

    np.savez(project.root / "golden.npz", x=np.zeros((2, 4), np.float32), y=np.zeros((2, 3), np.float32))
    (project.root / "m.onnx").write_bytes(b"\x3a\x00")  # an empty graph
    return project.write({"spec.yaml": SPEC.replace("TARGET", VARIABLE) + STORE, "kubeconfig": kubeconfig()})


def missing(call: Call, *arguments: str) -> str:
    """Return what a plan says that is missing for the release."""
    (line,) = [line for line in call("plan", *arguments).lines if line.startswith("missing")]
    return line.partition("release")[2].strip()


@pytest.mark.parametrize("target", [VARIABLE, WRITTEN])
def test_it_goes_before_what_the_spec_says(released: SampleProject, call: Call, target: str) -> None:
    released.write({"spec.yaml": SPEC.replace("TARGET", target) + STORE})
    assert "http://127.0.0.1:9 " in missing(call)
    assert "http://127.0.0.1:19 " in missing(call, "--context", "production-eu")


def test_one_that_the_kubeconfig_lacks_is_refused_with_what_is_near(
    released: SampleProject, call: Call
) -> None:
    said = missing(call, "--context", "production-eo")
    assert "production-eo" in said
    assert "did you mean 'production-eu'?" in said
    result = call("apply", "--context", "production-eo")
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[0])
def test_a_spec_whose_targets_have_none_takes_none(
    light: SampleProject, call: Call, command: list[str]
) -> None:
    places = "environments: {staging: {}, production: {}}\n"
    light.write({"spec.yaml": RELEASING + places})
    result = call(*command, "spec.yaml", "--context", "kind-dev")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--context kind-dev: no target of this spec has a context; leave it out\n" in result.stderr


@pytest.mark.slow
def test_a_plan_file_pins_it(released: SampleProject, call: Call) -> None:
    assert call("plan", "--context", "production-eu", "-o", "plan.json").exit_code == 0
    result = call("apply", "plan.json")
    assert result.exit_code == 2
    assert "http://127.0.0.1:19 " in result.stderr
    result = call("apply", "plan.json", "--context", "here")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: plan.json is a plan file, which pins all of that: leave out -e, --set, --context and --until\n",
    )
    file = Path(released.root / "plan.json")
    file.write_text(file.read_text().replace('"context": "production-eu"', '"context": "here"', 1))
    result = call("apply", "plan.json")
    assert result.exit_code == 5
    assert "stage release: option target changed" in result.stderr


def test_a_command_that_is_told_to_run_has_it(released: SampleProject, call: Call) -> None:
    result = call("render", "--context", "production-eu")
    assert (result.exit_code, result.stderr) == (
        2,
        (
            "error: release has nothing to release yet: repository has not run; run `shipctl apply spec.yaml "
            "--context production-eu --until repository` first\n"
        ),
    )
    assert "spec.yaml --context production-eu --until" in call("plan", "--context", "production-eu").stdout
