"""Finishing what a stage returns: file lists, so that digests are known at once, and report files."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from shipctl.stages.artifacts import Artifact, FileEntry, Report

ArtifactT = TypeVar("ArtifactT", bound=Artifact)


def sealed(artifact: ArtifactT) -> ArtifactT:
    """Return ``artifact`` with its files listed and digested, as the engine will list them.

    A report names its subject by digest, so the stage that makes both has to know the digest first.
    """
    root = artifact.root
    paths = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
    base = root.parent if root.is_file() else root
    entries = tuple(_entry(path, base) for path in paths)
    return artifact.model_copy(update={"files": entries}).located(root)


def _entry(path: Path, base: Path) -> FileEntry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(path=path.relative_to(base).as_posix(), sha256=digest, size=path.stat().st_size)


def write_report(
    workdir: Path, *, subject: str, title: str, metrics: Mapping[str, float], details: Mapping[str, Any]
) -> Report:
    """Write ``report.json`` below ``workdir`` and return it as an artifact.

    ``details`` may hold NaN and infinity; they become text, since JSON has neither.
    """
    path = workdir / "report.json"
    clean = plain(details)
    content = {"title": title, "subject": subject, "metrics": plain(metrics), "details": clean}
    path.write_text(json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
    return sealed(Report.at(path, subject=subject, title=title, metrics=dict(metrics), details=clean))


def plain(value: Any) -> Any:
    """Return ``value`` with only what JSON can say: NaN and infinity as text, tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
