"""SLSA provenance statements."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from shipctl.errors import GateError
from shipctl.evidence.provenance import (
    BUILD_TYPE,
    check_subjects,
    package_url,
    public_uri,
    read_statement,
    reference_of,
    slsa_statement,
    statement_bytes,
    subjects_of,
)
from shipctl.stages.context import Lineage, LineageNode, LineageSource

A, B, C, D, E = (letter * 64 for letter in "abcde")
COMMIT = "1234567890" * 4
SUBJECTS = {"model/model.onnx": A, "LICENSE": B}
LINEAGE = Lineage(
    spec=C,
    nodes=(
        LineageNode(
            node="onnx",
            uses="torch-export",
            plugin="shipctl 0.1.0",
            fingerprint=D,
            options={"opset": 21, "token": "${{ secrets.token }}"},
            tools={"torch": "2.13.0", "ml_dtypes": "0.5.4", "absent": None},
            inputs={"model": (E,)},
            outputs={"model": A},
        ),
        LineageNode(
            node="int8[entropy]",
            uses="squeeze",
            plugin="shipctl-squeeze 1.2.0",
            fingerprint=E,
            tools={"torch": "2.13.0"},
            inputs={"model": (A,), "calibration": (B,)},
            outputs={"model": B},
        ),
    ),
    sources=(
        LineageSource(
            name="model", uri="models/digits.py:build", digest=E, files={"digits.py": B, "a.txt": A}
        ),
        LineageSource(name="data.golden", uri="s3://key:secret@bucket/golden.npz?sig=secret", digest=D),
    ),
    python="3.11.7",
    platform="linux-x86_64",
    revision=f"{COMMIT}+dirty",
    shipctl="0.1.0",
)

# Written from https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md, resource_descriptor.md and
# https://slsa.dev/spec/v1.0/provenance: no field but theirs, required ones there, digests as lower-case hexadecimal.
URI = {"type": "string", "pattern": r"^[A-Za-z][A-Za-z0-9+.-]*:\S+$"}
DESCRIPTOR = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "uri": URI,
        "digest": {
            "type": "object",
            "minProperties": 1,
            "properties": {
                "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
                "gitCommit": {"type": "string", "pattern": "^[0-9a-f]{40}$"},
            },
            "additionalProperties": False,
        },
        "content": {"type": "string"},
        "downloadLocation": URI,
        "mediaType": {"type": "string"},
        "annotations": {"type": "object"},
    },
    "anyOf": [{"required": ["uri"]}, {"required": ["digest"]}, {"required": ["content"]}],
}
TIME = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"}
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["_type", "subject", "predicateType", "predicate"],
    "properties": {
        "_type": {"const": "https://in-toto.io/Statement/v1"},
        "subject": {
            "type": "array",
            "minItems": 1,
            "items": {"allOf": [DESCRIPTOR, {"required": ["name", "digest"]}]},
        },
        "predicateType": {"const": "https://slsa.dev/provenance/v1"},
        "predicate": {
            "type": "object",
            "additionalProperties": False,
            "required": ["buildDefinition", "runDetails"],
            "properties": {
                "buildDefinition": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["buildType", "externalParameters"],
                    "properties": {
                        "buildType": URI,
                        "externalParameters": {"type": "object"},
                        "internalParameters": {"type": "object"},
                        "resolvedDependencies": {"type": "array", "items": DESCRIPTOR},
                    },
                },
                "runDetails": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["builder"],
                    "properties": {
                        "builder": {
                            "type": "object",
                            "additionalProperties": False,
                            "required": ["id"],
                            "properties": {
                                "id": URI,
                                "version": {"type": "object", "additionalProperties": {"type": "string"}},
                                "builderDependencies": {"type": "array", "items": DESCRIPTOR},
                            },
                        },
                        "metadata": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {
                                "invocationId": {"type": "string"},
                                "startedOn": TIME,
                                "finishedOn": TIME,
                            },
                        },
                        "byproducts": {"type": "array", "items": DESCRIPTOR},
                    },
                },
            },
        },
    },
}


def make(lineage: Lineage = LINEAGE, **metadata: Any) -> dict[str, Any]:
    return slsa_statement(
        name="digits", version="1.0.0", subjects=SUBJECTS, lineage=lineage, metadata=metadata
    )


def build(statement: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = statement["predicate"]["buildDefinition"]
    return found


@pytest.mark.parametrize("lineage", [LINEAGE, Lineage()], ids=["full", "empty"])
def test_statement_has_the_fields_of_in_toto_and_slsa_and_no_others(lineage: Lineage) -> None:
    statement = make(lineage, owner="vision-team", startedOn="2026-01-02T03:04:05Z", invocationId="run-7")
    jsonschema.validate(statement, SCHEMA)


def test_upstream_library_parses_it_without_an_unknown_field() -> None:
    statement_v1 = pytest.importorskip("in_toto_attestation.v1.statement")
    statement_pb2 = pytest.importorskip("in_toto_attestation.v1.statement_pb2")
    provenance_pb2 = pytest.importorskip("in_toto_attestation.predicates.provenance.v1.provenance_pb2")
    json_format = pytest.importorskip("google.protobuf.json_format")
    content = make(startedOn="2026-01-02T03:04:05Z")
    parsed = json_format.Parse(json.dumps(content), statement_pb2.Statement())
    statement_v1.Statement.copy_from_pb(parsed).validate()
    json_format.Parse(json.dumps(content["predicate"]), provenance_pb2.Provenance())


def test_external_parameters_are_what_the_user_decided() -> None:
    assert build(make(name="digits", version="1.0.0", owner="vision-team", labels={"a": "b"}))[
        "externalParameters"
    ] == {
        "name": "digits",
        "version": "1.0.0",
        "spec": {"sha256": C},
        "metadata": {"labels": {"a": "b"}, "owner": "vision-team"},
    }


def test_internal_parameters_have_every_stage_with_what_went_in_and_came_out() -> None:
    parameters = build(make())["internalParameters"]
    assert [stage["id"] for stage in parameters["stages"]] == ["onnx", "int8[entropy]"]
    assert parameters["stages"][0] == {
        "id": "onnx",
        "uses": "torch-export",
        "plugin": "shipctl 0.1.0",
        "fingerprint": {"sha256": D},
        "options": {"opset": 21, "token": "${{ secrets.token }}"},
        "inputs": {"model": [{"sha256": E}]},
        "outputs": {"model": {"sha256": A}},
    }


def test_dependencies_are_sources_spec_commit_and_software_once_each() -> None:
    found = {item["name"]: item for item in build(make())["resolvedDependencies"]}
    assert list(found) == [
        "model/a.txt", "model/digits.py", "data.golden", "spec", "revision",
        "ml_dtypes", "shipctl", "shipctl-squeeze", "torch", "python",
    ]  # fmt: skip
    assert found["model/digits.py"]["digest"] == {"sha256": B}
    assert found["model/digits.py"]["annotations"] == {
        "source": "model", "artifact": E, "path": "models/digits.py:build",
    }  # fmt: skip
    assert found["revision"] == {
        "name": "revision", "digest": {"gitCommit": COMMIT}, "annotations": {"dirty": True},
    }  # fmt: skip
    assert found["ml_dtypes"] == {"name": "ml_dtypes", "uri": "pkg:pypi/ml-dtypes@0.5.4"}
    assert found["python"]["uri"] == "pkg:generic/python@3.11.7"


def test_credentials_in_a_uri_do_not_reach_the_statement() -> None:
    content = statement_bytes(make()).decode()
    assert "s3://bucket/golden.npz" in content
    assert "key:secret" not in content
    assert "sig=secret" not in content


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("digits.py:build", "digits.py:build"),
        ("data/what?.npz", "data/what?.npz"),
        ("https://me:pw@host:8443/a/b?X-Amz-Signature=1#f", "https://host:8443/a/b"),
        ("mlflow:/digits/3", "mlflow:/digits/3"),
    ],
)
def test_uri_loses_credentials_only(uri: str, shown: str) -> None:
    assert public_uri(uri) == shown


def test_package_url_has_the_normal_form_of_the_name() -> None:
    assert package_url("Ruamel._Yaml", "0.18+local") == "pkg:pypi/ruamel-yaml@0.18%2Blocal"


def test_equal_arguments_give_equal_bytes_whatever_their_order() -> None:
    swapped = slsa_statement(
        name="digits",
        version="1.0.0",
        subjects=dict(reversed(SUBJECTS.items())),
        lineage=LINEAGE,
        metadata={"owner": "o", "labels": {}},
    )
    assert statement_bytes(swapped) == statement_bytes(make(labels={}, owner="o"))


def test_no_time_is_in_it_unless_it_was_given() -> None:
    assert set(make()["predicate"]["runDetails"]) == {"builder"}
    given = make(startedOn="2026-01-02T03:04:05Z")["predicate"]["runDetails"]
    assert given["metadata"] == {"startedOn": "2026-01-02T03:04:05Z"}


def test_statement_is_read_back() -> None:
    statement = read_statement(statement_bytes(make()))
    assert statement == make()
    assert subjects_of(statement) == SUBJECTS
    assert reference_of(statement) == "digits@1.0.0"


def test_subject_without_a_digest_is_refused() -> None:
    with pytest.raises(GateError) as caught:
        slsa_statement(name="d", version="1.0.0", subjects={"x": "12"}, lineage=LINEAGE, metadata={})
    assert str(caught.value) == "x has the digest '12', which is no SHA-256; package the files again"
    with pytest.raises(GateError) as caught:
        slsa_statement(name="d", version="1.0.0", subjects={}, lineage=LINEAGE, metadata={})
    assert str(caught.value) == "the provenance of d@1.0.0 has no subject; package at least one file"


def changed(**fields: Any) -> bytes:
    return json.dumps({**make(), **fields}).encode()


def with_build(**fields: Any) -> bytes:
    statement = make()
    build(statement).update(fields)
    return json.dumps(statement).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "the provenance is not JSON: "),
        (b"[" * 100_000, "the provenance is not JSON: "),
        (b"\xff", "the provenance is not JSON: "),
        (b"[]", "the provenance is no JSON object; package the model again"),
        (changed(_type="x"), "the provenance has _type 'x', expected 'https://in-toto.io/Statement/v1'"),
        (
            changed(predicateType="https://slsa.dev/provenance/v0"),
            "the provenance has predicateType 'https://slsa.dev/provenance/v0', expected "
            + repr("https://slsa.dev/provenance/v1"),
        ),
        (
            changed(predicate={"buildDefinition": build(make())}),
            "the provenance names no builder (predicate.runDetails.builder.id)",
        ),
        (
            with_build(buildType="https://example.org"),
            f"the provenance is of another build type than {BUILD_TYPE}",
        ),
        (
            with_build(externalParameters=None),
            "the provenance has no external parameters (predicate.buildDefinition)",
        ),
        (changed(subject=[]), "the provenance has no subject, so it says nothing about any file"),
        (changed(subject={"name": "x"}), "the provenance has no subject, so it says nothing about any file"),
        (
            changed(subject=[{"name": "x", "digest": {"md5": "1"}}]),
            "a subject of the provenance has no name or no SHA-256: {'name': 'x', 'digest': {'md5': '1'}}",
        ),
        (
            changed(subject=[{"name": "x", "digest": {"sha256": A}}] * 2),
            "x is twice among the subjects of the provenance",
        ),
    ],
)
def test_what_is_no_statement_of_ours_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(GateError) as caught:
        read_statement(content)
    assert str(caught.value).startswith(message)


def test_files_that_are_the_subjects_pass() -> None:
    check_subjects(make(), SUBJECTS)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"LICENSE": B}, "model/model.onnx is missing, though the provenance is about it"),
        (
            {**SUBJECTS, "extra.bin": C},
            "extra.bin is not among the subjects of the provenance, so nothing says where it comes from",
        ),
        ({**SUBJECTS, "LICENSE": C}, "LICENSE is cccccccccccc…, the provenance is about bbbbbbbbbbbb…"),
    ],
)
def test_files_that_differ_from_the_subjects_are_refused(files: dict[str, str], message: str) -> None:
    with pytest.raises(GateError) as caught:
        check_subjects(make(), files)
    assert str(caught.value) == message
