"""Fingerprints: what the outputs of a stage depend on, and nothing else.

A fingerprint is a SHA-256 over named components, each a small JSON value or a digest, so that two runs can
be compared component by component and a person told which one moved. Paths and times never are components.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from shipctl.engine.closure import module_closure
from shipctl.engine.filecache import FileCache
from shipctl.errors import UnavailableError
from shipctl.records import digest_of
from shipctl.stages.base import API_VERSION, Stage
from shipctl.stages.context import Objectives
from shipctl.templates import folder

FORMAT = 1
"""Version of the components themselves; a change makes every stage run again."""

Components = dict[str, Any]


class Fingerprinter:
    """Computes the components that are the same for all nodes of a plan only once."""

    def __init__(self, cache: FileCache, seed: int, objectives: Objectives) -> None:
        self._cache = cache
        self._seed = seed
        self._objectives = objectives
        self._by_class: dict[type[Stage[Any, Any, Any]], Components] = {}

    def of_class(self, stage: type[Stage[Any, Any, Any]]) -> Components:
        """Return what depends on the stage class and this machine alone."""
        if stage not in self._by_class:
            self._by_class[stage] = self._components(stage)
        return self._by_class[stage]

    def _components(self, stage: type[Stage[Any, Any, Any]]) -> Components:
        found: Components = {
            "format": [FORMAT, API_VERSION],
            "class": f"{stage.__module__}:{stage.__qualname__}",
            "source": module_closure(stage.__module__, self._cache, stage.sources),
            "python": [sys.implementation.cache_tag, platform.machine(), sys.platform],
            "seed": self._seed,
        }
        if stage.tools:
            found["tools"] = {tool: _version(tool) for tool in stage.tools}
        if stage.templates:
            found["templates"] = {name: self._templates(name) for name in stage.templates}
        if stage.environ:
            found["environment"] = {name: os.environ.get(name) for name in stage.environ}
        if stage.requirements:
            found["requirements"] = _lock(stage)
        blocks = [name for name in stage.reads if name != "lineage"]
        if blocks:
            found["objectives"] = {name: dict(getattr(self._objectives, name)) for name in blocks}
        if stage.measurement:
            found["host"] = host_fingerprint()
        return found

    def _templates(self, owner: str) -> dict[str, str]:
        root = folder(owner)
        return {
            path.relative_to(root).as_posix(): self._cache.digest(path)
            for path in sorted(root.rglob("*"))
            if path.is_file()
        }


def _lock(stage: type[Stage[Any, Any, Any]]) -> dict[str, list[str] | None]:
    """Return what the stage's own environment consists of; it cannot run where that cannot be known."""
    from shipctl.engine.isolation import stage_lock

    try:
        pins = list(stage_lock(stage).pins)
    except UnavailableError:
        pins = None
    return {"asked": sorted(stage.requirements), "lock": pins}


def components(
    base: Components, options: Mapping[str, Any], inputs: Mapping[str, Sequence[str]]
) -> Components:
    """Return the full components of a node: those of its class, its options, and the digests of its inputs."""
    return {
        **base,
        "options": dict(options),
        "inputs": {name: list(digests) for name, digests in inputs.items()},
    }


def fingerprint(parts: Components) -> str:
    """Return the SHA-256 (hex) of the components."""
    return digest_of(parts)


def differences(old: Components, new: Components) -> list[str]:
    """Say in words what moved between two runs of the same node."""
    words: list[str] = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            words.extend(
                _difference(name, key, before.get(key), after.get(key))
                for key in sorted({*before, *after})
                if before.get(key) != after.get(key)
            )
        else:
            words.append(_difference(name, "", before, after))
    return words


_LABELS = {
    "options": "option",
    "inputs": "input",
    "source": "source file",
    "tools": "version of",
    "templates": "template folder",
    "environment": "environment variable",
    "objectives": "spec block",
}


_SHOWN = 40
"""Characters of a value that are shown in a line of a terminal."""


def _difference(name: str, key: str, before: Any, after: Any) -> str:
    label = " ".join(filter(None, (_LABELS.get(name, name), key)))
    if name in {"source", "inputs", "templates", "objectives", "host", "class"}:
        what = "is new" if before is None else "is gone" if after is None else "changed"
        return f"{label} {what}"
    if max(len(str(before)), len(str(after))) > _SHOWN:
        return f"{label} changed"
    return f"{label} {before} -> {after}"


@cache
def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


@cache
def host_fingerprint() -> str:
    """Return a digest of what makes this machine's speed its own: processor model and count, memory, kernel, name."""
    model = ""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(errors="replace").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    digest = hashlib.sha256(
        "|".join([platform.node(), model, str(os.cpu_count()), platform.machine()]).encode()
    )
    return digest.hexdigest()
