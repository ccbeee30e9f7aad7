"""Manifests as text: values that cannot break out of a template, documents out of text, and text that reads well."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any

from shipctl.errors import SpecError

Manifest = dict[str, Any]

_PLAIN = re.compile(r"(?:--)?[A-Za-z/][A-Za-z0-9_./=-]*(?::[A-Za-z0-9_./=-]+)*")
"""Texts that every reader of YAML takes for texts, but for :data:`_WORDS`."""
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"})
_SPECIAL = re.compile(r"[^\x20-\x7e]")


def in_yaml(value: Any) -> str:
    """Return ``value`` (JSON types) in one line of YAML, all of it in ASCII, wherever a value may stand.

    It is JSON but for two things that readers of YAML do not take from JSON: characters outside of the basic plane,
    which JSON writes as two escapes (the API server refuses them), and numbers such as 1e-05, which YAML 1.1 takes for
    texts. Every control character is escaped.

    :raises TypeError: for what is of no type that JSON has
    :raises ValueError: for a number that is not finite
    """
    if isinstance(value, str):
        return _SPECIAL.sub(lambda found: _escaped(found[0]), json.dumps(value, ensure_ascii=False))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)}: {in_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(in_yaml(item) for item in value) + "]"
    if isinstance(value, float):
        text = json.dumps(float(value), allow_nan=False)
        return text if "." in text else text.replace("e", ".0e")
    if value is None or isinstance(value, int):
        return json.dumps(value)
    raise TypeError(
        f"{value} is of no type that YAML has"
    )  # for an undefined name Jinja's own error comes first


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"the key {key!r} is no text")
    return in_yaml(key)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\U{code:08x}" if code > 0xFFFF else f"\\u{code:04x}"  # noqa: PLR2004


def objects_in(text: str, where: str) -> list[Manifest]:
    """Return the objects of the YAML documents in ``text``; empty documents are left out.

    :raises SpecError: if it is not YAML, or something in it is no object; ``where`` says whose text it is
    """
    import yaml

    try:
        found = [document for document in _documents(text) if document is not None]
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(exc, "problem", None) or str(exc).splitlines()[0]
        raise SpecError(f"{where} makes no YAML:{line} of what it makes: {problem}; correct it") from None
    for document in found:
        if not isinstance(document, dict) or not {"apiVersion", "kind", "metadata"} <= document.keys():
            message = f"{where} makes something without apiVersion, kind and metadata: {str(document)[:60]!r}; add them"
            raise SpecError(message)
    return found


def _documents(text: str) -> list[Any]:
    """Return what is in ``text``, read by libyaml, ten times as fast, where that is there and content.

    What it refuses is read once more by PyYAML itself, whose errors are the same everywhere.
    """
    import yaml

    fast = getattr(yaml, "CSafeLoader", None)
    if fast is not None:
        with suppress(yaml.YAMLError):
            return list(yaml.load_all(text, fast))
    return list(yaml.safe_load_all(text))


def yaml_of(objects: Iterable[Mapping[str, Any]]) -> str:
    """Return the objects as YAML documents, `---` between them; equal for equal objects.

    Keys stand in the order in which they are; every text that some reader of YAML (1.1 or 1.2) might take for
    something else is quoted.
    """
    import yaml

    return "---\n".join(
        yaml.dump(
            json.loads(json.dumps(one)),  # no anchors for what is the same object in memory
            Dumper=_dumper(),
            sort_keys=False,
            default_flow_style=False,
            allow_unicode=True,
            width=120,
        )
        for one in objects
    )


def files_of(objects: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return file name to text, a file per object (`deployment-digits-0123456789.yaml`), in order of the names.

    :raises ValueError: if two objects are the same one
    """
    files: dict[str, str] = {}
    for one in objects:
        name = f"{one['kind'].lower()}-{one['metadata']['name']}.yaml"
        if name in files:
            raise ValueError(f"there are two objects for {name}")
        files[name] = yaml_of([one])
    return dict(sorted(files.items()))


@cache
def _dumper() -> Any:
    import yaml

    class Dumper(yaml.SafeDumper):
        """Writes lists indented below their key, as people do."""

        def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: FBT001, FBT002
            super().increase_indent(flow, False)

    def text(dumper: Any, value: str) -> Any:
        if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
            return dumper.represent_scalar("tag:yaml.org,2002:str", value)
        style = "|" if _is_block(value) else '"'
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return Dumper


def _is_block(value: str) -> bool:
    """Say whether a text of several lines can be written as it is."""
    lines = value.split("\n")
    return (
        len(lines) > 1
        and bool(lines[0].strip())
        and not value[0].isspace()
        and not any(line != line.rstrip() for line in lines)
        and not re.search(r"[^\n\x20-\x7e]", value)
    )
