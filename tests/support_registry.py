"""Packages, deployments and a store for tests of the registry."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shipctl.signature import Signature, TensorSpec
from shipctl.spec.models import StoreSpec
from shipctl.stages.artifacts import FileEntry, ModelPackage
from shipctl.store.models import Description, ModelRegistry, RegisteredVersion
from shipctl.store.objects import ObjectStore, open_store

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 3)),),
)


def sha(text: str) -> str:
    """Return a digest that stands for ``text``."""
    return hashlib.sha256(text.encode()).hexdigest()


def package(version: str = "1.0.0", *, name: str = "digits", content: str = "") -> ModelPackage:
    """Return the artifact of a package; ``content`` makes it another one of the same version."""
    body = content or version
    return ModelPackage(
        name=name,
        version=version,
        model=sha(f"model {body}"),
        signature=SIGNATURE,
        files=(FileEntry(path="package.json", sha256=sha(body), size=len(body)),),
    )


def folder_store(folder: Path) -> ObjectStore:
    """Return the real store in a folder."""
    return open_store(StoreSpec(uri=str(folder)), folder)


def registered(
    registry: ModelRegistry, *versions: str, name: str = "digits", **fields: Any
) -> dict[str, RegisteredVersion]:
    """Register versions of a model; ``fields`` are those of their description."""
    about = Description(**fields)
    return {
        version: registry.register(
            package(version, name=name), lineage={"run": f"run-{version}"}, about=about
        )
        for version in versions
    }


def deployed(
    objects: ObjectStore, *, serving: Sequence[str] = (), manifests: Sequence[str] = (), target: str = "local"
) -> None:
    """Write what a target needs, as a release does."""
    body = {
        "pipeline": "digits",
        "stage": "release",
        "target": target,
        "host": "gpu-7",
        "files": [],
        "manifests": list(manifests),
        "serving": list(serving),
        "updated": 1.0,
    }
    objects.write(f"deployments/{sha(target)[:32]}.json", json.dumps(body).encode())
