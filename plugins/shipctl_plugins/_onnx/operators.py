"""What operators take, by their definitions: ONNX's own, and ONNX Runtime's for its extensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from shipctl_plugins._onnx.plain_graphs import attribute, has_bodies

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_STANDARD = {"", "ai.onnx"}
_TYPE_FROM_ATTRIBUTE = {"EyeLike", "RandomNormalLike", "RandomUniformLike"}
"""Whose result has the type of an attribute or, without it, of the input: not worth an exception each."""
MOVERS = frozenset({
    "Cast", "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad", "Reshape",
    "ScatterElements", "ScatterND", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operators that compute nothing."""


@dataclass(frozen=True)
class _Definition:
    inputs: tuple[str, ...]
    """Per parameter the name of a type variable, or a type."""
    outputs: tuple[str, ...]
    variadic_input: bool
    variadic_output: bool
    allowed: Mapping[str, frozenset[str]]
    """Per type variable the types, such as `tensor(float)`."""

    def input(self, index: int) -> str:
        return _at(self.inputs, index, variadic=self.variadic_input)

    def output(self, index: int) -> str:
        return _at(self.outputs, index, variadic=self.variadic_output)

    def takes(self, variable: str, dtype: str) -> bool:
        return dtype in self.allowed.get(variable, ())


@dataclass(frozen=True)
class Slots:
    """Which of a node's float32 inputs and outputs can be of a narrower type, all of them together."""

    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.outputs)


def versions_of(model: ModelProto) -> dict[str, int]:
    """Return the version of every operator set that the model uses, the default one under the empty name."""
    return {"" if entry.domain in _STANDARD else entry.domain: entry.version for entry in model.opset_import}


def slots(node: NodeProto, types: Mapping[str, str], versions: Mapping[str, int], dtype: str) -> Slots:
    """Say where ``node`` takes and gives ``dtype`` (`float16`, `bfloat16`) instead of float32.

    ``types`` are the dtypes of tensors by name; what is not in there is no tensor. Nothing for operators that
    do not take it, have graphs inside, or turn floats into something else.
    """
    names = [name for name in (*node.input, *node.output) if name]
    if any(name not in types for name in names) or has_bodies(node) or node.op_type in _TYPE_FROM_ATTRIBUTE:
        return Slots()
    floats_in = [index for index, name in enumerate(node.input) if name and types[name] == "float32"]
    floats_out = [index for index, name in enumerate(node.output) if name and types[name] == "float32"]
    if node.op_type == "Cast":
        # from float to integers the value has to be the exact one
        return Slots(tuple(floats_in), tuple(floats_out)) if floats_out else Slots()
    if node.op_type == "ConstantOfShape":
        return Slots((), tuple(floats_out))
    definition = _definition(node.op_type, node.domain, versions.get(_domain(node.domain), 1))
    if definition is None:
        return Slots()
    wanted = f"tensor({dtype})"
    inputs = [index for index in floats_in if definition.takes(definition.input(index), wanted)]
    variables = {definition.input(index) for index in inputs}
    outputs = [index for index in floats_out if definition.output(index) in variables]
    return Slots(tuple(inputs), tuple(outputs)) if outputs else Slots()


def first_version(node: NodeProto, dtype: str) -> int | None:
    """Return the first opset in which ``node``'s operator takes ``dtype``, None if none does."""
    from onnx import defs

    if _domain(node.domain):
        return None
    found = [
        schema.since_version
        for schema in defs.get_all_schemas_with_history()
        if schema.name == node.op_type
        and schema.domain in _STANDARD
        and any(f"tensor({dtype})" in entry.allowed_type_strs for entry in schema.type_constraints)
    ]
    return min(found, default=None)


def computes_floats(node: NodeProto, types: Mapping[str, str]) -> bool:
    """Whether the node makes float32 from float32."""
    return any(types.get(name) == "float32" for name in node.output) and any(
        types.get(name) == "float32" for name in node.input
    )


def uses_value(node: NodeProto) -> bool:
    """Whether a cast or constant has its type in an attribute, which has to change with it."""
    return node.op_type in {"Cast", "ConstantOfShape"} and attribute(node, "to", 1) == 1


def _domain(domain: str) -> str:
    return "" if domain in _STANDARD else domain


def _at(parameters: Sequence[str], index: int, *, variadic: bool) -> str:
    if index < len(parameters):
        return parameters[index]
    return parameters[-1] if variadic and parameters else ""


@cache
def _definition(op_type: str, domain: str, version: int) -> _Definition | None:
    from onnx import defs

    try:
        schema = defs.get_schema(op_type, version, _domain(domain))
    except defs.SchemaError:
        return _extension(op_type, domain, version)
    many = defs.OpSchema.FormalParameterOption.Variadic
    return _Definition(
        inputs=tuple(parameter.type_str for parameter in schema.inputs),
        outputs=tuple(parameter.type_str for parameter in schema.outputs),
        variadic_input=any(parameter.option == many for parameter in schema.inputs),
        variadic_output=any(parameter.option == many for parameter in schema.outputs),
        allowed=_allowed(schema),
    )


def _extension(op_type: str, domain: str, version: int) -> _Definition | None:
    """Return the definition of an operator that only ONNX Runtime knows, such as com.microsoft's."""
    try:
        from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema
    except ImportError:  # a build without it
        return None
    found = [
        schema
        for schema in get_all_operator_schema()
        if schema.name == op_type and schema.domain == domain and schema.since_version <= version
    ]
    if not found:
        return None
    schema = max(found, key=lambda schema: schema.since_version)
    return _Definition(
        inputs=tuple(parameter.typeStr for parameter in schema.inputs),
        outputs=tuple(parameter.typeStr for parameter in schema.outputs),
        variadic_input=False,
        variadic_output=False,
        allowed=_allowed(schema),
    )


def _allowed(schema: Any) -> dict[str, frozenset[str]]:
    return {
        entry.type_param_str: frozenset(map(str, entry.allowed_type_strs))
        for entry in schema.type_constraints
    }
