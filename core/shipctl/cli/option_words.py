"""A JSON schema of options in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def value_words(value: Any) -> str:
    """Return a default as it would be written, `none` for nothing."""
    import json

    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def type_words(option: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Return the type of an option as a person says it: `integer`, `minmax | entropy`, `list of number`."""
    if "$ref" in option:
        return type_words(definitions.get(option["$ref"].rpartition("/")[2], {}), definitions)
    if "enum" in option:
        return " | ".join(map(str, option["enum"]))
    if "const" in option:
        return str(option["const"])
    for key in ("anyOf", "oneOf", "allOf"):
        if key in option:
            parts = [type_words(part, definitions) for part in option[key] if part.get("type") != "null"]
            return " or ".join(dict.fromkeys(parts))
    kind = option.get("type", "any")
    if kind == "array":
        items: Mapping[str, Any] = option.get("items") or next(iter(option.get("prefixItems", ())), {})
        return f"list of {type_words(items, definitions)}"
    if kind == "object":
        values = option.get("additionalProperties")
        return (
            f"map to {type_words(values, definitions)}"
            if isinstance(values, dict)
            else str(option.get("title", "map"))
        )
    return str(kind)


def default_words(name: str, schema: Mapping[str, Any]) -> str:
    """Return the default of an option of ``schema`` as it would be written; `required` for one that has to be given."""
    if name in schema.get("required", ()):
        return "required"
    return value_words(schema["properties"][name].get("default"))


def grouped(schema: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the schemas of the groups of options that options of ``schema`` hold, by title, as they are mentioned."""
    definitions: Mapping[str, Any] = schema.get("$defs", {})
    mentioned: dict[str, Mapping[str, Any]] = {}

    def look(part: Any) -> None:
        if isinstance(part, list):
            for item in part:
                look(item)
        elif isinstance(part, Mapping):
            name = str(part.get("$ref", "")).rpartition("/")[2]
            if name in definitions and name not in mentioned:
                mentioned[name] = definitions[name]
                look(definitions[name])
            look(list(part.values()))

    look(schema.get("properties", {}))
    return {
        str(group.get("title", name)): group for name, group in mentioned.items() if "properties" in group
    }
