"""Finds plugins by name through entry points and imports only the one that is asked for."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from shipctl.errors import PluginError, SpecError
from shipctl.stages.base import API_VERSION, ReleaseStage, Stage

STAGE_GROUP = "shipctl.stages"
StageClass = type[Stage[Any, Any, Any]] | type[ReleaseStage[Any, Any, Any]]


class Registry:
    """The installed stages. Looking is cheap; importing happens in :meth:`load`, one plugin at a time."""

    def __init__(self, installed: Iterable[EntryPoint] | None = None) -> None:
        """``installed`` replaces what importlib.metadata finds, for tests."""
        self._given = installed
        self._loaded: dict[str, StageClass] = {}

    @cached_property
    def _by_name(self) -> dict[str, list[EntryPoint]]:
        found = entry_points(group=STAGE_GROUP) if self._given is None else self._given
        by_name: dict[str, list[EntryPoint]] = defaultdict(list)
        for point in found:
            if all(point.value != other.value for other in by_name[point.name]):
                by_name[point.name].append(point)
        return dict(by_name)

    def names(self) -> list[str]:
        """Return the names of all installed stages, sorted."""
        return sorted(self._by_name)

    def find(self, name: str) -> EntryPoint:
        """Return the entry point of the stage ``name`` without importing it.

        :raises SpecError: if no distribution has it
        :raises PluginError: if two have it
        """
        points = self._by_name.get(name, [])
        if not points:
            near = difflib.get_close_matches(name, self.names(), n=1)
            hint = f"did you mean {near[0]!r}?" if near else "`shipctl stages list` shows what is installed"
            message = f"no stage named {name!r} is installed; {hint}"
            raise SpecError(message)
        if len(points) > 1:
            owners = " and ".join(sorted(f"{_owner(point)} ({point.value})" for point in points))
            message = f"stage {name!r} is declared by {owners}; uninstall one of them"
            raise PluginError(message)
        return points[0]

    def owner(self, name: str) -> str:
        """Return the name and version of the distribution that brings the stage ``name``."""
        return _owner(self.find(name))

    def load(self, name: str) -> StageClass:
        """Import the stage ``name`` and nothing else.

        :raises SpecError: if there is none
        :raises PluginError: if it does not import, is no stage, or was written for another API version
        """
        if name not in self._loaded:
            self._loaded[name] = load_stage(self.find(name))
        return self._loaded[name]


def load_stage(point: EntryPoint) -> StageClass:
    """Import one entry point and make sure that it is a stage of this API version.

    :raises PluginError: if it is not
    """
    where = f"stage {point.name!r} of {_owner(point)} ({point.value})"
    try:
        stage = point.load()
    except Exception as exc:  # a plugin may fail in any way while it imports, and only it shall
        message = f"{where} does not import: {type(exc).__name__}: {exc}"
        raise PluginError(message) from exc
    if not (isinstance(stage, type) and issubclass(stage, Stage | ReleaseStage)):
        message = f"{where} is not a subclass of shipctl.Stage or shipctl.ReleaseStage"
        raise PluginError(message)
    version = getattr(stage, "api_version", None)
    if version != API_VERSION:
        said = (
            "does not say for which plugin API it was written"
            if version is None
            else f"was written for plugin API {version}"
        )
        advice = f"this shipctl has version {API_VERSION}: set `api_version = {API_VERSION}` once it fits"
        message = f"{where} {said}; {advice}"
        raise PluginError(message)
    missing = [name for name in _models(stage) if not hasattr(stage, name)]
    if missing:
        message = f"{where} has no {', '.join(missing)}; name the models in the base: Stage[Options, Inputs, Outputs]"
        raise PluginError(message)
    return stage


def _models(stage: StageClass) -> tuple[str, ...]:
    last = "outputs_model" if issubclass(stage, Stage) else "state_model"
    return ("options_model", "inputs_model", last)


def _owner(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"
