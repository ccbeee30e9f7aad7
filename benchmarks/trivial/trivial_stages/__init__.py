"""A chain of these stages counts: each writes one more than it read."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from shipctl import Artifact, StageOutputs


class Number(Artifact):
    """A text file that holds one whole number."""

    kind: ClassVar[str] = "number"

    @classmethod
    def written(cls, folder: Path, value: int) -> Number:
        """Write ``value`` into ``folder``."""
        path = folder / "number.txt"
        path.write_text(str(value))
        return cls.at(path)


class Outputs(StageOutputs):
    """The number."""

    number: Number
