from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, ConfigDict, Field

from shipctl.spec import Duration, load_document, load_spec, spec_schema


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    interval: Duration
    limit: int = 3


class Export(BaseModel):
    model_config = ConfigDict(extra="forbid")
    opset: int = Field(21, ge=7)
    mode: Literal["fast", "slow"] = "fast"
    names: list[str] = []
    inner: Inner | None = None
    scales: dict[str, float] = {}


class Canary(BaseModel):
    model_config = ConfigDict(extra="forbid")
    target: str
    inner: Inner | None = None


SCHEMA = spec_schema({"export": Export.model_json_schema(), "canary": Canary.model_json_schema(), "noop": {}})
VALIDATOR = Draft202012Validator(SCHEMA)

SPEC = """\
apiVersion: shipctl.dev/v1
kind: Pipeline
metadata: {name: digits, version: 1.4.0, labels: {critical: "true"}, owner: team}
vars: {registry: s3://models, opset: 21, deep: {list: [1]}}
env: [HOME]
secrets: {token: {command: [echo, x]}}
seed: 3
slo: {latency: {p95: 100ms}, error_rate: 1%, throughput: "${{ vars.opset }}/s"}
budget: {accuracy_drop: 0.005, rollback: 1h30m}
model:
  uri: models/digits.py:build
  files: "models/*.py"
  inputs: [{name: image, dtype: float32, shape: [batch, 1, 8, 8]}]
  outputs: [{name: logits, dtype: float32, shape: [batch, 10]}]
data: {evaluation: {uri: data/test.npz, metric: accuracy, min: 0.97}}
stages:
  - uses: export
    with: {opset: "${{ vars.opset }}", names: [a, "${{ vars.registry }}"], scales: {a: 1, b: "${{ vars.opset }}"}}
  - id: two
    uses: export
    needs: export
    when: ${{ vars.opset > 3 }}
    retry: 2
    timeout: 5m
    resources: {gpu: 1, memory: 8GiB, labels: {gpu: l4}, disk: 1000}
    matrix: {mode: [fast, slow], n: [1, 2.5, true]}
    inputs: {model: export.model, others: [export]}
    with: {mode: "${{ matrix.mode }}", inner: {interval: "${{ slo.latency.p95 }}", limit: 2}}
  - id: release
    uses: canary
    environment: production
    approval: {required: true, roles: [model-owner], expires: 1d}
    retry: {attempts: 3, delay: 10s, backoff: 2}
    with: {target: kubernetes, inner: "${{ vars.deep }}"}
environments:
  staging: {vars: {registry: s3://staging}}
  production: {}
"""


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "s.yaml").write_text(SPEC)
    load_spec(tmp_path / "s.yaml", environ={"HOME": "/"})
    return copy.deepcopy(load_document(tmp_path / "s.yaml").data)


def errors(document: dict[str, Any]) -> list[str]:
    """Return the places of all errors, those inside of alternatives as well."""
    found: list[str] = []
    waiting = list(VALIDATOR.iter_errors(document))
    while waiting:
        error = waiting.pop()
        found.append(".".join(map(str, error.absolute_path)))
        waiting += error.context or ()
    return found


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_what_the_loader_takes_is_valid(document: dict[str, Any]) -> None:
    assert errors(document) == []


@pytest.mark.parametrize(
    ("keys", "value", "place"),
    [
        (("stages", 0, "with", "opst"), 3, "stages.0.with"),
        (("stages", 0, "with", "opset"), "many", "stages.0.with.opset"),
        (("stages", 0, "with", "opset"), 3, "stages.0.with.opset"),
        (("stages", 0, "with", "names"), [1], "stages.0.with.names.0"),
        (("stages", 0, "with", "mode"), "medium", "stages.0.with.mode"),
        (("stages", 1, "with", "inner"), {"interval": "5 parsecs"}, "stages.1.with.inner"),
        (("stages", 1, "with", "inner"), {"interval": "5s", "x": 1}, "stages.1.with.inner"),
        (("stages", 2, "with"), {}, "stages.2.with"),
        (("stages", 2, "with", "opset"), 21, "stages.2.with"),
        (("stages", 2, "uses"), "canry", "stages.2.uses"),
        (("stages", 2, "uses"), "${{ vars.x }}", "stages.2.uses"),
        (("stages", 1, "id"), "Bad Id", "stages.1.id"),
        (("stages", 1, "wehn"), True, "stages.1"),
        (("stages", 1, "when"), "maybe", "stages.1.when"),
        (("stages", 1, "timeout"), 30, "stages.1.timeout"),
        (("stages", 1, "matrix", "mode"), [], "stages.1.matrix.mode"),
        (("metadata", "version"), "1.4", "metadata.version"),
        (("slo", "latency", "p95"), 100, "slo.latency.p95"),
        (("slo", "error_rate"), 5, "slo.error_rate"),
        (("apiVersion",), "v2", "apiVersion"),
        (("env",), ["${{ vars.x }}"], "env.0"),
        (("stages",), [], "stages"),
        (("extra",), 1, ""),
    ],
)
def test_what_the_loader_refuses_is_invalid(
    document: dict[str, Any], keys: tuple[Any, ...], value: object, place: str
) -> None:
    at: Any = document
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    assert place in errors(document)


def test_required_options_make_with_required(document: dict[str, Any]) -> None:
    del document["stages"][2]["with"]
    assert errors(document) == ["stages.2"]


def test_without_installed_stages_no_name_fits() -> None:
    with_none = Draft202012Validator(spec_schema({}))
    Draft202012Validator.check_schema(spec_schema({}))
    assert not with_none.is_valid({"apiVersion": "shipctl.dev/v1"})


def test_every_property_has_a_description() -> None:
    own = {
        name: body
        for name, body in SCHEMA["$defs"].items()
        if not name.startswith(("options.", "expression"))
    }
    bare = [
        f"{name}.{key}"
        for name, body in {"Spec": SCHEMA, **own}.items()
        for key, inner in body.get("properties", {}).items()
        if "description" not in inner
    ]
    assert bare == []
