"""SLSA provenance: which files a pipeline made, of what, by which stages and tools.

The statement follows in-toto Statement v1 (https://in-toto.io/Statement/v1) with the predicate SLSA provenance v1
(https://slsa.dev/provenance/v1). The same lineage gives the same bytes: no time, host or path of this machine is in
it unless the caller hands one over. Meaning of our build type, :data:`BUILD_TYPE`:

``externalParameters``    what the user of the pipeline decided: the spec by digest, name, version, metadata
``internalParameters``    what shipctl made of it: each stage with plugin, options, fingerprint, inputs and outputs
``resolvedDependencies``  what it was made from: sources file by file, spec, commit, plugins, tools, interpreter
``runDetails``            shipctl with its version; times only if they were given
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from shipctl.errors import GateError
from shipctl.records import canonical_json
from shipctl.stages.context import Lineage, LineageNode, LineageSource

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://shipctl.dev/buildtypes/pipeline/v1"
BUILDER = "https://shipctl.dev/builder/v1"

_RUN = ("invocationId", "startedOn", "finishedOn")
"""What SLSA keeps about a single run; timestamps are RFC 3339 texts in UTC."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"(?:[0-9a-f]{40}|[0-9a-f]{64})")
_DIRTY = "+dirty"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+-]*:")
"""Of a URI. Dots are legal there too, but `digits.py:build` is a path."""


