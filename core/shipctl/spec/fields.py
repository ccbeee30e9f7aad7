"""The types of the spec's fields: texts that must look like something, and the short forms that a list may have."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError, core_schema

from shipctl.spec.expressions import has_expression, is_single_expression
from shipctl.spec.problems import shorten
from shipctl.spec.sandbox import ExpressionError

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler


@dataclass
class FileScope:
    """Given to pydantic as the context of a validation: what paths are relative to, and which were named."""

    root: Path
    """The spec's folder."""
    absolute: bool = False
    """Whether the paths are to be made absolute: when a stage runs, not while it is planned."""
    seen: dict[str, Path] = field(default_factory=dict)
    """Path as it was written to the file on this machine."""


def _project_file(value: str, info: ValidationInfo) -> str:
    scope = info.context
    if not isinstance(scope, FileScope):
        return value
    path = scope.root / Path(value).expanduser()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise fault(f"{shorten(value)} {what}; write the path of a file, relative to the spec's folder")
    scope.seen[value] = path.absolute()
    return str(path.absolute()) if scope.absolute else value


Scalar: TypeAlias = str | int | float | bool


def fault(message: str) -> PydanticCustomError:
    """Return the error for pydantic whose message is shown as it is."""
    return PydanticCustomError("spec", "{text}", {"text": message})


@dataclass(frozen=True)
class Named:
    """Annotates a text that must match ``pattern``; ``what`` ends the message for one that does not."""

    pattern: str
    what: str

    def check(self, value: str) -> str:
        """Return ``value`` if it matches."""
        if not re.fullmatch(self.pattern, value):
            raise fault(f"{shorten(value)} is not {self.what}")
        return value

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {**handler(schema), "pattern": f"^(?:{self.pattern})$"}


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _port(value: Any) -> str | tuple[str, ...]:
    texts = value if isinstance(value, list | tuple) else [value]
    if not texts or not all(
        isinstance(t, str) and (_SOURCE.fullmatch(t) or has_expression(t)) for t in texts
    ):
        shown = shorten(value) if isinstance(value, str) else repr(value)[:60]
        raise fault(f"{shown} names no stage; write a stage id, 'stage.output', or a list of them")
    return tuple(texts) if isinstance(value, list | tuple) else str(value)


def _condition(value: Any) -> bool | str:
    if isinstance(value, bool):
        return value
    try:
        if isinstance(value, str) and is_single_expression(value):
            return value
    except ExpressionError as exc:
        raise fault(str(exc)) from None
    raise fault(f"{shorten(str(value))} is no condition; write true, false or one ${{{{ … }}}}")


def _axis(value: Any) -> tuple[Scalar, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise fault("a matrix axis is a list with at least one value; write [a, b]")
    for item in value:
        if not isinstance(item, Scalar):
            raise fault(f"a matrix axis has texts, numbers and booleans, not {repr(item)[:60]}; write [a, b]")
    if len({str(item) for item in value}) != len(value):
        raise fault("a matrix axis has the same value twice; remove one")
    return tuple(value)


ID_PATTERN = r"[a-z0-9][a-z0-9_-]{0,62}"
_SOURCE = re.compile(rf"{ID_PATTERN}(?:\.[A-Za-z_][A-Za-z0-9_]*)?")
_SEMVER = (
    r"(?:0|[1-9][0-9]*)\.(?:0|[1-9][0-9]*)\.(?:0|[1-9][0-9]*)"
    r"(?:-(?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)(?:\.(?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*))*)?"
    r"(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?"
)

StageId: TypeAlias = Annotated[
    str, Named(ID_PATTERN, "a stage id; write lower-case letters, digits, '-' and '_', such as int8-minmax")
]
StageName: TypeAlias = Annotated[
    str,
    Named(
        r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", "the name of a stage; 'shipctl stages list' shows those installed"
    ),
]
Label: TypeAlias = Annotated[
    str,
    Named(
        r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?",
        "a name; write at most 63 lower-case letters, digits and '-', such as digits-cnn",
    ),
]
Version: TypeAlias = Annotated[str, Named(_SEMVER, "a semantic version; write three numbers, such as 1.4.0")]
Name: TypeAlias = Annotated[
    str,
    Named(r"[A-Za-z][A-Za-z0-9_]{0,62}", "a name; write letters, digits and '_', beginning with a letter"),
]
EnvironmentVariable: TypeAlias = Annotated[
    str,
    Named(
        r"[A-Za-z_][A-Za-z0-9_]{0,254}",
        "the name of an environment variable; write it as the shell does, such as HOME",
    ),
]
Text: TypeAlias = Annotated[str, Field(min_length=1)]
ProjectFile: TypeAlias = Annotated[str, Field(min_length=1), AfterValidator(_project_file)]
"""An option that names a file of the project: in the spec a path relative to it, in `run` an absolute one.

The file has to exist when the plan is made, and its content counts in the fingerprint.
"""
Texts: TypeAlias = Annotated[
    tuple[Text, ...], BeforeValidator(_one_or_many, json_schema_input_type=Text | tuple[Text, ...])
]
Ids: TypeAlias = Annotated[
    tuple[StageId, ...],
    BeforeValidator(_one_or_many, json_schema_input_type=StageId | tuple[StageId, ...]),
]
_SOURCE_SCHEMA = {
    "anyOf": [
        {"type": "string", "pattern": f"^{_SOURCE.pattern}$"},
        {"type": "string", "pattern": r"\$\{\{"},
    ]
}
Port: TypeAlias = Annotated[
    str | tuple[str, ...],
    BeforeValidator(_port),
    WithJsonSchema({"anyOf": [_SOURCE_SCHEMA, {"type": "array", "items": _SOURCE_SCHEMA, "minItems": 1}]}),
]
Condition: TypeAlias = Annotated[
    bool | str,
    BeforeValidator(_condition),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"type": "string", "pattern": r"^\s*\$\{\{"}]}),
]
Axis: TypeAlias = Annotated[
    tuple[Scalar, ...],
    BeforeValidator(_axis),
    WithJsonSchema(
        {
            "type": "array",
            "minItems": 1,
            "uniqueItems": True,
            "items": {"type": ["string", "number", "boolean"]},
        }
    ),
]
