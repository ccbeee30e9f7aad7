"""Environments for stages whose requirements cannot live beside shipctl's own.

The environment holds the stage's requirements and what shipctl's plugin API itself needs, in the versions
that are installed here; shipctl and the stage's package are seen through a `.pth` file, so that an editable
plugin stays editable. It is made of a lock (:mod:`shipctl.engine.resolving`) on first use, and found again by it.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shipctl.engine.environments import ensure_environment, existing_environment
from shipctl.engine.resolving import Lock, lock_of
from shipctl.stages.base import Stage

_API_NEEDS = ("pluggy", "pydantic", "ruamel.yaml")
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def stage_lock(stage: type[Stage[Any, Any, Any]], log: Callable[[str], None] = lambda _: None) -> Lock:
    """Return what the environment of a stage that has requirements of its own consists of.

    :raises UnavailableError: if its requirements cannot be resolved
    """
    named = {found[0].lower() for item in stage.requirements if (found := _NAME.match(item))}
    api = [f"{name}=={version(name)}" for name in _API_NEEDS if name not in named]
    return lock_of([*stage.requirements, *api], log)


def stage_environment(uses: str, stage: type[Stage[Any, Any, Any]], log: Callable[[str], None]) -> Path:
    """Return the interpreter of the stage's own environment, which is made once.

    :raises UnavailableError: if its requirements cannot be resolved
    :raises StageError: if it cannot be made
    """
    made = ensure_environment(_name(uses), stage_lock(stage, log).pins, progress=log)
    places = {str(_parent("shipctl")), str(_parent(stage.__module__.partition(".")[0]))}
    for site in made.path.glob("lib*/python*/site-packages"):
        (site / "shipctl-stage.pth").write_text("\n".join(sorted(places)) + "\n")
    return made.python


def environment_in_words(uses: str, stage: type[Stage[Any, Any, Any]]) -> str:
    """Say for a plan which environment a stage runs in, and whether it is there.

    :raises UnavailableError: if its requirements cannot be resolved
    """
    lock = stage_lock(stage)
    there = existing_environment(_name(uses), lock.pins) is not None
    needs = ", ".join(sorted(stage.requirements))
    made = "which is there" if there else "which is made first"
    return f"runs in an environment of its own with {needs} ({len(lock.pins)} distributions), {made}"


def _name(uses: str) -> str:
    return f"stage-{uses}"


def _parent(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None  # noqa: S101  (its stage class is loaded)
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).parent
    return Path(str(spec.origin)).parent
