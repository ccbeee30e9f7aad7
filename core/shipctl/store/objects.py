"""What a store of artifacts must be able to do: keep bytes by key, and create a key only if nobody has it.

Everything else (deduplication by digest, verification, versions, aliases, garbage collection) is built once on top
of these few calls, so a plugin for another kind of store is small. Stores are found through the entry-point group
``shipctl.stores``; the name of the entry point is the scheme of the URI (``s3`` for ``s3://bucket/prefix``).

A store has to be strongly consistent: what :meth:`ObjectStore.create` or :meth:`ObjectStore.upload` has returned
from is seen by every later call, whoever makes it.
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

from shipctl.errors import PluginError, SpecError
from shipctl.spec.models import StoreSpec

STORE_GROUP = "shipctl.stores"
VARIABLE = "SHIPCTL_STORE"
"""The environment variable with the URI of the store for specs that name none."""
Moved = Callable[[int], None]
"""Called with the number of further bytes that were sent or received; may be called from several threads."""


def unheard(_count: int) -> None:
    """Take no notice of bytes that moved: the default of every ``moved``."""


class ObjectInfo(NamedTuple):
    """One object of a store."""

    key: str
    """Its name below the store's prefix, with forward slashes."""
    size: int
    """Bytes."""
    modified: float
    """When it was last written, in seconds since the epoch by the store's clock."""


class ObjectStore(ABC):
    """Bytes by key. All methods may be called from several threads at once.

    Keys are relative to the URI, with forward slashes and no leading one. What cannot be done after the store's own
    retries raises :class:`~shipctl.errors.StoreError` whose message names the URI, the reason and the next step
    (never a credential).
    """

    api_version: ClassVar[int] = 1

    def __init__(self, spec: StoreSpec, base: Path) -> None:
        """``base`` is the folder that relative paths in ``spec`` (a folder, a CA file) are relative to.

        Nothing is connected yet.

        :raises SpecError: if ``spec`` cannot be meant for this kind of store
        """
        self.spec = spec
        self.base = base

    @property
    def uri(self) -> str:
        """The store's own URI in its canonical form, without credentials."""
        return self.spec.uri

    def check(self) -> None:
        """Make one cheap call that shows whether the store can be reached and read.

        :raises StoreError: if not
        """
        next(iter(self.list("")), None)

    @abstractmethod
    def stat(self, key: str) -> ObjectInfo | None:
        """Return what is known of an object, or None if there is none."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield all objects whose key begins with ``prefix``, in ascending order of keys, fetched page by page."""

    @abstractmethod
    def read(self, key: str) -> bytes | None:
        """Return the bytes of a small object, or None if there is none."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Write a small object if there is none of that key; of several at once exactly one gets True.

        A retry after a lost answer must not report False to the one who won: compare what is there.
        """

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Write a small object, whatever was there: readers see the old or the new bytes."""

    @abstractmethod
    def upload(self, key: str, source: Path, *, sha256: str, size: int, moved: Moved = unheard) -> None:
        """Store a file of any size in constant memory, so that it appears whole or not at all.

        ``sha256`` is the digest (hex) that the whole file has to have. Nobody has read the file before: compare what
        you send with it, at the latest before the object appears. The receiver must have checked the bytes on
        arrival, or they are read back. Large files go in parts, several at a time; called again after it was
        interrupted, it goes on with the parts that are there.

        :raises CorruptArtifactError: if the file's bytes have another digest; nothing appears under ``key``, and
            what was there stays
        :raises StoreError: if it cannot be done, or the file is not ``size`` long
        """

    @abstractmethod
    def download(self, key: str, target: Path, *, size: int, moved: Moved = unheard) -> None:
        """Write the object to a new file ``target``, in ranges side by side where that helps, in constant memory.

        The caller verifies the digest.

        :raises StoreError: if there is no such object, or it has another size
        """

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are not there are none of its concern."""

    def unfinished(self, *, older_than: float) -> Iterator[str]:
        """Yield names of uploads that were begun before ``older_than`` (seconds since the epoch) and never finished."""
        return iter(())

    def discard(self, name: str) -> None:  # noqa: B027  (a store that has none has nothing to give up)
        """Give up an unfinished upload that :meth:`unfinished` named."""

    def close(self) -> None:  # noqa: B027  (not every store has connections)
        """Let go of connections."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def store_or_default(spec: StoreSpec | None) -> StoreSpec | None:
    """Return the store that a spec names, or else the one of the environment; None means the project's own."""
    uri = os.environ.get(VARIABLE)
    if spec is not None or not uri:
        return spec
    if scheme_of(uri) == "file" and "://" not in uri:
        uri = str(Path(uri).expanduser().absolute())
    return StoreSpec(uri=uri)


def scheme_of(uri: str) -> str:
    """Return the scheme of a store's URI; a plain path is ``file``."""
    head, separator, _ = uri.partition("://")
    return head.lower() if separator else "file"


@cache
def _installed(_path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Return the store plugins that this ``sys.path`` holds; a process looks for them once."""
    return tuple(entry_points(group=STORE_GROUP))


def open_store(spec: StoreSpec, base: Path) -> ObjectStore:
    """Return the store that a spec names. Only the plugin of its scheme is imported; nothing is connected yet.

    :raises SpecError: if no installed plugin knows the scheme
    :raises PluginError: if the plugin does not work
    """
    scheme = scheme_of(spec.uri)
    installed = _installed(tuple(sys.path))
    points = [point for point in installed if point.name == scheme]
    if not points:
        known = ", ".join(sorted({point.name for point in installed}))
        message = (
            f"cannot open the store {spec.uri!r}: no plugin for {scheme}:// is installed; there are {known}"
        )
        raise SpecError(message)
    try:
        cls = points[0].load()
    except Exception as exc:
        message = f"store plugin {scheme!r} ({points[0].value}) does not import: {type(exc).__name__}: {exc}"
        raise PluginError(message) from exc
    if not (isinstance(cls, type) and issubclass(cls, ObjectStore)):
        message = f"store plugin {scheme!r} ({points[0].value}) is not a subclass of shipctl.ObjectStore"
        raise PluginError(message)
    return cls(spec, base)
