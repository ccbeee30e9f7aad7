"""What pydantic says about a document, in words for the person who wrote it."""

from __future__ import annotations

import copy
import types
from collections.abc import Collection, Mapping
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from shipctl.spec.problems import MAX_SHOWN, Keys, Problems, dotted, near, shorten
from shipctl.spec.sandbox import kind

_ADD = {"apiVersion": "add 'apiVersion: shipctl.dev/v1'", "kind": "add 'kind: Pipeline'"}
_WANTED = {
    "bool": "true or false",
    "dict": "a mapping",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "mapping": "a mapping",
    "model": "a mapping",
    "path": "a path",
    "set": "a list",
    "string": "text",
    "tuple": "a list",
}


def add_validation_errors(
    problems: Problems,
    exc: ValidationError,
    model: type[BaseModel],
    data: object,
    at: Keys = (),
    *,
    skip: Collection[Keys] = (),
) -> None:
    """Add every error of ``exc``, raised when ``data`` (which stands at ``at``) was validated by ``model``.

    Unknown keys get near names from the model; the members of a union become one problem. What stands at or below
    a path in ``skip`` is left out: its problem is known.
    """
    grouped: dict[Keys, list[str]] = {}
    for error in _errors(exc):
        if problems.full or len(grouped) > MAX_SHOWN:
            break
        keys = _in_data(error["loc"], data)
        path = (*at, *keys)
        if any(path[: len(known)] == known for known in skip):
            continue
        if error["type"] == "extra_forbidden":
            name = str(error["loc"][-1])
            known = _fields(model, error["loc"][:-1])
            hint = near(name, known) or (f"; it takes {', '.join(sorted(known))}" if known else "; remove it")
            place = dotted(path[:-1]) if error["loc"][:-1] else dotted(at) or "a spec"
            problems.add(
                (*at, *error["loc"]), f"{shorten(name)} is not known in {place or 'a spec'}{hint}", "key"
            )
        elif error["type"] == "missing":
            name, place = str(error["loc"][-1]), dotted(path)
            problems.add(
                path,
                f"{name!r} is missing{f' in {place}' if place else ''}; {_ADD.get(name, 'add it')}",
                "key",
            )
        else:
            said = grouped.setdefault(path, [])
            message = _message(error, path)
            if message not in said:
                said.append(message)
    for path, said in grouped.items():
        problems.add(path, _joined(path, said))


def _errors(exc: ValidationError) -> list[Any]:
    """Return the errors but those that say a list is too short because its items are wrong."""
    return [
        error
        for error in exc.errors(include_url=False)
        if not (error["type"] == "too_short" and len(error["input"]) >= error["ctx"]["min_length"])
    ]


_DECIDES_NAMES = frozenset({"env", "environments", "id", "matrix", "secrets", "uses", "vars"})
_STAND_INS: dict[str, Any] = {
    "apiVersion": "shipctl.dev/v1",
    "kind": "Pipeline",
    "metadata": {"name": "unnamed", "version": "0.0.0"},
    "name": "unnamed",
    "version": "0.0.0",
}


def without_faults(data: dict[str, Any], exc: ValidationError) -> dict[str, Any] | None:
    """Return ``data`` without what ``exc`` is about, so that the rest of the document can be checked as well.

    None if what is wrong decides which names exist: checking names then would only tell the same fault again.
    """
    data = copy.deepcopy(data)
    for error in _errors(exc):
        keys = list(_in_data(error["loc"], data))
        if error["type"] == "missing":
            name = str(error["loc"][-1])
            parent: Any = data
            for key in keys:
                parent = parent[key]
            if name not in _STAND_INS or not isinstance(parent, dict) or len(keys) > 1:
                return None
            parent[name] = _STAND_INS[name]
            continue
        if error["type"] != "extra_forbidden" and _DECIDES_NAMES & set(map(str, keys)):
            return None
        while keys and isinstance(keys[-1], int):
            keys.pop()  # an item cannot be taken out: those behind it would move
        if not keys or keys == ["stages"]:
            return None
        parent = data
        for key in keys[:-1]:
            parent = parent[key]
        name = str(keys[-1])
        if len(keys) <= 2 and name in _STAND_INS:  # noqa: PLR2004 - at the top and in metadata
            parent[name] = copy.deepcopy(_STAND_INS[name])
        else:
            parent.pop(name, None)
    return data


