from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from shipctl.cli.documents.every import EVERY_DOCUMENT
from shipctl.release.budget import worst_case
from shipctl.release.measuring import query_seconds
from shipctl.release.stage import StrategyStage
from shipctl.spec import load_spec
from shipctl.stages.registry import Registry
from shipctl.testing.fixtures import SampleProject
from support_cli import SPEC, Call, install

ROOT = Path(__file__).parents[2] / "specs"
SPECS = sorted(ROOT.glob("*.yaml"))
ALL = sorted({*SPECS, *ROOT.glob("stages/*.yaml"), *ROOT.glob("kubernetes/*.yaml")})
RELEASES = [path for path in SPECS if path.stem.partition("-")[2] in {"canary", "bluegreen", "ab", "shadow"}]


_PRINTED: dict[str, Any] = {}


@pytest.fixture
def schema(project: SampleProject, call: Call) -> dict[str, Any]:
    """What `shipctl schema` prints in the sample project; it takes a second, and is the same for all tests here."""
    if not _PRINTED:
        _PRINTED.update(json.loads(call("schema").stdout))
        Draft202012Validator.check_schema(_PRINTED)
    return _PRINTED


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_example_fits_the_schema(schema: dict[str, Any], path: Path) -> None:
    Draft202012Validator(schema).validate(YAML(typ="safe").load(path))


def test_options_of_installed_stages_are_checked(schema: dict[str, Any]) -> None:
    spec = YAML(typ="safe").load(SPEC)
    Draft202012Validator(schema).validate(spec)
    spec["stages"][0]["with"] = {"levle": 2}
    assert not Draft202012Validator(schema).is_valid(spec)


def test_written_to_a_file(project: SampleProject, call: Call) -> None:
    assert call("schema", "-o", "schema.json").stdout == "written to schema.json\n"
    assert json.loads((project.root / "schema.json").read_text())["title"]
    assert call("schema", "-o", "no/schema.json").stderr == (
        "error: cannot write no/schema.json: No such file or directory\n"
    )


def test_a_broken_plugin_is_left_out_and_named(
    project: SampleProject, call: Call, light_stages: Path
) -> None:
    install(light_stages, "gone", "", "[shipctl.stages]\ngone-stage = gone_module:X\n")
    result = call("schema")
    assert result.exit_code == 0
    assert "gone-stage" not in result.stdout
    assert result.stderr.startswith(
        "warning: stage 'gone-stage' of gone 1.0 (gone_module:X) does not import: "
    )


@pytest.mark.parametrize("name", EVERY_DOCUMENT)
def test_every_json_document_has_a_schema(project: SampleProject, call: Call, name: str) -> None:
    schema = json.loads(call("schema", "--of", name).stdout)
    Draft202012Validator.check_schema(schema)
    assert schema["properties"]["schema"]["const"] == f"shipctl.{name}/1"


def test_documents_fit_their_schema(light: SampleProject, call: Call) -> None:
    call("apply", "spec.yaml")
    for name, *arguments in (
        ["plan", "plan", "spec.yaml"],
        ["run", "apply", "spec.yaml"],
        ["validate", "validate", "spec.yaml"],
        ["history", "history", "spec.yaml"],
        ["report", "report"],
        ["stages", "stages", "list"],
        ["stage", "stages", "describe", "light-copy"],
        ["error", "plan", "nothing.yaml"],
    ):
        schema = json.loads(call("schema", "--of", name).stdout)
        Draft202012Validator(schema).validate(call(*arguments, "--json").document)


def test_unknown_document_lists_those_there_are(project: SampleProject, call: Call) -> None:
    assert call("schema", "--of", "plans").stderr == (
        f"error: there is no schema of 'plans'; there is one of spec, {', '.join(EVERY_DOCUMENT)}\n"
    )


@pytest.mark.parametrize("path", RELEASES, ids=lambda path: path.name)
def test_every_example_of_a_release_goes_back_in_time(path: Path) -> None:
    spec = load_spec(path).spec
    [stage] = [item for item in spec.stages if item.id == "release"]
    plugin = Registry().load(stage.uses)
    assert issubclass(plugin, StrategyStage)
    strategy = plugin(plugin.options_model.model_validate(stage.options)).strategy()
    back = worst_case(strategy, query_timeout=query_seconds(strategy))
    assert back.seconds <= float(spec.budget.rollback or 60), back.arithmetic
