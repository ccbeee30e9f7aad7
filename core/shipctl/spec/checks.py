"""Checks that look at several places of a spec at once: names that must exist, names that must be unique, cycles."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shipctl.spec.expressions import ANYTHING, all_references, has_expression, missing, references
from shipctl.spec.models import Spec, StageSpec
from shipctl.spec.nodes import Entry, MappingNode, child, walk
from shipctl.spec.problems import Keys, Problems, listed, near
from shipctl.spec.resolve import DEFERRED, circle, explain, find_cycles
from shipctl.spec.sandbox import ExpressionError

MAX_EXPRESSIONS = 5000


def check_spec(spec: Spec, root: MappingNode, scope: Mapping[str, Any], problems: Problems) -> None:
    """Add everything that is wrong between the parts of ``spec``; ``root`` is the tree it was read from."""
    _check_tensors(spec, problems)
    _check_ids(spec.stages, problems)
    _check_names(spec, problems)
    _check_expressions(spec, root, scope, problems)
    if not problems:  # an unknown name would make the graph something else
        _check_cycles(spec.stages, problems)


def stage_dependencies(stages: Sequence[StageSpec]) -> dict[str, tuple[str, ...]]:
    """Return, per stage id, the ids of the stages that it follows, in the order of the spec.

    These are the ones under ``needs`` (left out: the one before it), those that feed its ``inputs``, and those
    whose results its expressions use.
    """
    order = {stage.id: index for index, stage in enumerate(stages)}
    found: dict[str, tuple[str, ...]] = {}
    for index, stage in enumerate(stages):
        needs = (
            stage.needs if stage.needs is not None else tuple(s.id for s in stages[max(0, index - 1) : index])
        )
        ids = {*needs, *(source for _, source in _sources(stage))}
        for path in references([stage.options, stage.when, stage.inputs]):
            if path[0] == "stages" and len(path) > 1:
                ids.add(path[1])
        found[stage.id] = tuple(sorted(ids & order.keys(), key=order.__getitem__))
    return found


_BROUGHT = re.compile(r"model$|data\.")
"""What ``inputs`` may name beside stages: what the spec itself brings."""


def _sources(stage: StageSpec) -> list[tuple[Keys, str]]:
    """Return the stage ids under ``inputs`` with where they stand; expressions are known later."""
    found: list[tuple[Keys, str]] = []
    for port, value in stage.inputs.items():
        many = [value] if isinstance(value, str) else value
        for index, text in enumerate(many):
            if not has_expression(text) and not _BROUGHT.match(text):
                keys = (port,) if isinstance(value, str) else (port, index)
                found.append((keys, text.partition(".")[0]))
    return found


def _check_tensors(spec: Spec, problems: Problems) -> None:
    for side in ("inputs", "outputs"):
        tensors = getattr(spec.model, side) if spec.model else ()
        for index, name in _twice(tensor.name for tensor in tensors):
            message = f"tensor {name!r} is declared twice; give every tensor a name of its own"
            problems.add(("model", side, index, "name"), message)


def _check_ids(stages: Sequence[StageSpec], problems: Problems) -> None:
    for index, name in _twice(stage.id for stage in stages):
        problems.add(
            ("stages", index, "id"), f"stage id {name!r} is used twice; give this one an 'id' of its own"
        )


def _twice(names: Iterable[str]) -> list[tuple[int, str]]:
    seen: set[str] = set()
    found = []
    for index, name in enumerate(names):
        if name in seen:
            found.append((index, name))
        seen.add(name)
    return found


def _check_names(spec: Spec, problems: Problems) -> None:
    ids = {stage.id for stage in spec.stages}
    for index, stage in enumerate(spec.stages):
        if problems.full:
            return
        at: Keys = ("stages", index)
        for number, need in enumerate(stage.needs or ()):
            keys: Keys = (*at, "needs", number)
            if need == stage.id:
                problems.add(keys, f"stage {need!r} needs itself; name the stages before it")
            elif need not in ids:
                problems.add(keys, f"there is no stage {need!r}{near(need, ids) or _there_is(ids)}")
        for port, source in _sources(stage):
            keys = (*at, "inputs", *port)
            if source == stage.id:
                problems.add(keys, f"stage {source!r} takes its own output; name a stage before it")
            elif source not in ids:
                problems.add(keys, f"there is no stage {source!r}{near(source, ids) or _there_is(ids)}")
        if stage.environment is not None and stage.environment not in spec.environments:
            known = spec.environments
            hint = near(stage.environment, known) or _there_is(known)
            problems.add((*at, "environment"), f"there is no environment {stage.environment!r}{hint}")


def _there_is(names: Iterable[str]) -> str:
    return f"; there is {listed(sorted(names))}"


def _axes(stages: Sequence[StageSpec]) -> dict[str, set[str]]:
    """Return, per stage id, the names under ``matrix`` there: its own axes, and those of what it may be fed by."""
    try:
        dependencies = stage_dependencies(stages)
    except ExpressionError:  # said elsewhere; until it is mended, every axis may be anywhere
        everywhere = {axis for stage in stages for axis in stage.matrix}
        return {stage.id: everywhere for stage in stages}
    dependents: dict[str, list[str]] = {}
    for name, needs in dependencies.items():
        for need in needs:
            dependents.setdefault(need, []).append(name)
    found: dict[str, set[str]] = {stage.id: set() for stage in stages}
    for stage in stages:
        seen: set[str] = set()
        waiting = [stage.id] if stage.matrix else []
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                found[name].update(stage.matrix)
                waiting.extend(dependents.get(name, ()))
    return found


def _check_expressions(spec: Spec, root: MappingNode, scope: Mapping[str, Any], problems: Problems) -> None:
    """Check the names in what is evaluated later: the stages' ``with``, ``when`` and ``inputs``."""
    results = {stage.id: {"outputs": ANYTHING, "metrics": ANYTHING} for stage in spec.stages}
    known = {
        **scope,
        "env": dict.fromkeys(spec.env, ANYTHING),
        "secrets": dict.fromkeys(spec.secrets, ANYTHING),
        "stages": results,
    }
    count = 0
    stages = root.entries["stages"].node
    axes = _axes(spec.stages)
    for index, stage in enumerate(spec.stages):
        known["matrix"] = dict.fromkeys(axes[stage.id], ANYTHING)
        node = child(stages, index)
        if not isinstance(node, MappingNode):
            continue
        for key in DEFERRED:
            entry = node.entries.get(key)
            if not isinstance(entry, Entry):
                continue
            for path, scalar in walk(entry.node, ("stages", index, key)):
                if not has_expression(scalar.value):
                    continue
                count += scalar.value.count("${{") if isinstance(scalar.value, str) else 0
                if problems.full:
                    return
                if count > MAX_EXPRESSIONS:
                    problems.add(
                        path, f"the spec has more than {MAX_EXPRESSIONS} expressions; write values out"
                    )
                    return
                _check_names_in(scalar.value, path, stage, known, root, problems)


