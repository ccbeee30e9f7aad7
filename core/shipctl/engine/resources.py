"""What this machine has, and what running stages have taken of it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from shipctl.spec.units import Size

if TYPE_CHECKING:
    from shipctl.engine.graph import Node

LABELS = "SHIPCTL_LABELS"
"""Environment variable that says what this machine is: `gpu=l4,site=lab`."""


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 1 << 62


def _labels() -> dict[str, str]:
    pairs = (item.partition("=") for item in os.environ.get(LABELS, "").split(",") if item)
    return {name.strip(): value.strip() for name, _, value in pairs}


@dataclass
class Resources:
    """Free capacity. A stage that measures takes the whole machine."""

    cpu: float
    gpu: int = field(default_factory=lambda: len(list(Path("/dev").glob("nvidia[0-9]*"))))
    memory: int = field(default_factory=_memory)
    labels: dict[str, str] = field(default_factory=_labels)
    running: int = 0
    exclusive: bool = False

    def lacking(self, node: Node) -> str | None:
        """Return what this whole machine lacks for a node, or None."""
        wants = node.spec.resources
        if (wants.gpu or 0) > self.gpu:
            return f"{node.spec.id} needs {wants.gpu} GPU(s), and this machine has {self.gpu}"
        if (wants.memory or 0) > self.memory:
            return f"{node.spec.id} needs {wants.memory} of memory, and this machine has {Size(self.memory)}"
        for name, value in wants.labels.items():
            if self.labels.get(name) != value:
                label = f"{name}={value}"
                return f"{node.spec.id} needs a machine with {label}; if this is one, export {LABELS}={label}"
        return None

    def take(self, node: Node, *, alone: bool) -> bool:
        """Take what a node needs if it is free; a node that needs more CPUs than there are gets them alone."""
        wants = node.spec.resources
        if self.exclusive or (alone and self.running):
            return False
        enough = wants.cpu is None or wants.cpu <= self.cpu or not self.running
        if self.running and not (
            enough and self.cpu >= 1 and (wants.gpu or 0) <= self.gpu and (wants.memory or 0) <= self.memory
        ):
            return False
        self._move(node, -1)
        self.exclusive = alone
        return True

    def give_back(self, node: Node) -> None:
        """Return what a node had taken."""
        self._move(node, 1)
        self.exclusive = False

    def _move(self, node: Node, sign: int) -> None:
        wants = node.spec.resources
        self.running -= sign
        self.cpu += sign * (wants.cpu or 1)
        self.gpu += sign * (wants.gpu or 0)
        self.memory += sign * (wants.memory or 0)
