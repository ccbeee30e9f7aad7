"""Environments for stages whose requirements cannot live beside shipctl's own.

The environment holds the stage's requirements and what shipctl's plugin API itself needs, in the versions
that are installed here; shipctl and the stage's package are seen through a `.pth` file, so that an editable
plugin stays editable.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shipctl.engine.environments import ensure_environment
from shipctl.stages.base import Stage

_API_NEEDS = ("pydantic", "pluggy")


def stage_environment(uses: str, stage: type[Stage[Any, Any, Any]], log: Callable[[str], None]) -> Path:
    """Return the interpreter of the stage's own environment, which is made once.

    :raises StageError: if it cannot be made
    """
    api = [f"{name}=={version(name)}" for name in _API_NEEDS]
    made = ensure_environment(f"stage-{uses}", [*sorted(stage.requirements), *api], progress=log)
    places = {str(_parent("shipctl")), str(_parent(stage.__module__.partition(".")[0]))}
    for site in made.path.glob("lib*/python*/site-packages"):
        (site / "shipctl-stage.pth").write_text("\n".join(sorted(places)) + "\n")
    return made.python


def _parent(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None  # noqa: S101  (its stage class is loaded)
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).parent
    return Path(str(spec.origin)).parent