def _check_names_in(
    value: Any, at: Keys, stage: StageSpec, known: Mapping[str, Any], root: MappingNode, problems: Problems
) -> None:
    try:
        for reference in all_references(value):
            path = reference.path
            if path[0] == "secrets" and at[2] != "with":
                problems.add(
                    at, "secrets may be used in a stage's 'with' only, so that they cannot show elsewhere"
                )
            elif path[:2] == ("stages", stage.id):
                problems.add(at, f"stage {stage.id!r} uses its own results; name a stage before it")
            elif not reference.guarded:
                said = missing(path, known)
                if said:
                    problems.add(at, explain(said, reference, root))
    except ExpressionError as exc:
        problems.add(at, str(exc))


def _check_cycles(stages: Sequence[StageSpec], problems: Problems) -> None:
    edges = {name: set(follows) for name, follows in stage_dependencies(stages).items()}
    index = {stage.id: number for number, stage in enumerate(stages)}
    for cycle in find_cycles(edges, []):
        first = min(cycle, key=index.__getitem__)
        start = cycle.index(first)
        shown = circle(" needs ", [*cycle[start:], *cycle[:start]])
        key = "needs" if stages[index[first]].needs is not None else "id"
        problems.add(
            ("stages", index[first], key), f"the stages wait for each other: {shown}; break the circle"
        )