def slsa_statement(
    *, name: str, version: str, subjects: Mapping[str, str], lineage: Lineage, metadata: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the statement that the files ``subjects`` (path to SHA-256, hexadecimal) came of ``lineage``.

    ``metadata`` is the spec's (owner, description, labels); ``invocationId``, ``startedOn`` and ``finishedOn`` in it
    are about the run and go to ``runDetails``. Equal arguments give an equal statement.

    :raises GateError: if there is no subject, or one has no SHA-256
    """
    if not subjects:
        raise GateError(f"the provenance of {name}@{version} has no subject; package at least one file")
    for path, digest in subjects.items():
        if not _SHA256.fullmatch(digest):
            raise GateError(f"{path} has the digest {digest!r}, which is no SHA-256; package the files again")
    own = {key: metadata[key] for key in sorted(metadata) if key not in {*_RUN, "name", "version"}}
    run = {key: str(metadata[key]) for key in _RUN if metadata.get(key)}
    details: dict[str, Any] = {
        "builder": {"id": BUILDER, "version": {"shipctl": lineage.shipctl or "unknown"}}
    }
    if run:
        details["metadata"] = run
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": path, "digest": {"sha256": subjects[path]}} for path in sorted(subjects)],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "name": name,
                    "version": version,
                    "spec": {"sha256": lineage.spec},
                    **({"metadata": own} if own else {}),
                },
                "internalParameters": {
                    "python": lineage.python,
                    "platform": lineage.platform,
                    "stages": [_stage(node) for node in lineage.nodes],
                },
                "resolvedDependencies": _dependencies(lineage),
            },
            "runDetails": details,
        },
    }


def statement_bytes(statement: Mapping[str, Any]) -> bytes:
    """Return the canonical JSON of a statement: what is written to the package and signed."""
    return canonical_json(dict(statement))


def read_statement(content: bytes) -> dict[str, Any]:
    """Return the statement in ``content``, checked to be one of the kind that :func:`slsa_statement` makes.

    :raises GateError: if it is no JSON, another kind of statement, or lacks what the formats require
    """
    try:
        statement = json.loads(content)
    except (ValueError, RecursionError) as exc:
        raise GateError(f"the provenance is not JSON: {exc}; package the model again") from None
    if not isinstance(statement, dict):
        raise GateError("the provenance is no JSON object; package the model again")
    for key, expected in (("_type", STATEMENT_TYPE), ("predicateType", PREDICATE_TYPE)):
        if statement.get(key) != expected:
            raise GateError(f"the provenance has {key} {statement.get(key)!r}, expected {expected!r}")
    build = _at(statement, "predicate", "buildDefinition")
    if not isinstance(_at(statement, "predicate", "runDetails", "builder", "id"), str):
        raise GateError("the provenance names no builder (predicate.runDetails.builder.id)")
    if not isinstance(build, dict) or build.get("buildType") != BUILD_TYPE:
        raise GateError(f"the provenance is of another build type than {BUILD_TYPE}")
    if not isinstance(build.get("externalParameters"), dict):
        raise GateError("the provenance has no external parameters (predicate.buildDefinition)")
    subjects_of(statement)
    return statement


def subjects_of(statement: Mapping[str, Any]) -> dict[str, str]:
    """Return path to SHA-256 (hexadecimal) of the files that a statement is about.

    :raises GateError: if there is none, one has no name or SHA-256, or two have the same name
    """
    found: dict[str, str] = {}
    listed = statement.get("subject")
    for item in listed if isinstance(listed, list) else ():
        path, digest = _at(item, "name"), _at(item, "digest", "sha256")
        if not isinstance(path, str) or not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise GateError(f"a subject of the provenance has no name or no SHA-256: {str(item)[:80]}")
        if path in found:
            raise GateError(f"{path} is twice among the subjects of the provenance")
        found[path] = digest
    if not found:
        raise GateError("the provenance has no subject, so it says nothing about any file")
    return found


def reference_of(statement: Mapping[str, Any]) -> str:
    """Return the NAME@VERSION that a statement is about; empty parts where it does not say."""
    given = _at(statement, "predicate", "buildDefinition", "externalParameters")
    return f"{_at(given, 'name') or ''}@{_at(given, 'version') or ''}"


def check_subjects(statement: Mapping[str, Any], files: Mapping[str, str]) -> None:
    """Compare a statement's subjects with ``files`` (path to SHA-256, hexadecimal), in both directions.

    Leave out of ``files`` what cannot be a subject: the statement itself, and what was added after it.

    :raises GateError: naming the first file that differs, is missing, or is not a subject
    """
    subjects = subjects_of(statement)
    for path in sorted(subjects.keys() | files.keys()):
        if path not in files:
            raise GateError(f"{path} is missing, though the provenance is about it")
        if path not in subjects:
            raise GateError(
                f"{path} is not among the subjects of the provenance, so nothing says where it comes from"
            )
        if files[path] != subjects[path]:
            raise GateError(f"{path} is {files[path][:12]}…, the provenance is about {subjects[path][:12]}…")


def _stage(node: LineageNode) -> dict[str, Any]:
    return {
        "id": node.node,
        "uses": node.uses,
        "plugin": node.plugin,
        "fingerprint": {"sha256": node.fingerprint},
        "options": node.options,
        "inputs": {
            name: [{"sha256": digest} for digest in node.inputs[name]] for name in sorted(node.inputs)
        },
        "outputs": {name: {"sha256": node.outputs[name]} for name in sorted(node.outputs)},
    }


def _dependencies(lineage: Lineage) -> list[dict[str, Any]]:
    """Return in-toto resource descriptors without doubles: sources, spec, commit, then software by name."""
    found = [item for source in lineage.sources for item in _source(source)]
    if lineage.spec:
        found.append({"name": "spec", "digest": {"sha256": lineage.spec}, "mediaType": "application/json"})
    if lineage.revision:
        commit = lineage.revision.removesuffix(_DIRTY)
        key = "gitCommit" if _COMMIT.fullmatch(commit) else "revision"
        found.append(
            {
                "name": "revision",
                "digest": {key: commit},
                **({"annotations": {"dirty": True}} if lineage.revision.endswith(_DIRTY) else {}),
            }
        )
    software: dict[tuple[str, str], dict[str, Any]] = {}
    for node in lineage.nodes:
        plugin, _, release = node.plugin.rpartition(" ")
        for tool, number in ((plugin, release), *node.tools.items()):
            if tool and number:
                software[tool.lower(), number] = {"name": tool, "uri": package_url(tool, number)}
    found += [software[key] for key in sorted(software)]
    if lineage.python:
        found.append({"name": "python", "uri": f"pkg:generic/python@{quote(lineage.python)}"})
    return found


def _source(source: LineageSource) -> Iterator[dict[str, Any]]:
    """Describe a source file by file, so that a SHA-256 is that of bytes which anybody can hash."""
    where = public_uri(source.uri)
    uri = {"uri": where} if _SCHEME.match(where) else {}
    annotations = {"source": source.name, "artifact": source.digest, **({} if uri else {"path": where})}
    if not source.files:
        yield {"name": source.name, **uri, "digest": {"sha256": source.digest}, "annotations": annotations}
    for path in sorted(source.files):
        yield {
            "name": f"{source.name}/{path}",
            **uri,
            "digest": {"sha256": source.files[path]},
            "annotations": annotations,
        }


def package_url(name: str, version: str) -> str:
    """Return the package URL (https://github.com/package-url/purl-spec, type pypi) of a Python distribution."""
    return f"pkg:pypi/{quote(re.sub(r'[-_.]+', '-', name).lower())}@{quote(version)}"


def public_uri(uri: str) -> str:
    """Return a URI without user name, password, query and fragment, where signatures and tokens stand."""
    if not _SCHEME.match(uri):
        return uri
    parts = urlsplit(uri)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _at(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
