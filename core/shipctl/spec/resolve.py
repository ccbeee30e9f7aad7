"""Evaluates the expressions that can be known when a spec is loaded.

In order: ``vars`` (each after those it uses), ``metadata``, ``slo`` and ``budget``, then the rest. What stands in
a stage's ``with``, ``when`` and ``inputs`` stays as it is, because the matrix and the results of other stages
come later; :mod:`shipctl.spec.checks` checks the names in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from shipctl.records import Record
from shipctl.spec.expressions import ANYTHING, Reference, all_references, evaluate, has_expression, missing
from shipctl.spec.models import Budget, Metadata, Slo
from shipctl.spec.nodes import ListNode, MappingNode, Node, ScalarNode, walk
from shipctl.spec.problems import Keys, Problems, dotted
from shipctl.spec.sandbox import ExpressionError, plain

MAX_EXPRESSIONS = 1000
DEFERRED = ("with", "when", "inputs")
"""The keys of a stage whose expressions wait for the engine."""
LITERAL = ("apiVersion", "kind", "include", "env", "secrets")
LITERAL_IN_STAGE = ("id", "uses", "needs")
_LATER = {
    "secrets": "secrets may be used in a stage's 'with' only, so that they cannot show elsewhere",
    "matrix": "matrix is known when a stage runs; use it in 'with', 'when', 'inputs' or 'resources.labels'",
    "stages": "stages are known when the pipeline runs; use them in 'with', 'when' or 'inputs'",
}
_MAX_CIRCLE = 10
_ONE_ARTIFACT = ("metadata", "slo", "budget", "model", "data", "seed")
"""Sections that decide what is built: they must read the same in every environment."""


class Resolver:
    """Turns the tree of a spec into plain data, with problems where an expression cannot be evaluated."""

    def __init__(
        self,
        root: MappingNode,
        problems: Problems,
        env: Mapping[str, str],
        overlaid: frozenset[str],
        environment: str,
    ) -> None:
        self.overlaid = set(overlaid)
        """Variables that the environment changes, directly or through others."""
        self.failed: set[Keys] = set()
        """Where an expression could not be evaluated, so that what stands there cannot be validated."""
        self._root = root
        self._problems = problems
        self._environment = environment
        self._scope: dict[str, Any] = {"env": dict(env)}
        self._names: dict[str, Any] = {}
        self._count = 0

    def resolve(self) -> dict[str, Any]:
        """Return the document as plain data with everything evaluated that can be."""
        entries = self._root.entries
        data: dict[str, Any] = {}
        if "vars" in entries:
            data["vars"] = self._vars(entries["vars"].node)
        self._scope["vars"] = data.get("vars") if isinstance(data.get("vars"), dict) else {}
        for key in ("metadata", "slo", "budget"):
            if key in entries:
                data[key] = self._value(entries[key].node, (key,))
        self._scope |= {key: quantities(key, data.get(key)) for key in ("metadata", "slo", "budget")}
        for key, entry in entries.items():
            if key in data:
                continue
            if key == "stages" and isinstance(entry.node, ListNode):
                data[key] = [self._stage(item, ("stages", i)) for i, item in enumerate(entry.node.items)]
            elif key in LITERAL:
                data[key] = self._literal(entry.node, (key,))
            elif key == "environments":
                data[key] = entry.node.plain()  # evaluated as vars when the environment is chosen
            else:
                data[key] = self._value(entry.node, (key,))
        return {key: data[key] for key in entries}

    def _stage(self, node: Node, keys: Keys) -> Any:
        if not isinstance(node, MappingNode):
            return self._value(node, keys)
        data: dict[str, Any] = {}
        for key, entry in node.entries.items():
            if key in DEFERRED:
                data[key] = entry.node.plain()
            elif key in LITERAL_IN_STAGE:
                data[key] = self._literal(entry.node, (*keys, key))
            elif key == "resources":
                data[key] = self._resources(entry.node, (*keys, key))
            else:
                data[key] = self._value(entry.node, (*keys, key))
        return data

    def _resources(self, node: Node, keys: Keys) -> Any:
        """Leave labels as they stand: they may be of the matrix, so that variants go to different machines."""
        if not isinstance(node, MappingNode):
            return self._value(node, keys)
        return {
            key: entry.node.plain() if key == "labels" else self._value(entry.node, (*keys, key))
            for key, entry in node.entries.items()
        }

    def _literal(self, node: Node, keys: Keys) -> Any:
        for path, scalar in walk(node, keys):
            if has_expression(scalar.value):
                self._problems.add(path, f"{dotted(path)} may not be an expression; write the value out")
                self.failed.add(path)
        return node.plain()

    def _value(self, node: Node, keys: Keys) -> Any:
        if isinstance(node, MappingNode):
            return {key: self._value(entry.node, (*keys, key)) for key, entry in node.entries.items()}
        if isinstance(node, ListNode):
            return [self._value(item, (*keys, index)) for index, item in enumerate(node.items)]
        return self._scalar(node, keys) if has_expression(node.value) else node.value

    def _scalar(self, node: ScalarNode, keys: Keys) -> Any:
        if self._problems.full or self._too_many(node, keys):
            self.failed.add(keys)
            return node.value
        try:
            for reference in all_references(node.value):
                self._check(reference, keys)
            return evaluate(node.value, self._scope)
        except ExpressionError as exc:
            self._problems.add(keys, str(exc))
            self.failed.add(keys)
            return node.value

    def _too_many(self, node: Node, keys: Keys) -> bool:
        """Count the expressions below ``node``; whether they are now more than may be evaluated."""
        before = self._count
        self._count += sum(s.value.count("${{") for _, s in walk(node) if isinstance(s.value, str))
        if before <= MAX_EXPRESSIONS < self._count:
            self._problems.add(
                keys, f"more than {MAX_EXPRESSIONS} expressions outside of 'with'; write the values out"
            )
        return self._count > MAX_EXPRESSIONS

    def _check(self, reference: Reference, keys: Keys) -> None:
        root = reference.path[0]
        if root not in self._scope:
            raise ExpressionError(
                _LATER.get(root) or f"{root} may not be used in {keys[0]}; write the value out"
            )
        if root == "vars" and keys[0] in _ONE_ARTIFACT:
            changed = reads(reference.path, self.overlaid)
            if changed:
                raise ExpressionError(
                    f"{keys[0]} reads vars.{changed[0]}, which environment {self._environment!r} changes, and every"
                    " environment must ship the same artifact; use the variable in release stages only"
                )
        if keys[0] == "vars" and reference.path == ("vars",):
            raise ExpressionError("a variable may not use all of vars; name the one that it uses")
        if not reference.guarded and missing(reference.path, self._scope):
            # variables that come later are there as well: near names shall find them
            known = {**self._scope, "vars": {**self._names, **self._scope["vars"]}}
            raise ExpressionError(explain(missing(reference.path, known), reference, self._root))

    def _vars(self, node: Node) -> Any:
        """Evaluate the variables, each after those that it uses."""
        if not isinstance(node, MappingNode):
            return node.plain()
        counted = self._count
        if self._too_many(node, ("vars",)):
            self.failed.add(("vars",))
            return node.plain()
        self._count = counted  # they are counted again one by one
        names = set(node.entries)
        uses = {name: self._uses(entry.node, names) for name, entry in node.entries.items()}
        done: dict[str, Any] = {}
        self._scope["vars"] = done
        self._names = dict.fromkeys(node.entries, ANYTHING)
        for name in _ordered(uses, self._problems):
            if uses[name] & self.overlaid:
                self.overlaid.add(name)
            done[name] = self._value(node.entries[name].node, ("vars", name))
            try:
                plain(done[name])
            except ExpressionError as exc:
                self._problems.add(("vars", name), str(exc))
        return {name: done.get(name, entry.node.plain()) for name, entry in node.entries.items()}

    def _uses(self, node: Node, names: set[str]) -> set[str]:
        found: set[str] = set()
        for _, scalar in walk(node):
            try:
                for reference in all_references(scalar.value):
                    if reference.path[0] == "vars" and len(reference.path) > 1:
                        found |= {reference.path[1]} & names
            except ExpressionError:  # told, with its position, when the variable is evaluated
                continue
        return found


def reads(path: tuple[str, ...], names: set[str] | frozenset[str]) -> list[str]:
    """Return which of the variables ``names`` the reference ``path`` reads; a computed name may be any of them."""
    if path[0] != "vars":
        return []
    return sorted({path[1]} & names) if len(path) > 1 else sorted(names)


def explain(said: str, reference: Reference, root: MappingNode) -> str:
    """Say which environment sets a variable that is undefined without it."""
    environments = root.entries.get("environments")
    if reference.path[0] != "vars" or len(reference.path) == 1 or environments is None:
        return said
    name = reference.path[1]
    if isinstance(environments.node, MappingNode):
        for key, entry in environments.node.entries.items():
            variables = entry.node.entries.get("vars") if isinstance(entry.node, MappingNode) else None
            if variables and isinstance(variables.node, MappingNode) and name in variables.node.entries:
                return f"vars.{name} is undefined; environment {key!r} sets it, so choose it with -e {key}"
    return said


def _ordered(uses: Mapping[str, set[str]], problems: Problems) -> list[str]:
    """Return the names so that each comes after what it uses; what uses itself is a problem and left out."""
    order: list[str] = []
    for cycle in find_cycles(uses, order):
        shown = circle(" -> ", [f"vars.{name}" for name in cycle])
        problems.add(("vars", cycle[0]), f"the variables use each other: {shown}; write one of them out")
    return order


def circle(arrow: str, names: list[str]) -> str:
    """Write a cycle from its first name back to it; a long one without its middle."""
    shown = names if len(names) <= _MAX_CIRCLE else [*names[: _MAX_CIRCLE - 1], "…"]
    return arrow.join([*shown, names[0]])


def find_cycles(edges: Mapping[str, set[str]], order: list[str]) -> list[list[str]]:
    """Return one cycle per knot in the graph ``edges`` (name to what it follows).

    ``order`` gets every name that neither is in a cycle nor follows one, after all that it follows. Does not recurse.
    """
    cycles: list[list[str]] = []
    state: dict[str, bool] = {}  # False while below it is looked at, True when done
    bad: set[str] = set()
    for start in edges:
        if start in state:
            continue
        path: list[str] = [start]
        waiting = [iter(sorted(edges[start]))]
        state[start] = False
        while path:
            name = path[-1]
            follow = next(waiting[-1], None)
            if follow is None:
                path.pop()
                waiting.pop()
                state[name] = True
                if edges[name] & bad:
                    bad.add(name)
                if name not in bad:
                    order.append(name)
            elif follow not in state:
                path.append(follow)
                waiting.append(iter(sorted(edges[follow])))
                state[follow] = False
            elif not state[follow]:
                cycle = path[path.index(follow) :]
                if not bad & set(cycle):
                    cycles.append(cycle)
                bad |= set(cycle)
    return cycles


def quantities(section: str, data: Any) -> Any:
    """Return a section as expressions see it: its quantities as numbers with units, unset fields left out.

    What does not validate is handed on as it is; validation tells what is wrong with it.
    """
    models: dict[str, type[Record]] = {"metadata": Metadata, "slo": Slo, "budget": Budget}
    try:
        return models[section].model_validate(data or {}).model_dump(exclude_none=True)
    except ValidationError:
        return data if isinstance(data, dict) else {}
