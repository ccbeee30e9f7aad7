"""A JSON schema of options in words."""

from __future__ import annotations

from typing import Any


def value_words(value: Any) -> str:
    """Return a default as it would be written, `none` for nothing."""
    import json

    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def type_words(option: dict[str, Any], definitions: dict[str, Any]) -> str:
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
        items: dict[str, Any] = option.get("items") or next(iter(option.get("prefixItems", ())), {})
        return f"list of {type_words(items, definitions)}"
    if kind == "object":
        values = option.get("additionalProperties")
        return (
            f"map to {type_words(values, definitions)}"
            if isinstance(values, dict)
            else str(option.get("title", "map"))
        )
    return str(kind)
