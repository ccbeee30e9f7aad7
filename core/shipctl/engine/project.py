"""Where shipctl keeps what belongs to a project: the folder `.shipctl`."""

from __future__ import annotations

import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shipctl.store.log import Heads

STATE = ".shipctl"
_ROOT_MARKS = (STATE, ".git")


@dataclass(frozen=True)
class Project:
    """A folder with specs in it, and `.shipctl` for everything that shipctl remembers."""

    root: Path

    @classmethod
    def here(cls, folder: Path) -> Project:
        """Return the project that a folder belongs to.

        That is the nearest folder above it with a `.shipctl` or a `.git`, or else the folder itself.
        """
        start = folder.resolve()
        for candidate in (start, *start.parents):
            if any((candidate / mark).exists() for mark in _ROOT_MARKS):
                return cls(candidate)
        return cls(start)

    @classmethod
    def of(cls, spec: Path) -> Project:
        """Return the project that a spec belongs to."""
        return cls.here(spec.resolve().parent)

    @property
    def state(self) -> Path:
        """Everything below here is shipctl's own."""
        return self.root / STATE

    @property
    def journal(self) -> Path:
        """The SQLite file of runs."""
        return self.state / "journal.db"

    @property
    def store(self) -> Path:
        """The folder of the local artifact store."""
        return self.state / "store"

    @property
    def targets(self) -> Path:
        """What belongs to targets on this machine, a folder each."""
        return self.state / "targets"

    def target(self, name: str, environment: str | None) -> Path:
        """Return the folder of a target as one environment uses it: two environments share nothing but the name."""
        return self.targets / target_label(name, environment)

    @property
    def work(self) -> Path:
        """Work directories of running stages."""
        return self.state / "work"

    def heads(self) -> Heads | None:
        """Return the ends of logs that were seen here; None while there is no state folder to keep them in."""
        from shipctl.store.log import Heads

        return Heads(self.state / "heads.json") if self.state.is_dir() else None

    def identity(self) -> str:
        """Return what tells this project from every other one, on any machine; it is made when first asked for."""
        place = self.state / "identity"
        if not place.exists():
            self.create()
            with suppress(FileExistsError), place.open("x") as stream:
                stream.write(secrets.token_hex(16))
        return place.read_text()

    def create(self) -> None:
        """Make the state folder, with a .gitignore so that it is never committed."""
        self.state.mkdir(parents=True, exist_ok=True)
        ignore = self.state / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n")


def target_label(name: str, environment: str | None) -> str:
    """Return what tells a target of one environment from the same one of another: ``local@production``."""
    return name if environment is None else f"{name}@{environment}"


def from_label(label: str) -> tuple[str, str | None]:
    """Return target and environment of a label."""
    name, at, environment = label.rpartition("@")
    return (name, environment) if at else (label, None)
