from __future__ import annotations

import pytest

from shipctl.testing.fixtures import SampleProject
from support_cli import SPEC, Call


def test_a_good_spec_is_valid(light: SampleProject, call: Call) -> None:
    result = call("validate", "spec.yaml")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "spec.yaml: valid\n", "")


def test_all_specs_are_looked_at_and_all_problems_told(light: SampleProject, call: Call) -> None:
    light.write({"bad.yaml": SPEC.replace("version: 1.0.0", "version: one").replace("uses:", "use:")})
    result = call("validate", "bad.yaml", "spec.yaml")
    assert result.exit_code == 2
    assert result.stdout == "spec.yaml: valid\n"
    assert result.stderr.startswith("bad.yaml:3:34: ")
    assert "bad.yaml:8:5: " in result.stderr
    assert result.stderr.endswith("error: not valid: bad.yaml\n")


def test_json(light: SampleProject, call: Call) -> None:
    light.write({"bad.yaml": "kind: [\n"})
    result = call("validate", "bad.yaml", "spec.yaml", "--json")
    assert result.exit_code == 2
    document = result.document
    assert (document["schema"], document["valid"]) == ("shipctl.validate/1", False)
    assert [(item["path"], item["valid"]) for item in document["specs"]] == [
        ("bad.yaml", False),
        ("spec.yaml", True),
    ]
    assert document["specs"][0]["message"].startswith("bad.yaml:")


def test_a_file_that_is_not_there(project: SampleProject, call: Call) -> None:
    result = call("validate", "nowhere.yaml")
    assert result.exit_code == 2
    assert "nowhere.yaml" in result.stderr


@pytest.mark.parametrize("kind", ["kind: Pipeline", "kind: 'Pipeline'  # ours", 'kind: "Pipeline"'])
def test_the_only_pipeline_is_found_by_its_kind(light: SampleProject, call: Call, kind: str) -> None:
    (light.root / "spec.yaml").unlink()
    spec = SPEC.replace("kind: Pipeline", kind).replace("samples.npz", "../samples.npz")
    light.write({"specs/a.yml": spec, "specs/b.yaml": "kind: PipelineRun\n"})
    assert call("validate").stdout == "specs/a.yml: valid\n"
