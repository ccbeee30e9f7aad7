"""What may feed one input of a stage.

The outputs of the stages that it needs, by artifact class; if none fits, what the spec itself brings (the model by
class, data by the input's name). A check passes its subject through, so what comes out of it has the origin of what
went in. Where two needs offer different things, `inputs:` decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from shipctl.engine.graph import Node, Origin
from shipctl.engine.ports import Port, output_ports
from shipctl.errors import SpecError
from shipctl.spec import evaluate, has_expression, near
from shipctl.stages.artifacts import Artifact
from shipctl.stages.base import Stage

if TYPE_CHECKING:
    from shipctl.spec import LoadedSpec, Problems, StageSpec


class Offer(NamedTuple):
    """What one needed node offers to an input."""

    origin: Origin
    node: Node | None


class Matcher:
    """Matches inputs with what there is so far; what does not fit is added to the problems."""

    def __init__(self, loaded: LoadedSpec, sources: Mapping[str, type[Artifact]], problems: Problems) -> None:
        self._loaded = loaded
        self._sources = sources
        self._problems = problems
        self.by_stage: dict[str, list[Node]] = {}
        """The nodes of the stages that are built."""
        self.kinds: dict[Origin, type[Artifact]] = {Origin("", name): kind for name, kind in sources.items()}
        """What is made where."""

    def offers(
        self, index: int, stage: StageSpec, port: Port, needs: list[str], matrix: Mapping[str, Any]
    ) -> list[Offer] | None:
        """Return what may feed one input; None after a problem was added."""
        if port.name in stage.inputs:
            return self._chosen(index, stage, port, matrix)
        if port.from_spec:
            return self._from_sources(index, stage, port, needs)
        per_need = {need: found for need in needs if (found := self._from_stage(need, port))}
        for need, found in per_need.items():
            outputs = {offer.origin.port for offer in found}
            if not port.many and len({(offer.origin.node, offer.origin.port) for offer in found}) > len(
                self.by_stage[need]
            ):
                self._ambiguous(index, stage, port, [f"{need}.{output}" for output in sorted(outputs)])
                return None
        if port.many:
            return [offer for found in per_need.values() for offer in found]
        distinct = {tuple(offer.origin for offer in found) for found in per_need.values()}
        if len(distinct) > 1:
            self._ambiguous(index, stage, port, list(per_need))
            return None
        if per_need:
            return next(iter(per_need.values()))
        return self._from_sources(index, stage, port, needs)

    def _from_stage(self, need: str, port: Port, output: str | None = None) -> list[Offer]:
        found = []
        for node in self.by_stage[need]:
            origins = [Origin(node.id, name) for name in output_ports(node.cls)]
            if node.subject is not None:
                origins.append(node.subject)
            for origin in origins:
                passed = node.subject == origin
                name = node.cls.subject if passed and issubclass(node.cls, Stage) else origin.port
                if output in {None, name} and port.takes(self.kinds[origin]):
                    found.append(Offer(origin, node))
        return found

    def _from_sources(self, index: int, stage: StageSpec, port: Port, needs: list[str]) -> list[Offer] | None:
        named = f"data.{port.name}"
        for name in (named, "model"):
            kind = self._sources.get(name)
            if kind is not None and port.takes(kind):
                return [Offer(Origin("", name), None)]
        if port.optional:
            return []
        offered = sorted(
            {self.kinds[o.origin].kind for need in needs for o in self._from_stage(need, _ANYTHING)}
        )
        gives = (
            f"{', '.join(needs)} gives {', '.join(offered) or 'nothing'}" if needs else "it needs no stage"
        )
        data = f", nor does the spec have `{named}`" if port.takes(_dataset()) else ""
        self._problems.add(
            ("stages", index, "needs" if stage.needs is not None else "uses"),
            f"{stage.id}: input {port.name!r} wants {_article(str(port))}, and {gives}{data}; "
            f"name a stage that makes one in `needs`, or choose with `inputs: {{{port.name}: STAGE}}`",
        )
        return None

    def _chosen(
        self, index: int, stage: StageSpec, port: Port, matrix: Mapping[str, Any]
    ) -> list[Offer] | None:
        keys = ("stages", index, "inputs", port.name)
        chosen = stage.inputs[port.name]
        texts = [chosen] if isinstance(chosen, str) else list(chosen)
        if not port.many and len(texts) != 1:
            self._problems.add(
                keys, f"input {port.name!r} of {stage.uses} takes one artifact, not {len(texts)}"
            )
            return None
        offers: list[Offer] = []
        for text in texts:
            try:
                name = (
                    str(evaluate(text, {**self._loaded.scope(), "matrix": dict(matrix)}))
                    if has_expression(text)
                    else text
                )
            except SpecError as exc:
                self._problems.add(keys, str(exc))
                return None
            found = self._reference(name, port)
            if isinstance(found, str):
                self._problems.add(keys, found)
                return None
            offers.extend(found)
        return offers

    def _reference(self, name: str, port: Port) -> list[Offer] | str:
        """Return what a reference (`onnx`, `onnx.model`, `data.golden`) stands for, or what is wrong with it."""
        if name in self._sources:
            if not port.takes(self._sources[name]):
                found_kind = _article(self._sources[name].kind)
                return f"{name} is {found_kind}, and input {port.name!r} wants {_article(str(port))}"
            return [Offer(Origin("", name), None)]
        stage, _, output = name.partition(".")
        if stage not in self.by_stage:
            known = [item.id for item in self._loaded.spec.stages]
            if stage in known:
                return f"{stage!r} does not run before this stage"
            hint = near(name, [*known, *self._sources])
            return f"there is no stage {stage!r} and nothing the spec brings has that name{hint}"
        found = self._from_stage(stage, port, output or None)
        if not found:
            outputs = sorted({offer.origin.port for offer in self._from_stage(stage, _ANYTHING)})
            what = f"no output {output!r}" if output else f"no output of kind {port}"
            return f"{stage} has {what} for input {port.name!r}; it has {', '.join(outputs) or 'none'}"
        if len({offer.origin.port for offer in found}) > 1 and not port.many and not output:
            names = sorted({offer.origin.port for offer in found})
            return f"{stage} has several outputs that fit; write {' or '.join(f'{stage}.{item}' for item in names)}"
        return found

    def _ambiguous(self, index: int, stage: StageSpec, port: Port, names: list[str]) -> None:
        self._problems.add(
            ("stages", index, "needs" if stage.needs is not None else "uses"),
            f"{stage.id}: input {port.name!r} may come from {' or '.join(names)}; "
            f"choose with `inputs: {{{port.name}: {names[0]}}}`",
        )


_ANYTHING = Port("anything", (Artifact,))


def _dataset() -> type[Artifact]:
    from shipctl.stages.artifacts import Dataset

    return Dataset


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'aeio' else 'a'} {name}"
