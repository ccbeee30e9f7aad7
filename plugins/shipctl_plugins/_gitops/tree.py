"""What stands in the folder of the repository: objects, a kustomization over them, and what we have to know of both.

`.shipctl-release` says which revisions stand there, which one the Service selects, which files are ours, and in which
commits earlier revisions stood. `.shipctl-pins` says what was rolled back. Both are JSON under names that nobody takes
for manifests. Files that we have not written are never touched.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from pydantic import Field, ValidationError

from shipctl.errors import StageError
from shipctl.records import Record
from shipctl_plugins._gitops.git import Change, Repository

RecordT = TypeVar("RecordT", bound=Record)

STATE = ".shipctl-release"
PINS = ".shipctl-pins"
KUSTOMIZATION = "kustomization.yaml"
SHARED = ""
"""In place of a revision: the file belongs to all of them."""
_HISTORY = 10
_PINNED = 50
_HEAD = "# Written by shipctl; what is changed here by hand is written over by the next release.\n"


class Entry(Record):
    """One revision that stands in the tree."""

    revision: str = Field(description="Digest of what was released, and how.")
    version: str = Field(description="Semantic version of the release.")
    model: str = Field(description="The model's name in Triton.")
    digest: str = Field(description="Digest of the repository artifact.")
    repository: str = Field(description="The URI that its servers read it from.")
    since: float = Field(description="When it was committed first, seconds since the epoch.")


class Release(Record):
    """What `.shipctl-release` says."""

    pipeline: str = Field(description="metadata.name.")
    strategy: Literal["rolling", "bluegreen"] = Field(description="How revisions replace one another.")
    current: str | None = Field(default=None, description="The revision that was committed last.")
    stable: str | None = Field(default=None, description="The one before it, which an abort goes back to.")
    serving: str | None = Field(default=None, description="The revision that the Service selects.")
    changed: float = Field(description="When this was committed, seconds since the epoch.")
    warm: float = Field(default=0.0, description="Bluegreen: seconds that the old revision stays.")
    asks: bool = Field(default=False, description="Bluegreen: whether people have to approve the switch.")
    entries: dict[str, Entry] = Field(default_factory=dict, description="Per revision that stands here.")
    files: dict[str, str] = Field(
        default_factory=dict,
        description="Our files, and which revision each is of; empty for what all share.",
    )
    history: dict[str, str] = Field(
        default_factory=dict, description="Earlier revisions, and a commit in which each stood; oldest first."
    )
    run: str = Field(default="", description="The run that committed this.")

    def of(self, revision: str) -> list[str]:
        """Return the files of one revision."""
        return [name for name, owner in self.files.items() if owner == revision]


class Pin(Record):
    """A revision that was rolled back."""

    version: str = Field(description="Its semantic version.")
    since: float = Field(description="When it was, seconds since the epoch.")
    run: str = Field(default="", description="The run that rolled it back.")


class Pins(Record):
    """What `.shipctl-pins` says: these come back by `shipctl apply --retry` only."""

    pins: dict[str, Pin] = Field(default_factory=dict, description="Per revision, oldest first.")

    def adding(self, revision: str, pin: Pin) -> Pins:
        """Return the pins with one more."""
        rest = {name: item for name, item in self.pins.items() if name != revision}
        return Pins(pins=dict([*rest.items(), (revision, pin)][-_PINNED:]))

    def without(self, revision: str) -> Pins:
        """Return the pins without one."""
        return Pins(pins={name: item for name, item in self.pins.items() if name != revision})


@dataclass(frozen=True)
class Files:
    """The text of files, and whose they are."""

    texts: dict[str, str] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    """Name to revision; :data:`SHARED` for all."""

    def adding(self, texts: Mapping[str, str], owner: str) -> Files:
        """Return these and others; what has the same name is replaced."""
        return Files({**self.texts, **texts}, {**self.owners, **dict.fromkeys(texts, owner)})

    def only(self, *owners: str) -> Files:
        """Return the files of these owners."""
        names = [name for name, owner in self.owners.items() if owner in owners]
        return Files({name: self.texts[name] for name in names}, {name: self.owners[name] for name in names})


class Tree:
    """The folder as it is in one commit."""

    def __init__(self, repository: Repository, commit: str) -> None:
        self._repository = repository
        self.commit = commit
        self.path = repository.options.path
        self.there = repository.files(commit, self.path)
        """Name, relative to the folder, to what is there, ours or not."""
        self.release = self._read(STATE, Release)
        self.pins = self._read(PINS, Pins) or Pins()

    def _read(self, name: str, model: type[RecordT]) -> RecordT | None:
        if name not in self.there:
            return None
        try:
            return model.model_validate_json(self._repository.read(self.there[name].blob))
        except ValidationError as exc:
            place = f"{self.path}/{name} of {self._repository.program.shown}"
            message = f"{place} is damaged ({exc.error_count()} errors); restore it from an earlier commit"
            raise StageError(message) from exc

    @property
    def current(self) -> str | None:
        """The revision that was committed last."""
        return self.release.current if self.release is not None else None

    @property
    def identity(self) -> str:
        """The folder as an object of git: equal for equal content."""
        return self._repository.tree(self.commit, self.path)

    def files(self) -> Files:
        """Return our files, without those that say what we know."""
        owners = self.release.files if self.release is not None else {}
        found = {name: owner for name, owner in owners.items() if name in self.there}
        texts = {name: self._repository.read(self.there[name].blob).decode() for name in found}
        return Files(texts, found)

    def standing_in_the_way(self, files: Files) -> list[str]:
        """Return the files that are not ours and that ours would replace."""
        ours = {*(self.release.files if self.release is not None else {}), STATE, PINS}
        ours |= {KUSTOMIZATION} if self.release is not None else set()
        return sorted(
            name for name in {*files.texts, KUSTOMIZATION} if name in self.there and name not in ours
        )

    def becoming(self, release: Release, pins: Pins, files: Files, message: str) -> Change:
        """Return the change to another content.

        :raises StageError: if somebody else's files stand in the way
        """
        strange = self.standing_in_the_way(files)
        if strange:
            message = (
                f"{self.path or '.'} of {self._repository.program.shown} has {', '.join(strange)}, which shipctl has "
                "not written; move that away, or choose another git.path"
            )
            raise StageError(message)
        release = release.model_copy(update={"files": dict(sorted(files.owners.items()))})
        texts = {**files.texts, KUSTOMIZATION: kustomization(files), STATE: _json(release)}
        removed = [name for name in self._ours() if name not in texts and name in self.there]
        if pins.pins:
            texts[PINS] = _json(pins)
        elif PINS in self.there:
            removed.append(PINS)
        return Change(
            files={self._full(name): text.encode() for name, text in texts.items()},
            removed=[self._full(name) for name in removed],
            message=message,
        )

    def _ours(self) -> list[str]:
        return list(self.release.files) if self.release is not None else []

    def _full(self, name: str) -> str:
        return f"{self.path}/{name}" if self.path else name


def remembering(history: Mapping[str, str], revision: str | None, commit: str) -> dict[str, str]:
    """Return the history with the commit in which a revision stands."""
    if revision is None:
        return dict(history)
    rest = [(name, where) for name, where in history.items() if name != revision]
    return dict([*rest, (revision, commit)][-_HISTORY:])


def kustomization(files: Files) -> str:
    """Return the kustomization over the objects."""
    names = sorted(files.texts)
    listed = "".join(f"  - {name}\n" for name in names)
    head = f"{_HEAD}apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
    return f"{head}resources:\n{listed}" if names else f"{head}resources: []\n"


def pin(version: str, run: str) -> Pin:
    """Return the pin of a version that is rolled back now."""
    return Pin(version=version, since=time.time(), run=run)


def _json(record: Record) -> str:
    return record.model_dump_json(indent=1) + "\n"
