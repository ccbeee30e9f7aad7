"""Models that come from elsewhere: what ``model.uri`` may name beside a file of the project.

A source turns a URI into something that does not move any more when the plan is made, and brings the files when they
are needed. Sources are found through the entry-point group ``shipctl.sources``; the name of the entry point is the
scheme of the URI (``mlflow`` for ``mlflow:/NAME@ALIAS``).

The two calls may be made by different instances in different processes: all that the second needs of the first is in
the :class:`Resolved`, which can be kept as JSON.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from importlib.metadata import entry_points
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from shipctl.errors import PluginError, SpecError
from shipctl.records import Record
from shipctl.spec.models import StoreSpec
from shipctl.stages.artifacts import FileEntry
from shipctl.store.objects import Moved, unheard

SOURCE_GROUP = "shipctl.sources"
SOURCE_API_VERSION = 1
"""Version of this contract; a source that states another one is refused."""
MODEL_FILE = "model.onnx"
"""What :meth:`ModelSource.fetch` calls the graph."""

# Two letters at least, so that a drive letter is none; no dot, so that `net.py:/…` is none.
_SCHEME = re.compile(r"([a-z][a-z0-9+-]+):/", re.IGNORECASE)


class Resolved(Record):
    """What a URI means now."""

    uri: str = Field(description="As the spec says it.")
    pinned: str = Field(description="A URI of the same scheme that will always mean the same model.")
    identity: dict[str, str] = Field(
        description="Everything that tells this model from every other one; equal where and only where the bytes are."
    )
    size: int | None = Field(
        default=None, ge=0, description="Bytes to fetch, None where nobody says so beforehand."
    )
    files: tuple[FileEntry, ...] | None = Field(
        default=None,
        description="The files that `fetch` will write, where their digests are known (and checked) beforehand.",
    )

    @property
    def description(self) -> str:
        """One line for a person: what was asked for, and what it is."""
        return self.uri if self.uri == self.pinned else f"{self.uri} ({self.pinned})"


class ModelSource(ABC):
    """Where models come from. A source has no state; frameworks are imported inside its methods."""

    api_version: ClassVar[int]
    """The SOURCE_API_VERSION that the source was written for."""

    @abstractmethod
    def resolve(self, uri: str, *, base: Path, store: StoreSpec | None) -> Resolved:
        """Say what ``uri`` means at this moment. Quick; reads only, and no more than descriptions.

        ``base`` is the folder that relative paths are relative to, ``store`` is the spec's (None: the project's own).

        :raises SpecError: if the URI is not well-formed, or names nothing that is there, or nothing that can be
            shipped; the message names the URI and what to write instead
        :raises UnavailableError: if something is not installed or not configured
        :raises StoreError: if the other side cannot be reached or refuses
        """

    @abstractmethod
    def fetch(
        self,
        resolved: Resolved,
        folder: Path,
        *,
        base: Path,
        store: StoreSpec | None,
        moved: Moved = unheard,
    ) -> None:
        """Write the model into ``folder``, which is empty: `model.onnx`, and its external data beside it.

        Goes by ``resolved.pinned`` alone. Bytes are verified where anybody has told their digest.

        :raises StoreError: if it cannot be had, or is not what was resolved
        """


def source_scheme(uri: str) -> str | None:
    """Return the scheme of a URI such as ``mlflow:/NAME/3``; None for a path, with or without a builder behind it."""
    match = _SCHEME.match(uri)
    return match[1].lower() if match else None


def open_source(uri: str) -> ModelSource:
    """Return the source that knows a URI's scheme. Only the plugin of that scheme is imported.

    :raises SpecError: if no installed plugin knows the scheme
    :raises PluginError: if the plugin does not work
    """
    scheme = source_scheme(uri)
    installed = {point.name: point for point in entry_points(group=SOURCE_GROUP)}
    if scheme is None or scheme not in installed:
        known = ", ".join(f"{name}:/" for name in sorted(installed)) or "none"
        message = f"cannot get {uri!r}: no plugin for {scheme or 'that'}:/ is installed; there are {known}"
        raise SpecError(message)
    point = installed[scheme]
    try:
        cls = point.load()
    except Exception as exc:  # a plugin may fail in any way while it imports
        message = f"source plugin {scheme!r} ({point.value}) does not import: {type(exc).__name__}: {exc}"
        raise PluginError(message) from exc
    if not (isinstance(cls, type) and issubclass(cls, ModelSource)):
        message = f"source plugin {scheme!r} ({point.value}) is not a subclass of shipctl.ModelSource"
        raise PluginError(message)
    if cls.api_version != SOURCE_API_VERSION:
        message = (
            f"source plugin {scheme!r} ({point.value}) was written for version {cls.api_version} of the source API, "
            f"this shipctl has version {SOURCE_API_VERSION}; install a release of the plugin for it"
        )
        raise PluginError(message)
    return cls()
