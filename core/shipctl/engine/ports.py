"""The typed inputs and outputs of a stage class, read from its models."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from shipctl.errors import PluginError
from shipctl.records import Record
from shipctl.stages.artifacts import Artifact
from shipctl.stages.base import StageInputs
from shipctl.stages.registry import StageClass

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Port:
    """One named input or output."""

    name: str
    kinds: tuple[type[Artifact], ...]
    many: bool = False
    optional: bool = False
    from_spec: bool = False
    """Whether only what the spec itself brings feeds it, unless `inputs:` says otherwise."""

    def takes(self, kind: type[Artifact]) -> bool:
        """Whether an artifact of that class fits."""
        return issubclass(kind, self.kinds)

    def __str__(self) -> str:
        return " or ".join(kind.kind for kind in self.kinds)


@cache
def input_ports(stage: StageClass) -> dict[str, Port]:
    """Return the inputs of a stage class by name.

    :raises PluginError: if a field is annotated with something that is no artifact
    """
    return _ports(stage, stage.inputs_model)


@cache
def output_ports(stage: StageClass) -> dict[str, Port]:
    """Return the outputs of a transform stage by name (without the subject that a check passes through)."""
    outputs = getattr(stage, "outputs_model", None)
    return _ports(stage, outputs) if outputs is not None else {}


def _ports(stage: StageClass, model: type[Record]) -> dict[str, Port]:
    if not model.__pydantic_complete__:
        model.model_rebuild()
    return {name: _port(stage, name, field) for name, field in model.model_fields.items()}


def _port(stage: StageClass, name: str, field: FieldInfo) -> Port:
    annotation, extra = field.annotation, field.json_schema_extra
    many = get_origin(annotation) in {list, tuple}
    if many:
        annotation = get_args(annotation)[0]
    parts = get_args(annotation) if get_origin(annotation) in {Union, types.UnionType} else (annotation,)
    optional = type(None) in parts
    kinds = tuple(part for part in parts if part is not type(None))
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, Artifact)):
            where = f"{stage.__module__}.{stage.__qualname__}"
            message = f"{where}: {name} is annotated with {kind!r}, which is no artifact class"
            raise PluginError(message)
    from_spec = isinstance(extra, dict) and bool(extra.get("from_spec"))
    return Port(name, kinds, many=many, optional=optional, from_spec=from_spec)


def bundle(
    model: type[StageInputs], ports: Mapping[str, Port], inputs: Mapping[str, tuple[Artifact, ...]]
) -> StageInputs:
    """Return the inputs as the stage's own model: one artifact, a list of them, or None.

    The record is built without validating: pydantic would copy the artifacts and lose where their files are.
    """
    values: dict[str, Any] = {}
    for name, port in ports.items():
        items = inputs.get(name, ())
        values[name] = list(items) if port.many else (items[0] if items else None)
        if values[name] is None and not port.optional:
            message = f"input {name!r} of {model.__qualname__} has no artifact"
            raise PluginError(message)
    return model.model_construct(**values)
