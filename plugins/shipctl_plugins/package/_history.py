"""What the lineage says about one model: the conversions that led to it, the data in them, what gates said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from shipctl.stages.artifacts import OnnxModel
from shipctl.stages.context import Lineage, LineageNode
from shipctl.stages.verdicts import Verdict

FLOATING = frozenset({"fp64", "fp32", "tf32", "fp16", "bf16"})
"""Precisions that need no calibration."""
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")


@dataclass(frozen=True)
class Conversion:
    """One stage that made a model of another one."""

    node: LineageNode
    made: str
    """Digest of the model that it made."""
    parent: str | None
    """Digest of the model that it was made from, if that is known."""


@dataclass(frozen=True)
class History:
    """The lineage as seen from the packaged model."""

    lineage: Lineage
    model: OnnxModel

    @cached_property
    def conversions(self) -> tuple[Conversion, ...]:
        """The stages that led to the model, the last one first."""
        found: list[Conversion] = []
        digest: str | None = self.model.digest
        seen: set[str] = set()
        while digest is not None and digest not in seen:
            seen.add(digest)
            node = self._maker(digest)
            if node is None:
                break
            parent = self._parent(node, digest)
            found.append(Conversion(node, digest, parent))
            digest = parent
        return tuple(found)

    @cached_property
    def models(self) -> tuple[str, ...]:
        """Digests of the model and of all that it was made from, itself first."""
        digests = [self.model.digest, *(item.parent for item in self.conversions if item.parent)]
        return tuple(dict.fromkeys(digests))

    @property
    def is_source(self) -> bool:
        """Whether the spec brought the model as it is."""
        return any(
            source.name == "model" and source.digest == self.model.digest for source in self.lineage.sources
        )

    @property
    def origin_known(self) -> bool:
        """Whether the way from what the spec brought to the model is known without a gap."""
        return any(source.digest == self.models[-1] for source in self.lineage.sources)

    def calibration(self) -> dict[str, str]:
        """Return name to digest of the data that went into the conversions of a model that is not floating point."""
        if self.model.precision in FLOATING:
            return {}
        names = {source.digest: source.name for source in self.lineage.sources}
        found: dict[str, str] = {}
        for item in reversed(self.conversions):
            for port, digests in item.node.inputs.items():
                for digest in digests:
                    name = names.get(digest, "")
                    if name.startswith("data."):
                        found[name.removeprefix("data.")] = digest
                    elif port in {"calibration", "training"} and not name:
                        found[port] = digest
        return dict(sorted(found.items()))

    def verdicts(
        self, about: tuple[str, ...], wanted: Callable[[Verdict], bool]
    ) -> Iterator[tuple[LineageNode, Verdict]]:
        """Yield what gates said about these artifacts, where ``wanted`` says that it matters."""
        for node in self.lineage.nodes:
            for verdict in node.verdicts:
                if verdict.subject in about and wanted(verdict):
                    yield node, verdict

    def runtimes(self) -> dict[str, str]:
        """Return the runtimes, with versions, that the model was made for and measured in."""
        found: dict[str, str] = {}
        for node in self.lineage.nodes:
            took = any(self.model.digest in digests for digests in node.inputs.values())
            if took or self.model.digest in node.outputs.values():
                found |= {name: number for name in _RUNTIMES if (number := node.tools.get(name))}
        return found

    def _maker(self, digest: str) -> LineageNode | None:
        """Return the stage that made an artifact; one that only passed it on (a selection) did not."""
        for node in self.lineage.nodes:
            if digest in node.outputs.values() and not any(digest in taken for taken in node.inputs.values()):
                return node
        return None

    def _parent(self, node: LineageNode, made: str) -> str | None:
        taken = {port: digests for port, digests in node.inputs.items() if digests}
        if made == self.model.digest and any(self.model.derived_from in items for items in taken.values()):
            return self.model.derived_from
        if "model" in taken:
            return taken["model"][0]
        data = {source.digest for source in self.lineage.sources if source.name.startswith("data.")}
        others = [digest for items in taken.values() for digest in items if digest not in data]
        return others[0] if len(others) == 1 else None
