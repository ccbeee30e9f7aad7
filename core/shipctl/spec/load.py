"""Loads a spec: files, overrides, environment, expressions, validation, checks; every error at its place."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shipctl.errors import SpecError
from shipctl.spec import nodes
from shipctl.spec.assemble import Files, apply_override, load_files, overlay, parse_override
from shipctl.spec.checks import check_spec
from shipctl.spec.expressions import references
from shipctl.spec.models import Spec
from shipctl.spec.nodes import Entry, ListNode, MappingNode, ScalarNode
from shipctl.spec.problems import Keys, Location, Part, Problems
from shipctl.spec.resolve import DEFERRED, Resolver, reads
from shipctl.spec.sandbox import bounded_work
from shipctl.spec.validation import add_validation_errors, without_faults

_MAX_WORK = 8 * 1024 * 1024
"""Characters that all expressions of a spec together may touch while it is loaded: about a tenth of a second."""


@dataclass(frozen=True)
class LoadedSpec:
    """A spec that has passed every check, with the place of everything in it."""

    spec: Spec
    """Variables resolved; ``with``, ``when`` and ``inputs`` of the stages as they were written."""
    path: Path
    """The spec's file, absolute."""
    files: tuple[tuple[Path, str], ...]
    """Every file that was read, the spec first, with its SHA-256 (hex)."""
    environment: str | None
    """The environment laid over it."""
    overlaid: frozenset[str]
    """The variables that the environment changes, directly or through others."""
    env: Mapping[str, str] = field(repr=False)
    """The environment variables that are listed under ``env`` and set."""
    tree: MappingNode = field(repr=False)
    """What was loaded, with positions; includes merged, overrides and environment applied."""

    @property
    def root(self) -> Path:
        """The folder that paths in the spec are relative to."""
        return self.path.parent

    def locate(self, keys: Keys, part: Part = "value") -> Location:
        """Return where ``keys`` was written; what is missing is located at its nearest parent."""
        return nodes.locate(self.tree, keys, part)

    def problems(self) -> Problems:
        """Return an empty collector whose key paths point into this spec."""
        return Problems(self)

    def scope(self) -> dict[str, Any]:
        """Return what expressions may use everywhere: vars, env, metadata, slo and budget.

        Plain data, made anew; quantities are numbers with units, fields that are not set are left out.
        """
        return _scope(self.spec, self.env)

    def overlaid_reads(self, stage: int) -> dict[Keys, str]:
        """Return where stage number ``stage`` reads a variable that the environment changes, and which.

        Looked at is what decides the result of a stage: ``with``, ``when``, ``inputs`` and ``matrix``. For a stage
        that builds an artifact each of these is an error, because every environment must ship the same one.
        """
        found: dict[Keys, str] = {}
        if not self.overlaid:
            return found
        node = nodes.child(self.tree.entries["stages"].node, stage)
        for key in (*DEFERRED, "matrix"):
            entry = nodes.child(node, key) if isinstance(node, MappingNode) else None
            if isinstance(entry, Entry):
                for keys, scalar in nodes.walk(entry.node, ("stages", stage, key)):
                    for path in references(scalar.value):
                        found.update((keys, name) for name in reads(path, self.overlaid))
        return found


@dataclass(frozen=True)
class _Tree:
    root: MappingNode

    def locate(self, keys: Keys, part: Part = "value") -> Location:
        return nodes.locate(self.root, keys, part)


def load_spec(
    path: str | os.PathLike[str],
    *,
    environment: str | None = None,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> LoadedSpec:
    """Load the spec at ``path`` with what it includes.

    ``environment`` names the environment whose variables are laid over it (``-e``), ``overrides`` are texts such as
    ``stages.onnx.with.opset=20`` (``--set``) and win over both, ``environ`` replaces ``os.environ``.

    Raises SpecError that tells everything that is wrong, each with ``file:line:column`` and the source line.
    """
    loaded, problems = load_soundly(path, environment=environment, overrides=overrides, environ=environ)
    problems.raise_if_any()
    if loaded is None:  # what did not validate is a problem, so this is not reached
        raise SpecError(f"{Location(str(path))}: is not a spec; check it")
    return loaded


def load_soundly(
    path: str | os.PathLike[str],
    *,
    environment: str | None = None,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> tuple[LoadedSpec | None, Problems]:
    """Load as :func:`load_spec`, and return what is sound of the spec beside what is wrong with it.

    With problems, the spec lacks its wrong parts (None if too little is left), so that a caller can look for more
    problems in the rest before it raises.

    Raises SpecError for what is not even YAML, or a command line that cannot be applied to it.
    """
    file = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links; paths are relative to this one
    files = Files()
    tree = load_files(file, files)
    early = Problems()
    given = [override for text in overrides if (override := parse_override(text, early))]
    # variables come last, because what was said on this command line wins over the environment
    for override in (o for o in given if o.path[0] != "vars"):
        tree = apply_override(tree, override, early)
    overlaid: frozenset[str] = frozenset()
    if environment is not None:
        tree, overlaid = overlay(tree, environment, early)
    for override in (o for o in given if o.path[0] == "vars"):
        tree = apply_override(tree, override, early)
        overlaid -= set(override.path[1:]) if len(override.path) == 2 else set()  # noqa: PLR2004 - vars.NAME
    early.raise_if_any()

    env = _listed(tree, os.environ if environ is None else environ)
    problems = Problems(_Tree(tree))
    resolver = Resolver(tree, problems, env, overlaid, environment or "")
    with bounded_work(_MAX_WORK):
        data = resolver.resolve()
        spec = _validate(data, problems, resolver.failed)
        if spec is not None:
            check_spec(spec, tree, _scope(spec, env), problems)
    read = tuple((document.path, document.sha256) for document in files.documents)
    overlaid = frozenset(resolver.overlaid)
    loaded = None if spec is None else LoadedSpec(spec, file, read, environment, overlaid, env, tree)
    return loaded, problems


def _listed(tree: MappingNode, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of ``environ`` that the spec lists under ``env``."""
    entry = tree.entries.get("env")
    items = entry.node.items if entry and isinstance(entry.node, ListNode) else []
    names = [item.value for item in items if isinstance(item, ScalarNode) and isinstance(item.value, str)]
    return {name: environ[name] for name in names if name in environ}


def _validate(data: dict[str, Any], problems: Problems, failed: set[Keys]) -> Spec | None:
    """Return the spec; with problems, one without the wrong parts so that the rest can be checked as well."""
    try:
        return Spec.model_validate(data)
    except ValidationError as exc:
        add_validation_errors(problems, exc, Spec, data, skip=failed)
        sound = without_faults(data, exc)
    try:
        return Spec.model_validate(sound) if sound is not None else None
    except ValidationError:
        return None


def _scope(spec: Spec, env: Mapping[str, str]) -> dict[str, Any]:
    return {
        "vars": copy.deepcopy(spec.vars),
        "env": dict(env),
        "metadata": spec.metadata.model_dump(exclude_none=True),
        "slo": spec.slo.model_dump(exclude_none=True),
        "budget": spec.budget.model_dump(exclude_none=True),
    }
