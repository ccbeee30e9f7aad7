"""CycloneDX ML-BOMs."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import pytest

pytest.importorskip("cyclonedx")

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from shipctl.errors import GateError, UnavailableError
from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import FileEntry
from shipctl.stages.context import Lineage, LineageSource
from shipctl_plugins._evidence.ml_bom import ml_bom

A, B, C, D = (letter * 64 for letter in "abcd")
ONNX = FileEntry(path="model/model.onnx", sha256=A, size=3)
WEIGHTS = FileEntry(path="model/weights.bin", sha256=B, size=3)
MODEL = LineageSource(name="model", uri="https://me:token@host/m.py", digest=B, files={"m.py": C})
GOLDEN = LineageSource(name="data.golden", uri="data/golden set.npz", digest=B, files={"golden.npz": C})
TRAINING = LineageSource(name="data.training", uri="s3://bucket/training", digest=D)
ARGUMENTS: dict[str, Any] = {
    "name": "digits",
    "version": "1.0.0",
    "owner": "vision-team",
    "description": "Reads a digit.",
    "license": "Apache-2.0 OR MIT",
    "files": [ONNX, WEIGHTS],
    "signature": Signature(
        inputs=(TensorSpec(name="image", dtype="float32", shape=("batch", 1, 8, 8)),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 10)),),
    ),
    "metrics": {"latency.p95": 0.01, "accuracy": 0.97},
    "datasets": [GOLDEN, TRAINING],
    "lineage": Lineage(spec=C, sources=(MODEL, GOLDEN), shipctl="0.1.0", revision="1234"),
    "requirements": "numpy==2.0\nonnx>=1.18 ; python_version < '3.13'\n",
    "card": {
        "task": "classification",
        "limitations": "- blurred images\n- two digits\n",
        "users": "post offices",
    },
}


def make(**changes: Any) -> dict[str, Any]:
    content = ml_bom(**{**ARGUMENTS, **changes})
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(content.decode())
    assert problem is None, str(problem)
    found: dict[str, Any] = json.loads(content)
    return found


def card_of(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["metadata"]["component"]["modelCard"]
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "owner": None,
            "description": None,
            "license": None,
            "requirements": None,
            "card": {},
            "metrics": {},
        },
        {"files": [], "datasets": [], "lineage": Lineage()},
        {"metrics": {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1e300}},
        {
            "card": dict.fromkeys(
                ("ethics", "tradeoffs", "approach", "architecture", "anything", "x y"), "one\ntwo"
            )
        },
        {"card": {"approach": "supervised", "empty": " \n"}},
        {"requirements": "numpy>=2; python_version<'3.12'\nnumpy>=2.1; python_version>='3.12'\nnumpy==2.2\n"},
        {"license": "LicenseRef-ours"},
        {"name": "ünïcode", "description": "8×8 “image”"},
    ],
)
def test_document_is_valid_by_the_strict_schema(changes: dict[str, Any]) -> None:
    assert make(**changes)["specVersion"] == "1.6"


def test_model_stands_with_its_files_licence_and_owner() -> None:
    model = make()["metadata"]["component"]
    assert (model["type"], model["name"], model["version"]) == ("machine-learning-model", "digits", "1.0.0")
    assert model["purl"] == "pkg:generic/digits@1.0.0"
    assert model["licenses"] == [{"expression": "Apache-2.0 OR MIT"}]
    assert model["manufacturer"] == {"name": "vision-team"}
    assert [(c["name"], c["hashes"][0]["content"]) for c in model["components"]] == [
        ("model/model.onnx", A),
        ("model/weights.bin", B),
    ]
    assert {"name": "shipctl:spec:sha256", "value": C} in model["properties"]


def test_model_of_one_file_has_its_hash() -> None:
    assert make(files=[ONNX])["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": A}]
    assert "hashes" not in make()["metadata"]["component"]


def test_source_model_is_an_ancestor_without_its_credentials() -> None:
    ancestor = make()["metadata"]["component"]["pedigree"]["ancestors"][0]
    assert ancestor["name"] == "https://host/m.py"
    assert ancestor["components"][0]["hashes"] == [{"alg": "SHA-256", "content": C}]
    assert "token" not in json.dumps(make())


def test_model_card_says_inputs_metrics_data_and_limits() -> None:
    assert card_of(make()) == {
        "modelParameters": {
            "task": "classification",
            "datasets": [{"ref": "data.golden"}, {"ref": "data.training"}],
            "inputs": [{"format": "float32[batch, 1, 8, 8] image"}],
            "outputs": [{"format": "float32[batch, 10] logits"}],
        },
        "quantitativeAnalysis": {
            "performanceMetrics": [
                {"type": "accuracy", "value": "0.97"},
                {"type": "latency.p95", "value": "0.01"},
            ]
        },
        "considerations": {
            "technicalLimitations": ["blurred images", "two digits"],
            "users": ["post offices"],
        },
    }


def test_card_keys_without_a_field_become_properties() -> None:
    card = card_of(make(card={"contact": "a@b", "approach": "guessing", "ethics": "faces\nvoices"}))
    assert card["properties"] == [
        {"name": "shipctl:card:approach", "value": "guessing"},
        {"name": "shipctl:card:contact", "value": "a@b"},
    ]
    assert card["considerations"] == {"ethicalConsiderations": [{"name": "faces"}, {"name": "voices"}]}


def test_data_sets_are_components_with_digest_and_place() -> None:
    golden = next(item for item in make()["components"] if item["name"] == "data.golden")
    assert golden["type"] == "data"
    assert golden["hashes"] == [{"alg": "SHA-256", "content": C}]
    assert golden["data"] == [
        {
            "type": "dataset",
            "name": "data.golden",
            "contents": {
                "url": "data/golden%20set.npz",
                "properties": [{"name": "shipctl:sha256:golden.npz", "value": C}],
            },
        }
    ]


def test_requirements_are_libraries_that_the_model_depends_on() -> None:
    document = make()
    libraries = {item["name"]: item for item in document["components"] if item["type"] == "library"}
    assert libraries["numpy"]["purl"] == "pkg:pypi/numpy@2.0"
    assert libraries["numpy"]["version"] == "2.0"
    assert "version" not in libraries["onnx"]
    assert libraries["onnx"]["properties"] == [
        {"name": "shipctl:marker", "value": 'python_version < "3.13"'},
        {"name": "shipctl:requirement", "value": ">=1.18"},
    ]
    graph = {item["ref"]: item.get("dependsOn", []) for item in document["dependencies"]}
    assert graph["model"] == ["data.golden", "data.training", "pkg:pypi/numpy@2.0", "requirement:onnx"]


def test_same_content_gives_the_same_bytes_and_another_another_serial_number() -> None:
    again = ml_bom(**{**ARGUMENTS, "metrics": dict(reversed(ARGUMENTS["metrics"].items()))})
    assert ml_bom(**ARGUMENTS) == again
    assert "timestamp" not in make()["metadata"]
    assert make(version="1.0.1")["serialNumber"] != make()["serialNumber"]


def test_licence_that_spdx_does_not_know_is_refused() -> None:
    with pytest.raises(GateError) as caught:
        ml_bom(**{**ARGUMENTS, "license": "Apache2"})
    assert str(caught.value) == (
        "the licence 'Apache2' names 'Apache2', which SPDX does not know; write an identifier of "
        "https://spdx.org/licenses, or LicenseRef-… for one of your own"
    )


def test_requirements_that_bring_what_they_do_not_name_are_refused() -> None:
    with pytest.raises(GateError) as caught:
        ml_bom(**{**ARGUMENTS, "requirements": "numpy==2.0\n-r more.txt\n"})
    assert str(caught.value) == (
        "requirements.txt:2: '-r more.txt' brings something that it does not name; "
        "write name==version, a line each"
    )


def test_missing_library_says_which_extra_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cyclonedx.output.json", None)
    with pytest.raises(UnavailableError) as caught:
        ml_bom(**ARGUMENTS)
    assert str(caught.value) == (
        "an ML-BOM needs cyclonedx.output.json, which is not installed: pip install 'shipctl[evidence]'"
    )