def _joined(path: Keys, said: list[str]) -> str:
    """Make one sentence of what the members of a union each said."""
    start = f"{dotted(path)} must be "
    if len(said) > 1 and all(message.startswith(start) for message in said):
        wanted = [message.removeprefix(start).partition(", not ")[0] for message in said]
        return f"{start}{' or '.join(wanted)}, not {said[0].partition(', not ')[2]}"
    return ", or ".join(said)


def _message(error: Any, path: Keys) -> str:
    sort, value, context = error["type"], error["input"], error.get("ctx") or {}
    shown = shorten(value) if isinstance(value, str) else kind(value)
    if isinstance(value, bool | int | float):
        shown = str(value).lower() if isinstance(value, bool) else str(value)
    if sort in ("quantity", "spec"):
        return str(context["text"])
    if sort in ("literal_error", "enum"):
        expected = str(context["expected"])
        choices = [part.strip("'") for part in expected.replace(" or ", ", ").split(", ")]
        hint = near(value, choices) if isinstance(value, str) else ""
        return f"{dotted(path)} must be {expected}, not {shown}{hint or '; write that'}"
    if sort == "value_error":
        return str(context.get("error", error["msg"]))
    if sort in ("too_short", "string_too_short"):
        return f"{dotted(path)} is empty; add at least one {'item' if sort == 'too_short' else 'character'}"
    subject, _, fault = sort.partition("_")
    if fault in ("type", "parsing", "from_float", "attributes_type") and subject in _WANTED:
        hint = (
            "; put it in quotes" if subject == "string" and isinstance(value, int | float) else "; correct it"
        )
        return f"{dotted(path)} must be {_WANTED[subject]}, not {shown}{hint}"
    said = str(error["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")
    verb = "must be " if str(error["msg"]).startswith("Input should be ") else ""
    return f"{dotted(path)} {verb}{said[:1].lower()}{said[1:]}, not {shown}; correct it"


def _in_data(loc: tuple[str | int, ...], data: Any) -> Keys:
    """Return the part of ``loc`` that exists in ``data``, without the names of union members."""
    keys: list[str | int] = []
    for key in loc:
        within = isinstance(data, list | tuple) and isinstance(key, int) and key < len(data)
        if within or (isinstance(data, Mapping) and key in data):
            data = data[key]
            keys.append(key)
    return tuple(keys)


def _fields(model: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    """Return the keys known at ``loc`` below ``model``, as they are written in a file."""
    found: list[Any] = [model]
    for key in loc:
        found = [inner for annotation in found for inner in _step(annotation, key)]
    models = [item for annotation in found for item in _models(annotation)]
    return [field.alias or name for item in models for name, field in item.model_fields.items()]


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType):
        return [model for arm in get_args(annotation) for model in _models(arm)]
    return _models(get_args(annotation)[0]) if hasattr(annotation, "__metadata__") else []


def _step(annotation: Any, key: str | int) -> list[Any]:
    """Return the annotations of what ``key`` leads to; a union's own step (its member's name) stays in place."""
    models = _models(annotation)
    if models:
        fields = {
            field.alias or name: field for model in models for name, field in model.model_fields.items()
        }
        named = [model for model in models if model.__name__ == key]
        return [fields[str(key)].annotation] if key in fields else named or models
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return [inner for arm in arguments for inner in _step(arm, key)]
    if hasattr(annotation, "__metadata__"):
        return _step(arguments[0], key)
    if origin is dict:
        return [arguments[1]]
    if origin in (list, tuple, set, frozenset):
        return [arguments[0]]
    return []
