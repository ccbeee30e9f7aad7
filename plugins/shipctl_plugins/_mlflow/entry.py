"""What MLflow is told about a package of ours, and how a version that we registered is known again."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shipctl.errors import GateError
from shipctl.evidence.package import PROVENANCE, PackageManifest, read_manifest
from shipctl.stages.artifacts import ModelPackage
from shipctl.store.objects import scheme_of

DIGEST = "shipctl.digest"
"""Digest of the package: the key under which versions and runs are found again."""
RUN = "shipctl.run"
"""The run of shipctl that made it: what a release that is given up may delete."""
REFERENCE = "shipctl.reference"
"""NAME@VERSION."""
VERSION = "shipctl.version"
REVISION = "shipctl.revision"
STORE = "shipctl.store"
PIPELINE = "shipctl.pipeline"

# MLflow's own rules: letters, digits, underscore, hyphen, dot, space, colon, slash; so many characters.
_NOT_IN_KEYS = re.compile(r"[^\w\-. /]")
_KEY_LENGTH = 250
_TAG_LENGTH = 5000
_PARAM_LENGTH = 500


@dataclass(frozen=True)
class Entry:
    """A package as MLflow is to show it."""

    reference: str
    digest: str
    source: str
    """Where the package is; MLflow keeps no copy."""
    description: str
    model_description: str
    model_tags: dict[str, str]
    version_tags: dict[str, str]
    metrics: dict[str, float]
    params: dict[str, str]
    left_out: tuple[str, ...]
    """Metrics that are no finite numbers, which MLflow cannot keep alike in all its databases."""


def source_uri(store: str, reference: str, digest: str) -> str:
    """Return the URI that stands as the source of a version.

    For a store that others can reach it is that of the package's manifest there. MLflow refuses paths of a machine as
    sources, so a package in a folder is named by itself, and found through the store of the spec that asks for it.
    """
    if scheme_of(store) == "file":
        return f"shipctl:/{reference}"
    return f"{store.rstrip('/')}/manifests/{digest[:2]}/{digest}"


def make_entry(
    package: ModelPackage, *, store: str, pipeline: str, revision: str, tags: Mapping[str, str]
) -> Entry:
    """Return what MLflow is told about a package whose files are on this machine.

    ``store`` is the URI of the store that has it, ``tags`` are the user's own and win over ours.

    :raises GateError: if the package cannot be read
    """
    manifest = read_manifest(package.root)
    reference, digest = f"{package.name}@{package.version}", package.digest
    about = {
        "shipctl.owner": manifest.owner,
        "shipctl.license": manifest.license,
        **{f"shipctl.label.{name}": value for name, value in manifest.labels.items()},
    }
    exact = {
        DIGEST: digest,
        REFERENCE: reference,
        VERSION: package.version,
        REVISION: revision,
        STORE: store,
        PIPELINE: pipeline,
        "shipctl.signer": package.signer,
        "shipctl.model": package.model,
        "shipctl.spec": _spec_digest(package.root),
    }
    metrics = {_key(name): value for name, value in manifest.metrics.items() if math.isfinite(value)}
    return Entry(
        reference=reference,
        digest=digest,
        source=source_uri(store, reference, digest),
        description=_description(manifest, package, store),
        model_description=manifest.description or "",
        model_tags=_tags({PIPELINE: pipeline, **about, **tags}),
        version_tags=_tags({**about, **tags, **exact}),
        metrics=metrics,
        params=_params(manifest, package),
        left_out=tuple(name for name, value in manifest.metrics.items() if not math.isfinite(value)),
    )


def _description(manifest: PackageManifest, package: ModelPackage, store: str) -> str:
    signed = f"signed by `{package.signer}`" if package.signer else "not signed"
    lines = [
        manifest.description or "",
        f"Package `{package.name}@{package.version}` in `{store}`, {signed}.",
        f"Digest `{package.digest}`.",
        "The files are there and not here: `shipctl verify` checks them, `model.uri: mlflow:/…` takes them.",
    ]
    return "\n\n".join(filter(None, lines))[:_TAG_LENGTH]


def _params(manifest: PackageManifest, package: ModelPackage) -> dict[str, str]:
    tensors = {
        f"{side}.{tensor.name}": f"{tensor.dtype} [{', '.join(map(str, tensor.shape))}]"
        for side, group in (("input", manifest.signature.inputs), ("output", manifest.signature.outputs))
        for tensor in group
    }
    values: dict[str, str | None] = {
        "version": package.version,
        "package": package.digest,
        "model": package.model,
        "license": manifest.license,
        "files": str(len(package.files)),
        "bytes": str(package.size),
        **{f"data.{name}": digest for name, digest in manifest.calibration.items()},
        **tensors,
    }
    return {_key(name): value[:_PARAM_LENGTH] for name, value in values.items() if value}


def _tags(values: Mapping[str, str | None]) -> dict[str, str]:
    return {_key(name): value[:_TAG_LENGTH] for name, value in values.items() if value}


def _key(name: str) -> str:
    return _NOT_IN_KEYS.sub("_", name).strip("/.")[:_KEY_LENGTH] or "_"


def _spec_digest(folder: Path) -> str | None:
    """Return the digest of the spec that the package's provenance names, if it has one."""
    try:
        found: Any = json.loads((folder / PROVENANCE).read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as exc:
        message = f"the package's {PROVENANCE} is not JSON: {exc}; package the model again"
        raise GateError(message) from None
    for key in ("predicate", "buildDefinition", "externalParameters", "spec", "sha256"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, str) else None
