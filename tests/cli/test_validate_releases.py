"""What `validate` says about release stages, and about stages that are none."""

from __future__ import annotations

import pytest

from shipctl.testing.fixtures import SampleProject
from support_cli import RELEASING, Call

CANARY = """\
apiVersion: shipctl.dev/v1
kind: Pipeline
metadata: {name: m, version: 1.0.0}
vars: {replicas: 2}
environments:
  production: {vars: {replicas: many}}
model:
  uri: m.onnx
  inputs: [{name: x, dtype: float32, shape: [batch, 4]}]
  outputs: [{name: y, dtype: float32, shape: [batch, 3]}]
data:
  golden: {uri: golden.npz}
stages:
  - {id: repository, uses: triton-config}
  - id: release
    uses: canary
    with:
      WITH
"""


@pytest.fixture
def canary(project: SampleProject) -> SampleProject:
    import numpy as np

    np.savez(project.root / "golden.npz", x=np.zeros((2, 4), np.float32), y=np.zeros((2, 3), np.float32))
    (project.root / "m.onnx").write_bytes(b"\x3a\x00")  # an empty graph
    return project


def written(project: SampleProject, text: str) -> SampleProject:
    return project.write({"spec.yaml": CANARY.replace("      WITH", text)})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            """\
      target:
        uses: local
        with:
          http_port: 8000
          replcas: 3""",
            "spec.yaml:22:11: target 'local': 'replcas' is not known in with; did you mean 'replicas'?\n",
        ),
        (
            "      target: {uses: local, with: {replicas: 99}}",
            "spec.yaml:18:46: target 'local': with.replicas must be less than or equal to 16, not 99; correct it\n",
        ),
        (
            "      target: lokal",
            "spec.yaml:18:15: no target named 'lokal' is installed; did you mean 'local'?\n",
        ),
        (
            """\
      analysis:
        metrics:
          - {name: prometheus, max: 1, provider: prometheus}
          - {name: queue, max: 1, provider: {uses: prometheus, with: {url: "http://p:9090", preset: queue}}}""",
            "spec.yaml:20:50: metric provider 'prometheus': 'url' is missing in with; add it\n",
        ),
        (
            """\
      analysis:
        metrics:
          - {name: queue, max: 1, provider: {uses: prometheus, with: {url: "http://p:9090", preset: queue}}}""",
            "spec.yaml:20:101: metric provider 'prometheus': ",
        ),
    ],
    ids=["a key", "a value", "a name", "a name alone", "a nested value"],
)
def test_what_is_wrong_with_a_plugins_options_is_told_where_it_stands(
    canary: SampleProject, call: Call, text: str, said: str
) -> None:
    result = call("validate", written(canary, text).root.joinpath("spec.yaml").name)
    assert result.exit_code == 2
    assert result.stderr.startswith(said), result.stderr


def test_an_environment_and_values_are_taken_into_account(canary: SampleProject, call: Call) -> None:
    written(canary, '      target: {uses: local, with: {replicas: "${{ vars.replicas }}"}}')
    wrong = "target 'local': with.replicas must be a whole number, not 'many'; correct it"
    assert wrong not in call("validate").stderr
    assert wrong in call("validate", "-e", "production").stderr
    assert wrong not in call("validate", "-e", "production", "--set", "vars.replicas=3").stderr
    assert "there is no environment 'test'" in call("validate", "-e", "test").stderr


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("approval: {roles: [owner]}", "nobody is asked for this approval"),
        ("environment: production", "it runs for every environment, whatever stands here"),
    ],
)
def test_what_only_a_release_heeds_is_refused_on_other_stages(
    light: SampleProject, call: Call, key: str, said: str
) -> None:
    spec = RELEASING.replace("    uses: light-copy\n", f"    uses: light-copy\n    {key}\n", 1)
    light.write({"spec.yaml": f"environments: {{production: {{}}}}\n{spec}"})
    result = call("validate", "spec.yaml")
    advice = "copy releases nothing; take it out, or write it on the stage that does"
    assert result.exit_code == 2
    assert result.stderr.startswith(f"spec.yaml:10:5: {said}: {advice}\n"), result.stderr
    assert call("plan").exit_code == 2
