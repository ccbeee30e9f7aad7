"""The JSON schema of a spec as it is written, with the options of every installed stage.

Made for editors: it completes and checks plugin options too. It says what a file may look like; what only the
whole document can tell (names that must exist, cycles) is left to :func:`shipctl.spec.load.load_spec`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from shipctl.spec.models import Spec
from shipctl.spec.resolve import LITERAL, LITERAL_IN_STAGE

DIALECT = "https://json-schema.org/draft/2020-12/schema"
EXPRESSION = {"type": "string", "pattern": r"\$\{\{", "description": "An expression: ${{ … }}."}

_STRUCTURE = ("anyOf", "oneOf", "allOf")


def spec_schema(
    stage_options: Mapping[str, Mapping[str, Any]], *, title: str = "shipctl pipeline"
) -> dict[str, Any]:
    """Return the schema (draft 2020-12) of a spec's file.

    ``stage_options`` maps the name of each installed stage to the JSON schema of its options, as pydantic's
    ``model_json_schema()`` gives it. ``uses`` takes these names only, and ``with`` is checked by the one named.
    An expression may stand wherever the loader evaluates one.
    """
    schema = Spec.model_json_schema(by_alias=True, mode="validation")
    definitions: dict[str, Any] = schema.pop("$defs")
    stage = definitions["StageSpec"]
    stage["required"] = ["uses"]  # 'id' is the name under 'uses' where it is left out
    definitions = {name: _allow_expressions(body, _literal_keys(name)) for name, body in definitions.items()}
    schema = _allow_expressions(schema, frozenset(LITERAL) | {"environments", "stages"})
    definitions["expression"] = EXPRESSION
    stage = definitions["StageSpec"]
    stage["properties"]["uses"] = {
        "enum": sorted(stage_options),
        "description": stage["properties"]["uses"].get("description", ""),
    }
    chosen = []
    for name in sorted(stage_options):
        options = copy.deepcopy(dict(stage_options[name]))
        key = f"options.{name}"
        inner = options.pop("$defs", {})
        for inner_name, body in inner.items():
            definitions[f"{key}.{inner_name}"] = _allow_expressions(_moved(body, key))
        definitions[key] = _allow_expressions(_moved(options, key), whole=False)
        then: dict[str, Any] = {"properties": {"with": {"$ref": f"#/$defs/{key}"}}}
        if options.get("required"):
            then["required"] = ["with"]
        condition = {"properties": {"uses": {"const": name}}, "required": ["uses"]}
        chosen.append({"if": condition, "then": then})
    if chosen:
        stage["allOf"] = chosen
    return {
        "$schema": DIALECT,
        **schema,
        "title": title,
        "$defs": definitions,
    }


def _literal_keys(model: str) -> frozenset[str]:
    """Return the properties of a model in which no expression may stand."""
    if model == "StageSpec":
        return frozenset(LITERAL_IN_STAGE) | {"with", "when"}
    return frozenset({"env", "file", "command"}) if model == "SecretSource" else frozenset()


def _moved(schema: Any, key: str) -> Any:
    """Return a copy whose references point to where the definitions of stage ``key`` have moved."""
    if isinstance(schema, Mapping):
        return {
            name: f"#/$defs/{key}.{body.removeprefix('#/$defs/')}"
            if name == "$ref" and isinstance(body, str) and body.startswith("#/$defs/")
            else _moved(body, key)
            for name, body in schema.items()
        }
    return [_moved(item, key) for item in schema] if isinstance(schema, list) else schema


def _allow_expressions(
    schema: Mapping[str, Any], literal: frozenset[str] = frozenset(), *, whole: bool = False
) -> Any:
    """Return a copy in which the value of every property, item and entry may also be an expression.

    Properties in ``literal`` stay as they are; ``whole`` says whether the value described itself may be one.
    """
    body: dict[str, Any] = {}
    for name, value in schema.items():
        if name == "properties" and isinstance(value, Mapping):
            body[name] = {
                key: copy.deepcopy(inner) if key in literal else _allow_expressions(inner, whole=True)
                for key, inner in value.items()
            }
        elif name in _STRUCTURE and isinstance(value, list):
            body[name] = [_allow_expressions(inner) for inner in value]
        elif name == "prefixItems" and isinstance(value, list):
            body[name] = [_allow_expressions(inner, whole=True) for inner in value]
        elif name in ("items", "additionalProperties") and isinstance(value, Mapping):
            body[name] = _allow_expressions(value, whole=True)
        else:
            body[name] = copy.deepcopy(value)
    if not whole or not _restricts(body):
        return body
    kept = {key: body.pop(key) for key in ("description", "title", "default") if key in body}
    return {"anyOf": [body, {"$ref": "#/$defs/expression"}], **kept}


def _restricts(body: Mapping[str, Any]) -> bool:
    """Whether a text with an expression might not fit ``body`` as it stands."""
    known = set(body) - {"description", "title", "default", "examples"}
    return bool(known) and not (known == {"type"} and body["type"] == "string")
