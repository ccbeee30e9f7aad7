"""Options of a stage: what the spec says below `with:`, evaluated and validated as early as it can be.

Three kinds of values: those known when the plan is made; those that refer to `stages.*`, known once these
have run; and those that refer to `secrets.*`, which are put in only in the moment a stage runs, and stand
in a fingerprint as the text of their expression.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from shipctl.engine.retargeting import TARGET, retargeted
from shipctl.errors import SpecError
from shipctl.spec import add_validation_errors, evaluate, has_expression, references
from shipctl.spec.fields import FileScope
from shipctl.stages.base import StageOptions

if TYPE_CHECKING:
    from shipctl.engine.filecache import FileCache
    from shipctl.engine.graph import Node
    from shipctl.engine.secrets import Secrets
    from shipctl.spec import LoadedSpec, Problems

SCOPE_LATER = frozenset({"stages", "secrets"})


@dataclass(frozen=True)
class PlannedOptions:
    """The options of one node as far as they are known when the plan is made."""

    known: Mapping[str, Any]
    later: Mapping[str, Any]
    """Raw values by option name, with expressions over `stages` or `secrets`."""
    value: StageOptions | None = None
    """The validated options, where nothing comes later and nothing is wrong."""
    files: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 (hex) of the project's files that they name, by path as written."""

    def canonical(
        self, model: type[StageOptions], stages: Mapping[str, Any] | None, scope: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the JSON form that counts in a fingerprint: defaults filled in, bounds left out, secrets as text.

        ``stages`` is None while the plan is made; expressions over it then stand as text too.
        """
        form = self._form(model, stages, scope)
        return {**form, "files": dict(self.files)} if self.files else form

    def _form(
        self, model: type[StageOptions], stages: Mapping[str, Any] | None, scope: Mapping[str, Any]
    ) -> dict[str, Any]:
        skip = _bounds(model)
        if self.value is not None:
            form: dict[str, Any] = self.value.model_dump(mode="json", exclude=skip)
            return form
        sample = model.model_construct(**self.known)
        form = sample.model_dump(mode="json", exclude=skip | set(self.later), warnings=False)
        for name, raw in self.later.items():
            if name in skip:
                continue
            if stages is not None and all(path[0] != "secrets" for path in references(raw)):
                form[name] = {"value": evaluate(raw, {**scope, "stages": stages})}
            else:
                form[name] = {"expression": raw, "with": _values(raw, scope)}
        return form


def plan_options(
    node: Node,
    loaded: LoadedSpec,
    problems: Problems,
    cache: FileCache | None = None,
    context: str | None = None,
) -> PlannedOptions:
    """Evaluate and validate the options of a node as far as possible; what is wrong is added to ``problems``.

    ``cache`` knows digests of files; without it, files that options name are looked for and not read. ``context`` is
    laid over that of a release's target.
    """
    where = ("stages", node.index, "with")
    scope = {**loaded.scope(), "matrix": node.matrix}
    known: dict[str, Any] = {}
    later: dict[str, Any] = {}
    for name, raw in node.spec.options.items():
        refs = references(raw) if has_expression(raw) else frozenset()
        if any(path[0] in SCOPE_LATER for path in refs):
            later[name] = raw
            continue
        try:
            known[name] = evaluate(raw, scope) if refs or has_expression(raw) else raw
        except SpecError as exc:
            problems.add((*where, name), str(exc))
            later[name] = raw
    if context is not None and (target := retargeted(node, {**known, **later}, context)) is not None:
        (later if TARGET in later else known)[TARGET] = target
    files = FileScope(loaded.root)
    value = validate_options(node, known, problems, files, frozenset(later))
    digests = {name: cache.digest(path) for name, path in files.seen.items()} if cache is not None else {}
    return PlannedOptions(known, later, None if later else value, digests)


def partial_options(model: type[StageOptions], planned: PlannedOptions) -> StageOptions:
    """Return the options as far as they are known when the plan is made, each of them validated; the rest is missing.

    What depends on `stages` or `secrets` has its default, or none. Enough to say which target they mean.
    """
    if planned.value is not None:
        return planned.value
    values = {
        name: TypeAdapter(model.model_fields[name].rebuild_annotation()).validate_python(value)
        for name, value in planned.known.items()
        if name in model.model_fields
    }
    return model.model_construct(**values)


def complete_options(
    node: Node, planned: PlannedOptions, loaded: LoadedSpec, stages: Mapping[str, Any], secrets: Secrets
) -> StageOptions:
    """Return the options with everything in them; only the secrets that they name are fetched, paths are absolute.

    :raises SpecError: if they are wrong after all; no secret is in its message
    """
    if planned.value is not None and not planned.files:
        return planned.value
    named = {path[1] for path in references(planned.later) if path[0] == "secrets" and len(path) > 1}
    scope = {
        **loaded.scope(),
        "matrix": node.matrix,
        "stages": stages,
        "secrets": {name: secrets[name] for name in named},
    }
    problems = loaded.problems()
    try:
        values = {**planned.known, **{name: evaluate(raw, scope) for name, raw in planned.later.items()}}
        made = validate_options(node, values, problems, FileScope(loaded.root, absolute=True))
        problems.raise_if_any()
    except SpecError as exc:
        raise SpecError(secrets.redact(str(exc))) from None
    assert made is not None  # noqa: S101  (there were no problems)
    return made


def validate_options(
    node: Node,
    values: Mapping[str, Any],
    problems: Problems,
    files: FileScope,
    later: frozenset[str] = frozenset(),
) -> StageOptions | None:
    """Return the options as the stage's own model, or None after adding what is wrong to ``problems``."""
    model = node.cls.options_model
    try:
        return model.model_validate(dict(values), context=files)
    except ValidationError as exc:
        at = ("stages", node.index, "with")
        add_validation_errors(problems, exc, model, dict(values), at, skip=[(*at, name) for name in later])
        return None


@cache
def _bounds(model: type[StageOptions]) -> set[str]:
    return {
        name
        for name, field in model.model_fields.items()
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("bound")
    }


def _values(raw: Any, scope: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of what an expression refers to beside stages and secrets."""
    found: dict[str, Any] = {}
    for path in sorted(references(raw)):
        if path[0] in SCOPE_LATER:
            continue
        value: Any = scope
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        found[".".join(path)] = value
    return found
